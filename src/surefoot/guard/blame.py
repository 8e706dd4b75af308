"""Which parameters a bad gradient came through."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from surefoot.guard.measure import local
from surefoot.guard.ranges import floating, look_at, read_looks
from surefoot.records import Culprit

__all__ = ["all_finite", "culprits", "with_ranges"]

_MOST = 16


def culprits(names: Sequence[str], norms: Sequence[float]) -> tuple[Culprit, ...]:
    """The parameters whose norm is not finite, in the model's order; at most 16.

    Where every norm is finite (their sum of squares alone overflowed) the largest is named.

    >>> [c.name for c in culprits(["a", "b", "c"], [1.0, float("nan"), float("inf")])]
    ['b', 'c']
    """
    bad = [i for i, norm in enumerate(norms) if not math.isfinite(norm)]
    if not bad:
        bad = [max(range(len(norms)), key=lambda i: norms[i])]
    return tuple(Culprit(names[i], norms[i]) for i in bad[:_MOST])


def with_ranges(
    found: Sequence[Culprit], gradients: Mapping[str, Tensor], unit: float
) -> tuple[Culprit, ...]:
    """The same with least, greatest and mean of the finite elements, and their share; one read.

    Args:
        found: named after parameters, or after something else, which is left as it is.
        gradients: by name of their parameter, as they lie in memory.
        unit: how many times larger than the true gradients that is.

    >>> bad = torch.tensor([2.0, 6.0, float("nan"), 4.0])
    >>> culprit, = with_ranges([Culprit("weight", float("nan"))], {"weight": bad}, 2.0)
    >>> print(culprit.range)
    1 to 3, mean 2, 75 % finite
    """
    numbers = {c.name: floating(gradients[c.name]) for c in found if c.name in gradients}
    known = {name: look_at(tensor) for name, tensor in numbers.items() if tensor is not None}
    ranges = {
        name: look.range for name, look in zip(known, read_looks(list(known.values())), strict=True)
    }
    return tuple(
        replace(
            culprit,
            norm=culprit.norm / unit,
            minimum=ranges[culprit.name].minimum / unit,
            maximum=ranges[culprit.name].maximum / unit,
            mean=ranges[culprit.name].mean / unit,
            finite=ranges[culprit.name].finite,
        )
        if culprit.name in ranges
        else culprit
        for culprit in found
    )


def all_finite(gradients: Sequence[Tensor]) -> bool:
    """Whether every element of every gradient is finite; a pass per tensor, for bad steps only."""
    return all(bool(torch.isfinite(_values(g)).all()) for g in gradients)


def _values(gradient: Tensor) -> Tensor:
    gradient = local(gradient)
    return gradient if gradient.layout == torch.strided else gradient.coalesce().values()
