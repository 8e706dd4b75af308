"""A copy of a state that the training no longer changes, in memory that is used again."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from surefoot.checkpoint.draft import Draft

__all__ = ["Staging"]


class Staging:
    """Copies drafts to host memory, each into the place of the one before.

    Tensors that are one and the same are one in the copy, too. From a GPU they are copied to
    pinned memory, all at once, and waited for together.

    >>> weight = torch.ones(2)
    >>> draft = Draft({"again": [weight]}, {"model": {"w": weight}}, {"step": 1})
    >>> copied = Staging().copy(draft)
    >>> _ = weight.zero_()
    >>> copied.weights["model"]["w"].tolist(), copied.state["again"][0].tolist()
    ([1.0, 1.0], [1.0, 1.0])
    """

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def copy(self, draft: Draft) -> Draft:
        """A draft that says the same; it is good until the next one is made."""
        once = _Once(self._buffers)
        copied = replace(
            draft,
            state=once.copy(dict(draft.state), "state"),
            weights={n: once.copy(dict(w), n) for n, w in draft.weights.items()},
        )
        self._buffers = once.used
        for device in once.devices:
            torch.accelerator.synchronize(device)
        return copied


class _Once:
    """One copy of one draft."""

    def __init__(self, buffers: Mapping[str, Tensor]) -> None:
        self.used: dict[str, Tensor] = {}
        self.devices: set[torch.device] = set()
        self._buffers = buffers
        self._seen: dict[tuple[object, ...], Tensor] = {}
        self._inside: dict[int, tuple[Any, Any]] = {}
        """Each container and its copy; held, for the identity of one that is gone is used again."""

    def copy(self, value: Any, place: str) -> Any:
        if isinstance(value, Tensor):
            return self._tensor(value, place)
        if type(value) is tuple:
            return tuple(child for _, child in self._items(dict(enumerate(value)), place))
        if type(value) in (dict, OrderedDict, list):
            return self._container(value, place)
        return copy.deepcopy(value)  # what else can be saved is small: sizes, counters, types

    def _container(self, value: Any, place: str) -> Any:
        if id(value) not in self._inside:  # it may contain itself
            copied = copy.copy(value)  # with an OrderedDict's attributes
            self._inside[id(value)] = value, copied
            items = value if isinstance(value, Mapping) else dict(enumerate(value))
            for key, child in self._items(cast(Mapping[Any, Any], items), place):
                copied[key] = child
        return self._inside[id(value)][1]

    def _items(self, values: Mapping[Any, Any], place: str) -> list[tuple[Any, Any]]:
        return [(key, self.copy(child, f"{place}/{key!r}")) for key, child in values.items()]

    def _tensor(self, tensor: Tensor, place: str) -> Tensor:
        source = tensor.detach()
        where = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if not tensor.numel() or where not in self._seen:
            self._seen[where] = self._into_buffer(source, place)
        copied = self._seen[where]
        if isinstance(tensor, nn.Parameter):
            return nn.Parameter(copied, requires_grad=tensor.requires_grad)
        return copied

    def _into_buffer(self, source: Tensor, place: str) -> Tensor:
        if source.layout is not torch.strided or source.is_quantized or source.is_meta:
            return source.clone()
        buffer = self._buffers.get(place)
        if buffer is None or not _fits(buffer, source):
            pinned = source.device.type == "cuda"
            buffer = torch.empty_like(source, device="cpu", pin_memory=pinned)
        if source.device.type != "cpu":
            self.devices.add(source.device)
        self.used[place] = buffer.copy_(source, non_blocking=True)
        return buffer


def _fits(buffer: Tensor, source: Tensor) -> bool:
    return (buffer.shape, buffer.dtype, buffer.stride()) == (
        source.shape,
        source.dtype,
        source.stride(),
    )
