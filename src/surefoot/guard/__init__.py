"""The guard: every optimizer step is measured once, judged, then applied or refused."""

from surefoot.guard.attach import Attachment, attach
from surefoot.guard.clip import (
    AdaptiveClip,
    Clip,
    GroupClip,
    NormClip,
    PercentileClip,
    ValueClip,
    ZScoreClip,
)
from surefoot.guard.guard import Guard
from surefoot.guard.halved_step import step_in_halves
from surefoot.guard.halves import Halves
from surefoot.guard.memory import Growth, MemoryReading, MemoryWatch
from surefoot.guard.out_of_memory import Halved, TooLarge
from surefoot.guard.policy import Policy
from surefoot.guard.precision import PrecisionCheck, PrecisionTrial, check_precision
from surefoot.guard.replay import Replay, replay
from surefoot.guard.stall import Stall, StallWatch

__all__ = [
    "AdaptiveClip",
    "Attachment",
    "Clip",
    "GroupClip",
    "Growth",
    "Guard",
    "Halved",
    "Halves",
    "MemoryReading",
    "MemoryWatch",
    "NormClip",
    "PercentileClip",
    "Policy",
    "PrecisionCheck",
    "PrecisionTrial",
    "Replay",
    "Stall",
    "StallWatch",
    "TooLarge",
    "ValueClip",
    "ZScoreClip",
    "attach",
    "check_precision",
    "replay",
    "step_in_halves",
]
