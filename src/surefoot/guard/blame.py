"""Which parameters a bad gradient came through."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from surefoot.records import Culprit

__all__ = ["all_finite", "culprits"]

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


def all_finite(gradients: Sequence[Tensor]) -> bool:
    """Whether every element of every gradient is finite; a pass per tensor, for bad steps only."""
    return all(bool(torch.isfinite(_values(g)).all()) for g in gradients)


def _values(gradient: Tensor) -> Tensor:
    if isinstance(gradient, DTensor):
        return gradient.to_local()
    return gradient if gradient.layout == torch.strided else gradient.coalesce().values()
