"""How good a detector is, on whole videos and on single images, and how sure that number is."""

from surefoot.metrics.bootstrap import Interval, bootstrap_interval
from surefoot.metrics.detection import DetectionMap, MapResult
from surefoot.metrics.st_iou import SpatioTemporalIoU, StIoU

__all__ = [
    "DetectionMap",
    "Interval",
    "MapResult",
    "SpatioTemporalIoU",
    "StIoU",
    "bootstrap_interval",
]
