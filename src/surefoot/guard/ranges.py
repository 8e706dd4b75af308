"""Range and finite share of tensors: many of them, one read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from surefoot.guard.measure import local
from surefoot.records import Range

__all__ = ["Look", "floating", "look_at", "read_looks"]

_NUMBERS = 7


class Look(NamedTuple):
    """What was found in a tensor."""

    nan: bool
    inf: bool
    minus_inf: bool
    range: Range

    @property
    def kind(self) -> str:
        """``NaN``, ``Inf``, ``-Inf``, or nothing where every element is finite."""
        return "NaN" if self.nan else "Inf" if self.inf else "-Inf" if self.minus_inf else ""

    @property
    def strong(self) -> bool:
        """A NaN or +Inf. -Inf alone may well be meant: it is what attention is masked with."""
        return self.nan or self.inf


def floating(tensor: Tensor) -> Tensor | None:
    """The tensor's numbers, strided, real and without graph; None where it has none."""
    tensor = local(tensor.detach())
    if tensor.layout in (torch.sparse_coo, torch.sparse_csr, torch.jagged):
        tensor = tensor.coalesce().values() if tensor.is_sparse else tensor.values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    real = tensor.is_floating_point() and not tensor.is_quantized and not tensor.is_meta
    return tensor if real and tensor.numel() else None


def look_at(tensor: Tensor) -> Tensor:
    """7 numbers on the tensor's device, for :func:`read_looks`; nothing is waited for.

    Args:
        tensor: what :func:`floating` gave.
    """
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    low, high = torch.aminmax(wide)
    zero = torch.zeros_like(low)
    if wide.device.type == "cpu" and math.isfinite(float(low + high)):
        return torch.stack([zero, zero, zero, low, high, wide.mean(), zero + 1])
    finite = torch.isfinite(wide)
    count = finite.sum()
    numbers = [
        wide.isnan().any(),
        wide.isposinf().any(),
        wide.isneginf().any(),
        torch.where(finite, wide, math.inf).amin(),
        torch.where(finite, wide, -math.inf).amax(),
        torch.where(finite, wide, 0.0).sum() / count,
        count / finite.numel(),
    ]
    return torch.stack([number.to(low.dtype) for number in numbers])


def read_looks(found: Sequence[Tensor]) -> list[Look]:
    """What :func:`look_at` found; each device is waited for once.

    >>> look, = read_looks([look_at(torch.tensor([1.0, 3.0, float("nan"), 5.0]))])
    >>> look.kind, str(look.range)
    ('NaN', '1 to 5, mean 3, 75 % finite')
    """
    rows: list[list[float]] = [[]] * len(found)
    for key in {(f.device, f.dtype) for f in found}:
        places = [i for i, f in enumerate(found) if (f.device, f.dtype) == key]
        for i, row in zip(places, torch.stack([found[i] for i in places]).tolist(), strict=True):
            rows[i] = row
    return [_look(row) for row in rows]


def _look(row: Sequence[float]) -> Look:
    nan, inf, minus_inf, low, high, mean, share = row
    known = Range(low, high, mean, share) if share > 0 else Range(finite=0.0)
    return Look(nan > 0, inf > 0, minus_inf > 0, known)
