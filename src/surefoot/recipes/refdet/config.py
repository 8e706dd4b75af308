"""What a RefDet run is set to."""

from __future__ import annotations

from dataclasses import dataclass, field

from surefoot.recipes.refdet.options import (
    DataOptions,
    EpisodeOptions,
    HardwareOptions,
    LossOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
)
from surefoot.recipes.settings import Settings

__all__ = ["TrainConfig"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Settings):
    """Train RefDet: three photos of an object and a drone video in, a box per frame out.

    >>> config = TrainConfig(optimizer=OptimizerOptions(lr=3e-5))
    >>> TrainConfig.from_dict(config.to_dict()) == config
    True
    """

    run: RunOptions = field(default_factory=RunOptions)
    data: DataOptions = field(default_factory=DataOptions)
    episode: EpisodeOptions = field(default_factory=EpisodeOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    hardware: HardwareOptions = field(default_factory=HardwareOptions)
