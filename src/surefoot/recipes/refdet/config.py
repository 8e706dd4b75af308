"""What a RefDet run is set to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

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

    @property
    def learns_classes(self) -> bool:
        """Stage 1 on labelled images; everything else learns from references."""
        return self.run.stage == 1 and not self.data.procedural

    @classmethod
    def for_stage(cls, stage: int, *, procedural: bool = False) -> Self:
        """The defaults of a stage; stage 1 has others where its scenes are procedural.

        >>> TrainConfig.for_stage(3).loss.triplet_weight
        0.3
        """
        if stage == 1:
            return cls._of_scenes() if procedural else cls._of_labelled_images()
        if stage == 3:
            return cls(
                run=RunOptions(stage=3, epochs=50),
                episode=EpisodeOptions(replay_share=0.25),
                model=ModelOptions(freeze_yolo=True),
                loss=LossOptions(triplet_weight=0.3),
                optimizer=OptimizerOptions(lr=3e-5, warmup_epochs=1.0),
            )
        return cls()

    @classmethod
    def _of_labelled_images(cls) -> Self:
        """YOLOv8's weights of the terms, AdamW at the rate that small batches bear."""
        return cls(
            run=RunOptions(stage=1),
            data=DataOptions(mosaic=0.5),
            loss=LossOptions(
                bbox_weight=7.5,
                cls_weight=0.5,
                dfl_weight=1.5,
                supcon_weight=0.0,
                obj_weight=0.0,
                bbox_loss="ciou",
            ),
            optimizer=OptimizerOptions(lr=1e-3),
            hardware=HardwareOptions(batch_size=16),
        )

    @classmethod
    def _of_scenes(cls) -> Self:
        """Many objects per scene, most of them absent: what was found to transfer."""
        return cls(
            run=RunOptions(stage=1, epochs=6),
            data=DataOptions(data="procedural"),
            episode=EpisodeOptions(n_way=16, n_query=2, n_episodes=200),
            optimizer=OptimizerOptions(
                lr=3e-3,
                weight_decay=0.02,
                beta2=0.99,
                warmup_epochs=0.2,
                gradient_clip_norm=5.0,
                ema_decay=0.99,
            ),
            hardware=HardwareOptions(batch_size=16),
        )
