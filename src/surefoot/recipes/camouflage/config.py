"""What a camouflage run is set to."""

from __future__ import annotations

from dataclasses import dataclass, field

from surefoot.recipes.camouflage.options import (
    DataOptions,
    HardwareOptions,
    LossOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
)
from surefoot.recipes.settings import Settings

__all__ = ["CamouflageConfig"]


@dataclass(frozen=True, kw_only=True)
class CamouflageConfig(Settings):
    """Train the camouflage segmenter: images and masks in, a mask for every image out.

    >>> config = CamouflageConfig(optimizer=OptimizerOptions(lr=1e-4))
    >>> CamouflageConfig.from_dict(config.to_dict()) == config
    True
    """

    run: RunOptions = field(default_factory=RunOptions)
    data: DataOptions = field(default_factory=DataOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    hardware: HardwareOptions = field(default_factory=HardwareOptions)
