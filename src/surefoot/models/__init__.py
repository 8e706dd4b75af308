"""Models: YOLOv8's backbone and neck, support encoders, fusions, RefDet, target assignment."""

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
from surefoot.models.fusion import Fusion, Levels, TokenConditioning
from surefoot.models.fusion_cheaf import CrossScaleAttention
from surefoot.models.fusion_psalm import PyramidAttention
from surefoot.models.heads import DetectionHead, PrototypeScore, StandardHead
from surefoot.models.refdet import RefDet
from surefoot.models.refdet_config import FusionName, ModeName, RefDetConfig
from surefoot.models.support import (
    BackboneSupport,
    BackboneSupportConfig,
    References,
    SupportPlaces,
    SupportPool,
)
from surefoot.models.task_aligned import (
    PositivePoints,
    TaskAligned,
    TaskAlignedConfig,
    positive_points,
    task_aligned,
)
from surefoot.models.transfer import Transferred, transfer
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
    "CrossScaleAttention",
    "DetectionHead",
    "Detections",
    "DinoSupport",
    "DinoSupportConfig",
    "Fusion",
    "FusionName",
    "Levels",
    "ModeName",
    "PositivePoints",
    "PrototypeScore",
    "PyramidAttention",
    "RefDet",
    "RefDetConfig",
    "References",
    "Scale",
    "Sppf",
    "StandardHead",
    "StandardPrediction",
    "SupportPlaces",
    "SupportPool",
    "TaskAligned",
    "TaskAlignedConfig",
    "TokenConditioning",
    "Transferred",
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
    "transfer",
]
