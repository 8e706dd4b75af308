"""How far a gradient is shortened."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from surefoot.errors import ConfigError

__all__ = ["NormClip"]


class NormClip:
    """Shorten the whole gradient to a global L2 norm (Pascanu et al. 2013, algorithm 1).

    The same rule as ``torch.nn.utils.clip_grad_norm_``: a gradient longer than ``max_norm`` is
    multiplied by ``max_norm / (norm + 1e-6)``.

    >>> NormClip(1.0).divisor(4.0)
    4.000001
    >>> NormClip(1.0).divisor(0.5)
    1.0
    """

    def __init__(self, max_norm: float) -> None:
        if not max_norm > 0.0:  # NaN lands here as well
            raise ConfigError(
                f"clip={max_norm!r}: the largest allowed gradient norm, above 0; None for no clip."
            )
        self.max_norm = float(max_norm)

    @overload
    def divisor(self, norm: float) -> float: ...
    @overload
    def divisor(self, norm: Tensor) -> Tensor: ...
    def divisor(self, norm: float | Tensor) -> float | Tensor:
        """What the true gradient of this norm is divided by: 1 or more."""
        if isinstance(norm, Tensor):
            return torch.clamp((norm + 1e-6) / self.max_norm, min=1.0)
        return max(1.0, (norm + 1e-6) / self.max_norm)
