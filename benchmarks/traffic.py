"""Bytes that an optimizer step reads and writes, counted from the operations that it runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Operation", "TrafficMeter"]

_SMALL = 1000
_ONLY_WRITES = ("copy_", "zero_", "fill_", "zeros_like", "empty_like", "_foreach_copy_")


@dataclass(frozen=True)
class Operation:
    """One call of torch's, and the bytes of the large tensors in it."""

    name: str
    read: int
    written: int


class TrafficMeter(TorchDispatchMode):
    """Notes every operation on tensors of at least 1,000 elements that runs inside.

    >>> import torch
    >>> with TrafficMeter() as meter:
    ...     _ = torch.zeros(1000) + 1.0
    >>> [(o.name, o.read, o.written) for o in meter.operations if o.read]
    [('add', 4000, 4000)]
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[Operation] = []

    @property
    def total(self) -> int:
        """Bytes read and written."""
        return sum(o.read + o.written for o in self.operations)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        read, written = _moved(func, args, kwargs, name)
        given = {t.untyped_storage().data_ptr() for t in _large([*args, *kwargs.values()])}
        made = {t.untyped_storage().data_ptr(): t for t in _large([result])}
        written += sum(_bytes(t) for place, t in made.items() if place not in given)
        if read or written:
            self.operations.append(Operation(name, read, written))
        return result


def _moved(
    func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str
) -> tuple[int, int]:
    if any(a.alias_info is not None and not a.alias_info.is_write for a in func._schema.arguments):
        return 0, 0  # a view
    read: dict[int, int] = {}
    written: dict[int, int] = {}
    for place, argument in enumerate(func._schema.arguments):
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        writes = argument.alias_info is not None and argument.alias_info.is_write
        for tensor in _large([value]):
            where = tensor.data_ptr()
            if not (writes and name in _ONLY_WRITES):
                read[where] = _bytes(tensor)
            if writes:
                written[where] = _bytes(tensor)
    if name.startswith("_fused_") and kwargs.get("grad_scale") is None:
        for gradient in _large([args[1]]):
            written.pop(gradient.data_ptr(), None)  # the schema says so; the kernel does not
    return sum(read.values()), sum(written.values())


def _large(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            if value.numel() >= _SMALL:
                yield value
        elif isinstance(value, list | tuple):
            yield from _large(value)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
