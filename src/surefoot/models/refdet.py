"""RefDet: finds in a scene the objects that a few reference photos show.

The query's class is no input anywhere: every image is scored against every object, and which of
them is in it is for the model to say.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from surefoot.errors import ConfigError, UsageError
from surefoot.models.decode import anchor_points
from surefoot.models.dino import DinoSupport, DinoSupportConfig
from surefoot.models.fusion import TokenConditioning
from surefoot.models.heads import DetectionHead, PrototypeScore
from surefoot.models.support import (
    BackboneSupport,
    BackboneSupportConfig,
    References,
    SupportPool,
)
from surefoot.models.yolov8 import YoloV8, YoloV8Config
from surefoot.shapes import DetectionPrediction

__all__ = ["RefDet", "RefDetConfig"]


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
    """Tokens per photo, beside its own embedding, that condition the scene."""
    conditioning: bool = True
    """Whether support tokens condition the scene's features; without, the score is the cosine."""

    def __post_init__(self) -> None:
        least = {"embedding": 2, "reg_max": 2, "head_depth": 0, "parts": 0}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ConfigError(
                    f"RefDetConfig: {name} {getattr(self, name)}; at least {value} is expected."
                )

    @classmethod
    def nano(cls, support: DinoSupportConfig | None = None) -> RefDetConfig:
        """YOLOv8n with a level of stride 4 for small objects, DINOv3 ViT-S/16: 640 px, a GPU."""
        return cls(
            backbone=YoloV8Config.scaled("n", strides=(4, 8, 16, 32)),
            support=support or DinoSupportConfig(),
            embedding=128,
            head_depth=2,
            parts=3,
        )

    @classmethod
    def pocket(cls) -> RefDetConfig:
        """The same classes, small enough to learn on one CPU thread: 0.37 M parameters, 128 px."""
        return cls(
            backbone=YoloV8Config(
                channels=(16, 32, 64, 96), depths=(1, 2, 1), sppf=False, strides=(8,)
            ),
            support=BackboneSupportConfig(stride=8),
        )


class RefDet(nn.Module):
    """Few-shot detector by reference photos.

    >>> import torch
    >>> model = RefDet(RefDetConfig.pocket())
    >>> prediction = model(torch.rand(2, 3, 64, 64), supports=torch.rand(5, 3, 3, 32, 32))
    >>> prediction.logits.shape  # 2 images, 8 x 8 anchor points, 5 objects
    torch.Size([2, 64, 5])
    """

    def __init__(self, config: RefDetConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = YoloV8(config.backbone)
        self.support: DinoSupport | BackboneSupport = (
            DinoSupport(config.support)
            if isinstance(config.support, DinoSupportConfig)
            else BackboneSupport(config.support, self.backbone)
        )
        self.pool = SupportPool(self.support.channels, config.embedding, parts=config.parts)
        self.head = DetectionHead(
            tuple(config.backbone.channels_at(s) for s in config.backbone.strides),
            dim=config.embedding,
            reg_max=config.reg_max,
            depth=config.head_depth,
        )
        self.conditioning = TokenConditioning(config.embedding) if config.conditioning else None
        self.score = PrototypeScore()

    def forward(self, images: Tensor, supports: Tensor) -> DetectionPrediction:
        """Scores every image against every object.

        Args:
            images: B 3 H W, RGB in [0, 1]; sides are multiples of the backbone's deepest stride.
            supports: N K 3 h w, RGB in [0, 1].
        """
        return self.detect(images, self.encode(supports))

    def encode(self, supports: Tensor) -> References:
        """N K 3 h w photos -> what they say of their objects; at inference, computed once.

        Raises:
            UsageError: the shape is another one.
        """
        if supports.ndim != 5 or supports.shape[2] != 3 or 0 in supports.shape:
            raise UsageError(
                f"encoding reference photos: their shape is {tuple(supports.shape)}; expected "
                "N K 3 h w, with at least one object (N) and one photo of each (K)."
            )
        photos = supports.flatten(0, 1)
        if isinstance(self.support, BackboneSupport):
            self._check_sides("reference photos", photos)
            tokens = self.support(photos, self.backbone)
        else:
            tokens = self.support(photos)
        return self.pool(tokens.unflatten(0, supports.shape[:2]))

    def detect(self, images: Tensor, references: References) -> DetectionPrediction:
        """B 3 H W images and the references of N objects -> a prediction for every pair.

        Raises:
            UsageError: the images are not B 3 H W, or their sides are no multiples of the deepest
                stride.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise UsageError(f"detecting: images are {tuple(images.shape)}; expected B 3 H W.")
        self._check_sides("images", images)
        maps = self.backbone(images)
        embeddings, distribution, objectness = self.head(list(maps.values()))
        sizes = {stride: (m.shape[-2], m.shape[-1]) for stride, m in maps.items()}
        points, strides = anchor_points(sizes, images.device)
        if self.conditioning is None:
            cosine = embeddings @ references.prototypes.mT
        else:
            cosine = self.conditioning(embeddings, references)
        return DetectionPrediction(
            logits=self.score(cosine, objectness),
            objectness=objectness,
            distribution=distribution,
            embeddings=embeddings,
            prototypes=references.prototypes,
            shots=references.shots,
            anchor_points=points,
            strides=strides,
        )

    def _check_sides(self, what: str, images: Tensor) -> None:
        height, width, deepest = images.shape[-2], images.shape[-1], self.backbone.deepest
        if height % deepest or width % deepest or not height or not width:
            raise UsageError(
                f"{what} are {height}x{width} pixels; both sides have to be multiples of "
                f"{deepest}, the backbone's deepest stride. Letterbox them to such a size."
            )
