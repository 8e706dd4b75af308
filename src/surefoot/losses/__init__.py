"""Losses with safe gradients: float32 inside, log space, no clamp where a gradient passes."""

from surefoot.losses.boxes import IoUKind, WiseIoU, box_iou_aligned, iou_loss
from surefoot.losses.classification import binary_cross_entropy, focal_loss
from surefoot.losses.contrastive import prototype_contrastive, supervised_contrastive
from surefoot.losses.distribution import distribution_focal_loss
from surefoot.losses.numerics import (
    fp32_island,
    rescale_above,
    safe_divide,
    safe_norm,
    unit_vectors,
)

__all__ = [
    "IoUKind",
    "WiseIoU",
    "binary_cross_entropy",
    "box_iou_aligned",
    "distribution_focal_loss",
    "focal_loss",
    "fp32_island",
    "iou_loss",
    "prototype_contrastive",
    "rescale_above",
    "safe_divide",
    "safe_norm",
    "supervised_contrastive",
    "unit_vectors",
]
