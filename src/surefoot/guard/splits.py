"""How a batch is cut in two, and the losses of its pieces are put together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeAlias, cast

from torch import Tensor

from surefoot.errors import UsageError
from surefoot.shapes import LossTerms

__all__ = ["Piece", "Split", "Weight", "halve", "summed", "weighed"]

Weight: TypeAlias = float | Mapping[str, float]


@dataclass(frozen=True)
class Piece:
    """A part of a batch, and what its loss counts in that of the batch."""

    batch: Any
    size: float
    """Samples in it, for messages and for telling what fits."""
    weight: Weight = 1.0
    """The loss of the batch is the sum of weight x loss over its pieces; by the names of the terms
    where they are not means over the same things."""

    def within(self, outer: Weight) -> Piece:
        """This piece with its weight in a larger batch, in which the cut one has ``outer``."""
        return replace(self, weight=_times(outer, self.weight))


Split: TypeAlias = Callable[[Any], Sequence[Piece]]
"""Cuts a batch in two or more; gives fewer than two where it cannot be cut."""


def halve(batch: Any) -> Sequence[Piece]:
    """Cut along the first axis of every tensor; the loss is taken for a mean over samples.

    A batch is a tensor, or a mapping, list, tuple or dataclass of tensors that have as many rows.
    Lists of that length without tensors (names, a dict of targets for each image) are cut as well;
    whatever else is in it goes to both halves.

    Raises:
        UsageError: it is not clear what the samples are.

    >>> import torch
    >>> first, second = halve((torch.arange(3), ["a", "b", "c"]))
    >>> first.batch, second.batch, round(second.weight, 2)
    ((tensor([0, 1]), ['a', 'b']), (tensor([2]), ['c']), 0.33)
    """
    counts = {len(tensor) for tensor in _tensors(batch) if tensor.ndim}
    if len(counts) != 1:
        found = "no tensors" if not counts else f"tensors of {sorted(counts)} rows"
        raise UsageError(
            f"halve: the batch is a {type(batch).__name__} with {found}, so that nobody can tell "
            "its samples; give Halves(model, split=...) a function that cuts it."
        )
    (count,) = counts
    middle = (count + 1) // 2
    if count < 2:
        return []
    return [
        Piece(_rows(batch, rows, count), size, size / count)
        for rows, size in ((slice(middle), middle), (slice(middle, None), count - middle))
    ]


def weighed(terms: LossTerms, weight: Weight) -> LossTerms:
    """Terms that nobody else holds, each multiplied by its weight."""
    values: dict[str, Tensor] = {}
    for name, value in terms.values.items():
        factor = weight[name] if isinstance(weight, Mapping) else weight
        if factor != 1.0:
            value = value * factor
        # A view cannot let go of its graph in place.
        values[name] = value.clone() if value._is_view() else value
    return LossTerms(values, terms.weights)


def summed(done: Sequence[LossTerms]) -> LossTerms:
    """The loss of a batch from those of its pieces, weighed already.

    Raises:
        UsageError: they have other terms.
    """
    first = done[0]
    if any(terms.names != first.names for terms in done):
        raise UsageError(
            f"Halves: a piece of the batch gave the loss terms {list(done[-1].names)} and another "
            f"one {list(first.names)}; give a term that does not apply the value 0."
        )
    values = dict(first.values)
    for terms in done[1:]:
        values = {name: value + terms.values[name] for name, value in values.items()}
    return LossTerms(values, first.weights)


def _tensors(value: Any, *, inner: bool = False) -> Iterator[Tensor]:
    """Those that rows are counted in; of a list within the batch, none are."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        parts = cast(Sequence[Any], value)
        if inner and any(isinstance(part, Tensor) for part in parts):
            raise UsageError(
                "halve: the batch holds a list of tensors, whose first axes may be anything; give "
                "Halves(model, split=...) a function that cuts it."
            )
        for part in () if inner else parts:
            yield from _tensors(part, inner=True)
    else:
        for part in _parts(value).values():
            yield from _tensors(part, inner=True)


def _rows(value: Any, rows: slice, count: int, *, inner: bool = False) -> Any:
    if isinstance(value, Tensor):
        return value[rows] if value.ndim else value
    if isinstance(value, list | tuple):
        parts = cast(Sequence[Any], value)
        if inner or not any(True for _ in _tensors(value)):
            return parts[rows] if len(parts) == count else parts
        cut = [_rows(part, rows, count, inner=True) for part in parts]
        return type(value)(*cut) if hasattr(value, "_fields") else type(value)(cut)
    cut = {name: _rows(part, rows, count, inner=True) for name, part in _parts(value).items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **cut)
    return cut if isinstance(value, Mapping) else value


def _parts(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Mapping):
        return cast(Mapping[str, Any], value)
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return {}


def _times(outer: Weight, inner: Weight) -> Weight:
    if not isinstance(outer, Mapping):
        return (
            {name: outer * weight for name, weight in inner.items()}
            if isinstance(inner, Mapping)
            else outer * inner
        )
    if not isinstance(inner, Mapping):
        return {name: weight * inner for name, weight in outer.items()}
    return {name: weight * inner[name] for name, weight in outer.items()}
