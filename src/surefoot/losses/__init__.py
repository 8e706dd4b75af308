"""Losses with safe gradients: float32 inside, log space, no clamp where a gradient passes."""

from surefoot.losses.boundary import boundary_weights, outline
from surefoot.losses.boxes import IoUKind, WiseIoU, box_iou_aligned, iou_loss
from surefoot.losses.classification import binary_cross_entropy, focal_loss
from surefoot.losses.contrastive import prototype_contrastive, supervised_contrastive
from surefoot.losses.detection import DetectionLoss, DetectionLossConfig
from surefoot.losses.distribution import distribution_focal_loss
from surefoot.losses.numerics import (
    fp32_island,
    rescale_above,
    safe_divide,
    safe_norm,
    unit_vectors,
)
from surefoot.losses.segmentation import (
    SegmentationMaps,
    dice_loss,
    edge_loss,
    segmentation_terms,
    structure_loss,
    uncertainty_loss,
    uncertainty_ramp,
)

__all__ = [
    "DetectionLoss",
    "DetectionLossConfig",
    "IoUKind",
    "SegmentationMaps",
    "WiseIoU",
    "binary_cross_entropy",
    "boundary_weights",
    "box_iou_aligned",
    "dice_loss",
    "distribution_focal_loss",
    "edge_loss",
    "focal_loss",
    "fp32_island",
    "iou_loss",
    "outline",
    "prototype_contrastive",
    "rescale_above",
    "safe_divide",
    "safe_norm",
    "segmentation_terms",
    "structure_loss",
    "supervised_contrastive",
    "uncertainty_loss",
    "uncertainty_ramp",
    "unit_vectors",
]
