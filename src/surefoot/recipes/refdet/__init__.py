"""RefDet: few-shot detection by reference photos.

Here are the settings, which need no torch; the program itself is in
:mod:`surefoot.recipes.refdet.train`.
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
