"""Losses of one mask per image, from logits; every one gives a value per image.

An image whose mask is empty shows nothing to overlap with: only the cross-entropies speak of it,
and the overlap terms are 0 there, with gradient 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from surefoot.errors import ConfigError, UsageError
from surefoot.losses.boundary import boundary_weights, outline
from surefoot.losses.classification import focal_loss
from surefoot.losses.numerics import fp32_island
from surefoot.shapes import LossTerms

__all__ = [
    "SegmentationMaps",
    "dice_loss",
    "edge_loss",
    "segmentation_terms",
    "structure_loss",
    "uncertainty_loss",
    "uncertainty_ramp",
]

_PIXELS = (1, 2, 3)
_WEIGHTS = {"structure": 1.0, "deep": 1.0, "edge": 0.5, "uncertainty": 0.0, "balance": 0.01}


class SegmentationMaps(Protocol):
    """What :func:`segmentation_terms` reads of a model's output."""

    @property
    def mask(self) -> Tensor:
        """B 1 H W, logits."""
        ...

    @property
    def deep(self) -> Sequence[Tensor]:
        """B 1 h w each, logits, coarse to fine."""
        ...

    @property
    def edge(self) -> Tensor | None:
        """B 1 h w, logits of the outline."""
        ...

    @property
    def auxiliary(self) -> Mapping[str, Tensor]:
        """Scalar losses of the model's own."""
        ...


@fp32_island
def structure_loss(logits: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy and IoU, both weighted by how near a pixel is to the mask's boundary.

    sum(w bce) / sum(w) + 1 - (sum(w p g) + 1) / (sum(w (p + g - p g)) + 1), with p = sigmoid(z), g
    the mask and w of :func:`surefoot.losses.boundary_weights`. Wei et al. 2020 (F3Net),
    arXiv:1911.11445. Many copies of it pass ``reduce='none'``, which torch reads as "the mean", and
    so lose the weights of the cross-entropy.

    At random initialisation, logits near 0, the first part is ln 2 and the second near 1 - share of
    the object. At a perfect prediction both are 0.

    Args:
        logits: B 1 H W.
        mask: the same shape, in [0, 1] or bool; soft values are probabilities. Detached.
        weights: the same shape, above 0: w, where it is there already.

    Returns:
        B, float32, in [0, inf).

    Raises:
        UsageError: the shapes differ, or are no B 1 H W.

    >>> mask = torch.zeros(1, 1, 8, 8)
    >>> mask[..., 2:6, 2:6] = 1
    >>> structure_loss(torch.zeros(1, 1, 8, 8), mask), structure_loss(400 * mask - 200, mask)
    (tensor([1.4199]), tensor([0.]))
    """
    _check("structure_loss", logits, mask)
    g = mask.detach().to(logits.dtype)
    w = boundary_weights(g) if weights is None else weights.detach()
    bce = F.binary_cross_entropy_with_logits(logits, g, reduction="none")
    bce = (w * bce).sum(_PIXELS) / w.sum(_PIXELS)
    p = logits.sigmoid()
    both = (w * p * g).sum(_PIXELS)
    either = (w * (p + g)).sum(_PIXELS) - both
    return bce + _of_objects(1 - (both + 1) / (either + 1), g)


@fp32_island
def dice_loss(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - (2 sum(p g) + 1) / (sum(p) + sum(g) + 1). Milletari et al. 2016, arXiv:1606.04797.

    Alone it teaches nothing about images without an object, and next to nothing where p is near 0
    everywhere: put a cross-entropy beside it.

    Args:
        logits: B 1 H W.
        mask: the same shape, in [0, 1] or bool. Detached.

    Returns:
        B, float32, in [0, 1]; 0 where the mask is empty.

    Raises:
        UsageError: the shapes differ, or are no B 1 H W.

    >>> mask = torch.ones(1, 1, 4, 4)
    >>> dice_loss(-20 * mask, mask), dice_loss(20 * mask, mask)
    (tensor([0.9412]), tensor([0.]))
    """
    _check("dice_loss", logits, mask)
    g = mask.detach().to(logits.dtype)
    p = logits.sigmoid()
    both, all_of_them = (p * g).sum(_PIXELS), (p + g).sum(_PIXELS)
    return _of_objects(1 - (2 * both + 1) / (all_of_them + 1), g)


@fp32_island
def edge_loss(logits: Tensor, mask: Tensor, *, most: float = 10.0) -> Tensor:
    """Cross-entropy and dice of where the mask's outline runs.

    The target is :func:`surefoot.losses.outline` at the size of the logits. Its few places weigh as
    much as all others together, but never more than ``most`` times as much each: the mean is over
    sum(w). An image without an outline has the cross-entropy only.

    Args:
        logits: B 1 h w.
        mask: B 1 H W, in {0, 1} or bool, H >= h and W >= w. Detached.
        most: at least 1.

    Returns:
        B, float32, in [0, inf).

    Raises:
        UsageError: the shapes do not fit.
        ConfigError: ``most`` is below 1 or not finite.

    >>> mask = torch.zeros(1, 1, 32, 32)
    >>> mask[..., 8:24, 8:24] = 1
    >>> edge_loss(torch.zeros(1, 1, 8, 8), mask)  # ln 2, and 0.49 for half of 32 places
    tensor([1.1855])
    """
    if not 1 <= most < math.inf:
        raise ConfigError(f"edge_loss: most {most}; expected a finite number, at least 1.")
    target = outline(mask, (logits.shape[-2], logits.shape[-1]))
    _check("edge_loss", logits, target)
    on = target.sum(_PIXELS, keepdim=True)
    off = target[0].numel() - on
    w = 1 + ((off / on.clamp(min=1)).clamp(1, most) - 1) * target
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (w * bce).sum(_PIXELS) / w.sum(_PIXELS) + dice_loss(logits, target)


@fp32_island
def uncertainty_loss(logits: Tensor) -> Tensor:
    """1 - (2 p - 1)^2 = 4 p (1 - p), the mean over an image: how undecided its mask is.

    It asks for a decision and not for the right one: let its weight grow over the run
    (:func:`uncertainty_ramp`). Pang et al. 2022 (ZoomNet), arXiv:2203.02688. Taken as a product of
    two sigmoids, which loses no digit where p is near 1.

    Args:
        logits: B 1 H W.

    Returns:
        B, float32, in [0, 1].

    >>> uncertainty_loss(torch.tensor([0.0, 50.0]).view(2, 1, 1, 1))
    tensor([1.0000e+00, 7.7150e-22])
    """
    return (4 * logits.sigmoid() * (-logits).sigmoid()).mean(_PIXELS)


def uncertainty_ramp(progress: float) -> float:
    """Weight of :func:`uncertainty_loss` over a run: 0 to 1 along half a cosine.

    Args:
        progress: share of the run that is over; held to [0, 1].

    >>> [round(uncertainty_ramp(t), 3) for t in (0, 0.25, 0.5, 1)]
    [0.0, 0.146, 0.5, 1.0]
    """
    return (1 - math.cos(math.pi * min(max(progress, 0.0), 1.0))) / 2


def segmentation_terms(
    output: SegmentationMaps, mask: Tensor, *, weights: Mapping[str, float] | None = None
) -> LossTerms:
    """All terms of a model's output, each the mean over the batch.

    ``structure``: of the mask. ``deep``: of the masks on the way, the finest counting 1/2, the next
    1/4 and so on. They are compared at the size of the finest of them with the share of each cell
    that the object covers, so that thin parts are not lost. ``edge``: of the outline, where the
    output has one. ``uncertainty``: see :func:`uncertainty_loss`. What the model brings along
    (``balance``) comes last.

    The weights of pixels are computed once for the mask and shared by all of its sizes.

    Args:
        output: of a model.
        mask: B 1 H W, in {0, 1} or bool: what ``output.mask`` should be.
        weights: of terms by name, in the place of the defaults: structure 1, deep 1, edge 0.5,
            uncertainty 0, balance 0.01. ``dice`` and ``focal``, both of the mask, are computed only
            if they are named here.

    Raises:
        ConfigError: a weight is named that no term has.
        UsageError: the mask has another shape than ``output.mask``.

    >>> from types import SimpleNamespace
    >>> half, quarter, mask = (torch.zeros(1, 1, n, n) for n in (8, 4, 16))
    >>> said = SimpleNamespace(mask=mask, deep=(quarter, half), edge=None, auxiliary={})
    >>> terms = segmentation_terms(said, mask, weights={"dice": 1.0})
    >>> {name: round(float(value), 3) for name, value in terms.values.items()}
    {'structure': 0.693, 'deep': 0.52, 'uncertainty': 1.0, 'dice': 0.0}
    """
    asked = {**_WEIGHTS, **(weights or {})}
    if unknown := sorted(asked.keys() - _WEIGHTS.keys() - {"dice", "focal"} - {*output.auxiliary}):
        raise ConfigError(
            f"segmentation_terms: weights name {unknown}; the terms are "
            f"{sorted({*_WEIGHTS, 'dice', 'focal', *output.auxiliary})}."
        )
    _check("segmentation_terms", output.mask, mask)
    g = mask.detach().float()
    w = boundary_weights(g)
    values = {"structure": structure_loss(output.mask, g, w).mean()}
    if output.deep:
        values["deep"] = _deep(output.deep, g, w)
    if output.edge is not None:
        values["edge"] = edge_loss(output.edge, g).mean()
    values["uncertainty"] = uncertainty_loss(output.mask).mean()
    if "dice" in asked:
        values["dice"] = dice_loss(output.mask, g).mean()
    if "focal" in asked:
        values["focal"] = focal_loss(output.mask, g).mean()
    values |= output.auxiliary
    return LossTerms(values, {name: asked[name] for name in values if name in asked})


def _deep(maps: Sequence[Tensor], mask: Tensor, weights: Tensor) -> Tensor:
    size = maps[-1].shape[-2:]
    g, w = (F.interpolate(x, size=size, mode="area") for x in (mask, weights))
    total = torch.zeros((), device=mask.device)
    for steps_back, logits in enumerate(reversed(maps), start=1):
        z = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
        total = total + structure_loss(z, g, w).mean() / 2**steps_back
    return total


def _of_objects(loss: Tensor, mask: Tensor) -> Tensor:
    """B: the loss of images with an object in them, and 0 elsewhere."""
    return torch.where(mask.sum(_PIXELS) > 0, loss, 0.0)


def _check(name: str, logits: Tensor, mask: Tensor) -> None:
    if logits.shape != mask.shape or logits.ndim != 4 or logits.shape[1] != 1:
        raise UsageError(
            f"{name}: logits of shape {tuple(logits.shape)} and a mask of shape "
            f"{tuple(mask.shape)}; expected B 1 H W of both."
        )
