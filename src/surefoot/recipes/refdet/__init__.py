"""RefDet: few-shot detection by reference photos.

Here are the settings, which need no torch; the program itself is in
:mod:`surefoot.recipes.refdet.train`. A trained detector is used in three lines:

from surefoot.recipes.refdet.finder import ReferenceDetector
detector = ReferenceDetector.load("runs/refdet-20260102-030405")
found = detector.find(["frame.jpg"], detector.references([["a.jpg", "b.jpg", "c.jpg"]]))
"""

from surefoot.recipes.refdet.config import TrainConfig
from surefoot.recipes.refdet.options import (
    DataOptions,
    EpisodeOptions,
    HardwareOptions,
    LossOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
)

__all__ = [
    "DataOptions",
    "EpisodeOptions",
    "HardwareOptions",
    "LossOptions",
    "ModelOptions",
    "OptimizerOptions",
    "RunOptions",
    "TrainConfig",
]
