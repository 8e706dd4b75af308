"""Models: YOLOv8's backbone and neck, support encoders, RefDet, and its target assignment."""

from surefoot.models.assign import AssignConfig, Assignment, assign
from surefoot.models.blocks import C2f, ConvBnAct, Sppf
from surefoot.models.decode import (
    Detections,
    anchor_points,
    best_boxes,
    decode_boxes,
    detections,
    encode_boxes,
)
from surefoot.models.dino import DinoSupport, DinoSupportConfig
from surefoot.models.fusion import TokenConditioning
from surefoot.models.heads import DetectionHead, PrototypeScore, StandardHead
from surefoot.models.refdet import RefDet, RefDetConfig
from surefoot.models.support import (
    BackboneSupport,
    BackboneSupportConfig,
    References,
    SupportPool,
)
from surefoot.models.task_aligned import (
    PositivePoints,
    TaskAligned,
    TaskAlignedConfig,
    positive_points,
    task_aligned,
)
from surefoot.models.yolov8 import (
    Scale,
    StandardPrediction,
    YoloV8,
    YoloV8Config,
    YoloV8Detector,
    load_ultralytics_state_dict,
)
from surefoot.models.yolov8_weights import load_ultralytics, read_state_dict

__all__ = [
    "AssignConfig",
    "Assignment",
    "BackboneSupport",
    "BackboneSupportConfig",
    "C2f",
    "ConvBnAct",
    "DetectionHead",
    "Detections",
    "DinoSupport",
    "DinoSupportConfig",
    "PositivePoints",
    "PrototypeScore",
    "RefDet",
    "RefDetConfig",
    "References",
    "Scale",
    "Sppf",
    "StandardHead",
    "StandardPrediction",
    "SupportPool",
    "TaskAligned",
    "TaskAlignedConfig",
    "TokenConditioning",
    "YoloV8",
    "YoloV8Config",
    "YoloV8Detector",
    "anchor_points",
    "assign",
    "best_boxes",
    "decode_boxes",
    "detections",
    "encode_boxes",
    "load_ultralytics",
    "load_ultralytics_state_dict",
    "positive_points",
    "read_state_dict",
    "task_aligned",
]
