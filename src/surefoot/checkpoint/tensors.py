"""The tensors in a nested state: where they stand, how large they are, which are not finite."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["bytes_of", "listed", "nonfinite", "tensors_in"]

_NAMED = 5


def tensors_in(
    value: Any, place: str = "state", above: frozenset[int] = frozenset()
) -> Iterator[tuple[str, Tensor]]:
    """Every tensor in dicts, lists and tuples, with the place it stands at.

    Args:
        value: may contain itself.
        place: its name.
        above: identities of what contains it.

    >>> [place for place, _ in tensors_in({"moments": [torch.ones(2), 3]})]
    ["state['moments'][0]"]
    """
    if isinstance(value, Tensor):
        yield place, value
        return
    if id(value) in above or not isinstance(value, Mapping | list | tuple):
        return
    children = (
        cast(Mapping[Any, Any], value).items()
        if isinstance(value, Mapping)
        else enumerate(cast(Sequence[Any], value))
    )
    for key, child in children:
        yield from tensors_in(child, f"{place}[{key!r}]", above | {id(value)})


def bytes_of(values: Iterable[Any]) -> int:
    """Bytes of all tensors in them, one that stands in several places once.

    >>> bytes_of([{"w": torch.ones(2, 3)}, {"n": [torch.tensor(1)]}])
    32
    """
    places = {
        (t.device, t.data_ptr(), t.numel() * t.element_size())
        for value in values
        for _, t in tensors_in(value)
        if t.layout is torch.strided
    }
    return sum(size for _, _, size in places)


def nonfinite(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of the floating and complex tensors with a NaN or an Inf in them."""
    named = [
        (n, t)
        for n, t in tensors
        if (t.is_floating_point() or t.is_complex()) and t.layout is torch.strided and not t.is_meta
    ]
    # Gathered before the host looks, so that a model on an accelerator is waited for once.
    finite = [torch.isfinite(t.detach()).all() for _, t in named]
    if not finite:
        return []
    on_host = torch.stack([flag.to(finite[0].device) for flag in finite]).tolist()
    return [n for (n, _), good in zip(named, on_host, strict=True) if not good]


def listed(names: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
