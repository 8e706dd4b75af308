"""What the segmentation model says of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from surefoot.shapes import Prediction

__all__ = ["CamouflageOutput"]


@dataclass(frozen=True, kw_only=True)
class CamouflageOutput(Prediction):
    """One mask per image, and what only training asks for. All logits are float32."""

    mask: Tensor
    """B 1 H W at the size of the images: ``sigmoid(mask)`` is the probability of "object"."""
    deep: tuple[Tensor, ...]
    """B 1 h w each, coarse to fine: the mask as the decoder had it after every step."""
    edge: Tensor | None = None
    """B 1 h w at the finest stride of the encoder: logits of "the object's outline is here"."""
    auxiliary: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Scalar losses that the model brings along; empty in evaluation mode."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """A copy with every tensor on ``device``."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=non_blocking)

        return type(self)(
            mask=moved(self.mask),
            deep=tuple(map(moved, self.deep)),
            edge=None if self.edge is None else moved(self.edge),
            auxiliary={name: moved(value) for name, value in self.auxiliary.items()},
        )
