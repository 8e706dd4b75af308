"""Two passes over one batch: how far apart are loss and gradient, and is it more than rounding?

Most networks turn rounding into an angle of a few degrees between the two gradients. Some, freshly
initialised, turn any rounding into any angle: in a ResNet-101 with random weights, rounding the
weights to bfloat16 and computing in float32 leaves a cosine of 0.05 (gradients of deep BatchNorm
networks explode at initialisation: Yang et al. 2019, "A Mean Field Theory of Batch Normalization"),
and yet it trains. So what is not near by itself is held against what rounded weights alone do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from surefoot.guard.measure import tensor_norms

__all__ = ["Deviation", "Passed", "deviation"]

_ANGLE, _LENGTH, _LOSS = 0.1, math.log(1.5), 0.2
"""What is near: a cosine of 0.9 (two batches of ordinary size have less than 0.1), half as long
again or two thirds, and a fifth of the loss."""
_ALLOWED = 8.0
"""So many times the deviation that rounded weights alone make is no fault; activations are rounded
several times a layer. Measured: 1 to 5.5 in five torchvision networks."""
_LEAST_LOSS = 0.01
"""A smaller loss is compared as if it were this large: near 0 a share means nothing."""
_LEAST_SHARE = 1e-3
"""A tensor's deviation is relative to at least this share of the whole gradient: one that is 0 in
exact arithmetic (a bias before BatchNorm) consists of rounding."""


class Passed(NamedTuple):
    """Loss and true gradient of one forward and backward pass."""

    loss: float
    gradients: dict[str, Tensor]
    """float32, by parameter; without those that the loss does not depend on."""
    norms: dict[str, float]
    norm: float
    """L2 norm of all of them together."""

    @classmethod
    def of(cls, loss: float, gradients: dict[str, Tensor]) -> Passed:
        """With the norms."""
        norms = tensor_norms(list(gradients.values()))
        norm = float(torch.linalg.vector_norm(norms))
        return cls(loss, gradients, dict(zip(gradients, norms.tolist(), strict=True)), norm)

    @property
    def finite(self) -> bool:
        """Whether everything is."""
        return math.isfinite(self.loss) and self.norm < math.inf


@dataclass(frozen=True, slots=True)
class Deviation:
    """How far one pass is from another."""

    loss: float
    """Relative."""
    cosine: float
    """Between the whole gradients."""
    length: float
    """Of the whole gradient, relative to the other's."""
    worst: str
    """The parameter whose gradient is furthest off, relative to its own norm..."""
    worst_by: float
    """...and how far."""

    def near(self, control: Deviation | None = None) -> bool:
        """Whether this is rounding; with ``control``, whether it is not much more than that."""
        angle, length, loss = _ANGLE, _LENGTH, _LOSS
        if control is not None:
            turned = 1.0 - control.cosine  # a length or a loss may be near by luck
            angle = max(angle, _ALLOWED * turned)
            length = max(length, turned, _ALLOWED * abs(_log(control.length)))
            loss = max(loss, turned, _ALLOWED * control.loss)
        return 1.0 - self.cosine <= angle and abs(_log(self.length)) <= length and self.loss <= loss

    def __str__(self) -> str:
        return (
            f"cosine of the gradients {self.cosine:.4f}, loss off by {100 * self.loss:.2f} %, "
            f"furthest off the gradient of {self.worst}, by {100 * self.worst_by:.1f} %"
        )


def deviation(of: Passed, exact: Passed) -> Deviation:
    """How far one finite pass is from another.

    >>> exact = Passed.of(1.0, {"weight": torch.tensor([3.0, 4.0])})
    >>> print(deviation(Passed.of(1.01, {"weight": torch.tensor([3.0, 4.1])}), exact))
    cosine of the gradients 0.9999, loss off by 1.00 %, furthest off the gradient of weight, by \
2.0 %
    """
    zero = next(iter(exact.gradients.values())).new_zeros(())
    names = list(exact.gradients | of.gradients)
    apart = tensor_norms(
        [of.gradients.get(n, zero) - exact.gradients.get(n, zero) for n in names]
    ).tolist()
    least = max(_LEAST_SHARE * exact.norm, 1e-30)
    off = {n: d / max(exact.norms.get(n, 0.0), least) for n, d in zip(names, apart, strict=True)}
    worst = max(off, key=off.__getitem__)
    cosine, length = _angle_and_length(of.norm, exact.norm, math.hypot(*apart))
    loss = abs(of.loss - exact.loss) / max(abs(exact.loss), _LEAST_LOSS)
    return Deviation(loss, cosine, length, worst, off[worst])


def _angle_and_length(side: float, exact: float, apart: float) -> tuple[float, float]:
    """Cosine and quotient of two vectors' lengths, from the three sides of their triangle."""
    if exact == 0.0 or side == 0.0:
        return (1.0, 1.0) if exact == side else (0.0, math.inf if exact == 0.0 else 0.0)
    p, q = side / exact, apart / exact
    return (p * p + 1.0 - q * q) / (2.0 * p), p


def _log(length: float) -> float:
    return math.log(length) if 0.0 < length < math.inf else math.inf
