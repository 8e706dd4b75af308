"""How good a detector is, on whole videos and on single images, and how sure that number is."""

from surefoot.metrics.bootstrap import Interval, bootstrap_interval
from surefoot.metrics.detection import DetectionMap, MapResult
from surefoot.metrics.segmentation import ImageScore, SegmentationScores, SegmentationSummary
from surefoot.metrics.segmentation_table import Difference, difference, score_table
from surefoot.metrics.st_iou import SpatioTemporalIoU, StIoU, quiet_from

__all__ = [
    "DetectionMap",
    "Difference",
    "ImageScore",
    "Interval",
    "MapResult",
    "SegmentationScores",
    "SegmentationSummary",
    "SpatioTemporalIoU",
    "StIoU",
    "bootstrap_interval",
    "difference",
    "quiet_from",
    "score_table",
]
