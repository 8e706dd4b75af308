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
from surefoot.losses.proposals import (
    Proposals,
    contrastive_proposals,
    jittered_boxes,
    roi_features,
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
from surefoot.losses.triplet import batch_hard_triplet

__all__ = [
    "DetectionLoss",
    "DetectionLossConfig",
    "IoUKind",
    "Proposals",
    "SegmentationMaps",
    "WiseIoU",
    "batch_hard_triplet",
    "binary_cross_entropy",
    "boundary_weights",
    "box_iou_aligned",
    "contrastive_proposals",
    "dice_loss",
    "distribution_focal_loss",
    "edge_loss",
    "focal_loss",
    "fp32_island",
    "iou_loss",
    "jittered_boxes",
    "outline",
    "prototype_contrastive",
    "rescale_above",
    "roi_features",
    "safe_divide",
    "safe_norm",
    "segmentation_terms",
    "structure_loss",
    "supervised_contrastive",
    "uncertainty_loss",
    "uncertainty_ramp",
    "unit_vectors",
]
