"""What decides the shape of a RefDet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from surefoot.errors import ConfigError
from surefoot.models.dino import DinoSupportConfig
from surefoot.models.support import BackboneSupportConfig
from surefoot.models.yolov8 import YoloV8Config

__all__ = ["FusionName", "ModeName", "RefDetConfig"]

FusionName: TypeAlias = Literal["tokens", "psalm", "cheaf", "none"]
"""How the references condition the scene: see models/fusion.py and its two neighbours."""

ModeName: TypeAlias = Literal["prototype", "standard", "dual"]
"""Which heads there are."""


@dataclass(frozen=True, kw_only=True)
class RefDetConfig:
    """Everything that decides the shape of a RefDet."""

    backbone: YoloV8Config
    """Network of the scenes."""
    support: DinoSupportConfig | BackboneSupportConfig
    """Network of the reference photos."""
    embedding: int = 64
    """D, width of embeddings and prototypes."""
    reg_max: int = 16
    """R, bins of a box side's distribution: a side is at most R - 1 strides from its point."""
    head_depth: int = 1
    """3x3 convolutions of each tower of the head."""
    parts: int = 1
    """Tokens per photo, beside its own embedding, of the fusion ``tokens``."""
    fusion: FusionName = "tokens"
    """How support tokens condition the scene's features; with ``none`` the score is the cosine."""
    mode: ModeName = "prototype"
    """Which heads there are: by reference photos, for known classes (standard), or both (dual)."""
    classes: int = 0
    """Classes of the standard head; 0 without one."""

    def __post_init__(self) -> None:
        least = {"embedding": 2, "reg_max": 2, "head_depth": 0, "parts": 0, "classes": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ConfigError(
                    f"RefDetConfig: {name} {getattr(self, name)}; at least {value} is expected."
                )
        for name, known in (("fusion", FusionName), ("mode", ModeName)):
            if getattr(self, name) not in get_args(known):
                raise ConfigError(
                    f"RefDetConfig: {name} {getattr(self, name)!r}; expected one of "
                    f"{', '.join(get_args(known))}."
                )
        if (self.classes > 0) != (self.mode != "prototype"):
            raise ConfigError(
                f"RefDetConfig: mode {self.mode!r} with {self.classes} classes; a standard head "
                'has at least one, and mode "prototype" has no such head: 0 classes.'
            )

    @classmethod
    def nano(
        cls,
        support: DinoSupportConfig | None = None,
        *,
        fusion: FusionName = "tokens",
        mode: ModeName = "prototype",
        classes: int = 0,
    ) -> RefDetConfig:
        """YOLOv8n with a level of stride 4 for small objects, DINOv3 ViT-S/16: 640 px, a GPU."""
        return cls(
            backbone=YoloV8Config.scaled("n", strides=(4, 8, 16, 32)),
            support=support or DinoSupportConfig(),
            embedding=128,
            head_depth=2,
            parts=3,
            fusion=fusion,
            mode=mode,
            classes=classes,
        )

    @classmethod
    def pocket(
        cls, *, fusion: FusionName = "tokens", mode: ModeName = "prototype", classes: int = 0
    ) -> RefDetConfig:
        """The same classes, small enough to learn on one CPU thread: 0.37 M parameters, 128 px."""
        return cls(
            backbone=YoloV8Config(
                channels=(16, 32, 64, 96), depths=(1, 2, 1), sppf=False, strides=(8,)
            ),
            support=BackboneSupportConfig(stride=8),
            fusion=fusion,
            mode=mode,
            classes=classes,
        )
