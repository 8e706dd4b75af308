"""What tensors travel as between the stages: one named value on every arrow.

Axes, in the order they appear:

    B  images of a batch            C  channels
    N  objects asked for (n-way)    H, W  height and width in pixels
    K  photos of an object (k-shot) A  anchor points of all levels together
    M  boxes of all images together D  width of an embedding
    R  bins of a box side's distribution (``reg_max``)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from surefoot.errors import UsageError

__all__ = ["Batch", "DetectionPrediction", "Episode", "LossTerms", "Prediction"]


class _Travels:
    """Moves every tensor of a dataclass at once."""

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """A copy with every tensor on ``device``."""
        moved: dict[str, object] = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            is_tensor = isinstance(value, Tensor)
            moved[f.name] = value.to(device, non_blocking=non_blocking) if is_tensor else value
        return type(self)(**moved)


@dataclass(frozen=True, kw_only=True)
class Batch(_Travels):
    """Images and the names they are known by."""

    images: Tensor
    """B 3 H W, float, RGB in [0, 1]."""
    sample_ids: tuple[str, ...]
    """B names, e.g. ``"Boat_0/frame 37"``; blame and the journal use them."""


@dataclass(frozen=True, kw_only=True)
class Episode(Batch):
    """Scenes, the objects asked for in them, and where each object is.

    Every scene is scored against every object: an object that is absent is an answer as well.
    """

    supports: Tensor
    """N K 3 h w, float, RGB in [0, 1]: K reference photos of each object."""
    boxes: Tensor
    """M 4, float, x1 y1 x2 y2 in pixels of ``images``."""
    box_image: Tensor
    """M, int64: which image a box is in."""
    box_object: Tensor
    """M, int64: which object a box shows; -1 for an object that nobody asks for."""
    ignore: Tensor
    """M, bool: too little of the object shows; neither present nor absent."""


@dataclass(frozen=True, kw_only=True)
class Prediction(_Travels):
    """What a model says of a batch; each task has its own kind."""


@dataclass(frozen=True, kw_only=True)
class DetectionPrediction(Prediction):
    """Every anchor point of every image, scored against every object.

    ``logits`` are the only scores; ``sigmoid(logits)`` is the probability that the object is at the
    anchor point. ``distribution`` holds, for each side of the box, the logits over its distance
    from the anchor point in strides (0 .. R-1).
    """

    logits: Tensor
    """B A N."""
    objectness: Tensor
    """B A: logits of "some object is here", whichever it is."""
    distribution: Tensor
    """B A 4 R: left, top, right, bottom."""
    embeddings: Tensor
    """B A D, L2-normalised: what each anchor point looks like."""
    prototypes: Tensor
    """N D, L2-normalised: what each object looks like."""
    shots: Tensor
    """N K D, L2-normalised: what each single photo looks like."""
    anchor_points: Tensor
    """A 2, x y in pixels."""
    strides: Tensor
    """A, pixels."""
    levels: tuple[tuple[int, int, int], ...] = ()
    """Height and width in cells and stride in pixels of each level, as its points lie in A."""
    tokens: Tensor | None = None
    """N T D: what of the photos conditioned the scene."""
    places: Tensor | None = None
    """N K G D: the photos place by place, where the fusion reads them so."""
    scene: Tensor | None = None
    """B A S: what the fusion read off the scene before it knew an object."""


@dataclass(frozen=True)
class LossTerms:
    """Named terms of a loss, each a scalar that carries gradient, and their weights.

    >>> terms = LossTerms({"bbox": torch.tensor(0.5), "cls": torch.tensor(2.0)}, {"bbox": 7.5})
    >>> float(terms.total)
    5.75
    """

    values: Mapping[str, Tensor]
    """Raw values: 0-d tensors."""
    weights: Mapping[str, float]
    """Weight of each term; a term without one has weight 1."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weights) - set(self.values))
        if unknown:
            raise UsageError(
                f"LossTerms: weights name {unknown}, which are no terms; the terms are "
                f"{sorted(self.values)}."
            )
        if not self.values:
            raise UsageError("LossTerms: no terms; a loss needs at least one.")
        for name, value in self.values.items():
            if value.ndim != 0:
                raise UsageError(
                    f"LossTerms: term {name!r} has shape {tuple(value.shape)}; every term is a "
                    "scalar. Reduce it with .mean() or .sum() first."
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the terms, in their order."""
        return tuple(self.values)

    def weight(self, name: str) -> float:
        """Weight of a term."""
        return float(self.weights.get(name, 1.0))

    def detach(self) -> LossTerms:
        """The same values without their graph."""
        return LossTerms({n: v.detach() for n, v in self.values.items()}, self.weights)

    @property
    def total(self) -> Tensor:
        """Sum of weight x value; terms of weight 0 are left out, so that 0 x NaN is no NaN."""
        weighed = [
            value if self.weight(name) == 1.0 else value * self.weight(name)
            for name, value in self.values.items()
            if self.weight(name) != 0.0
        ]
        if not weighed:
            raise UsageError(f"LossTerms: every weight is 0 ({', '.join(self.names)}).")
        total = weighed[0]
        for value in weighed[1:]:
            total = total + value
        return total
