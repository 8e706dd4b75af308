"""RefDet: finds in a scene the objects that a few reference photos show.

The query's class is no input anywhere: every image is scored against every object, and which of
them is in it is for the model to say. Beside it, or instead of it, the same backbone can carry a
standard head for classes that are known beforehand: what the first stage of training learns.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Self

from torch import Tensor, nn

from surefoot.errors import ConfigError, UsageError
from surefoot.models.decode import anchor_points
from surefoot.models.dino import DinoSupport, DinoSupportConfig
from surefoot.models.fusion import Fusion, TokenConditioning, level_of
from surefoot.models.fusion_cheaf import CrossScaleAttention
from surefoot.models.fusion_psalm import PSALM_GRIDS, PyramidAttention
from surefoot.models.heads import DetectionHead, PrototypeScore, StandardHead
from surefoot.models.refdet_config import RefDetConfig
from surefoot.models.support import BackboneSupport, References, SupportPlaces, SupportPool
from surefoot.models.yolov8 import StandardPrediction, YoloV8
from surefoot.shapes import DetectionPrediction

__all__ = ["RefDet", "RefDetConfig"]

_GRIDS: dict[str, tuple[int, ...]] = {"psalm": PSALM_GRIDS, "cheaf": ()}


class RefDet(nn.Module):
    """Few-shot detector by reference photos.

    What a mode does not need is not built: mode ``standard`` has no ``support``, ``pool``,
    ``places``, ``head``, ``conditioning`` and ``score``, mode ``prototype`` no ``standard``. Parts
    that two modes share have the same names in both.

    >>> import torch
    >>> model = RefDet(RefDetConfig.pocket())
    >>> prediction = model(torch.rand(2, 3, 64, 64), supports=torch.rand(5, 3, 3, 32, 32))
    >>> prediction.logits.shape  # 2 images, 8 x 8 anchor points, 5 objects
    torch.Size([2, 64, 5])
    >>> model = RefDet(RefDetConfig.pocket(mode="dual", classes=7))
    >>> model.classify(torch.rand(2, 3, 64, 64)).logits.shape
    torch.Size([2, 64, 7])
    """

    support: DinoSupport | BackboneSupport
    pool: SupportPool
    places: SupportPlaces | None
    head: DetectionHead
    conditioning: Fusion | None
    score: PrototypeScore
    standard: StandardHead

    def __init__(self, config: RefDetConfig) -> None:
        super().__init__()
        self.config = config
        self.frozen: frozenset[str] = frozenset()
        self.backbone = YoloV8(config.backbone)
        strides = config.backbone.strides
        channels = tuple(config.backbone.channels_at(s) for s in strides)
        if config.mode != "standard":
            self._build_prototype_side(channels)
        if config.mode != "prototype":
            self.standard = StandardHead(
                channels, strides, classes=config.classes, reg_max=config.reg_max
            )

    def _build_prototype_side(self, channels: tuple[int, ...]) -> None:
        config = self.config
        self.support = (
            DinoSupport(config.support)
            if isinstance(config.support, DinoSupportConfig)
            else BackboneSupport(config.support, self.backbone)
        )
        parts = config.parts if config.fusion == "tokens" else 0  # the others read no pooled parts
        self.pool = SupportPool(self.support.channels, config.embedding, parts=parts)
        self.head = DetectionHead(
            channels, dim=config.embedding, reg_max=config.reg_max, depth=config.head_depth
        )
        self.conditioning = _fusion(config)
        self.places = None
        if config.fusion in _GRIDS:
            self.places = SupportPlaces(
                self.support.channels, config.embedding, grids=_GRIDS[config.fusion]
            )
        self.score = PrototypeScore()

    def forward(
        self, images: Tensor, supports: Tensor | None = None
    ) -> DetectionPrediction | StandardPrediction | tuple[StandardPrediction, DetectionPrediction]:
        """Everything that a step of training needs, in one call.

        Args:
            images: B 3 H W, RGB in [0, 1]; sides are multiples of the backbone's deepest stride.
            supports: N K 3 h w, RGB in [0, 1]; None asks for the standard head alone.

        Returns:
            Every image scored against every object: :meth:`detect` of :meth:`encode`. Without
            ``supports`` it is :meth:`classify`, and with them in mode ``dual`` :meth:`both`.
        """
        if supports is None:
            return self.classify(images)
        references = self.encode(supports)
        if self.config.mode == "dual":
            return self.both(images, references)
        return self.detect(images, references)

    def encode(self, supports: Tensor) -> References:
        """N K 3 h w photos -> what they say of their objects; at inference, computed once.

        Raises:
            UsageError: the shape is another one, or the model has no prototype head.
        """
        self._needs("prototype", "encoding reference photos")
        if supports.ndim != 5 or supports.shape[2] != 3 or 0 in supports.shape:
            raise UsageError(
                f"encoding reference photos: their shape is {tuple(supports.shape)}; expected "
                "N K 3 h w, with at least one object (N) and one photo of each (K)."
            )
        photos = supports.flatten(0, 1)
        if isinstance(self.support, BackboneSupport):
            self._check_sides("reference photos", photos)
            dense = self.support(photos, self.backbone)
        else:
            dense = self.support(photos)
        dense = dense.unflatten(0, supports.shape[:2])
        references = self.pool(dense)
        if self.places is None:
            return references
        cell = self.support.cell
        size = (supports.shape[-2] // cell, supports.shape[-1] // cell)
        return replace(references, places=self.places(dense, size))

    def detect(self, images: Tensor, references: References) -> DetectionPrediction:
        """B 3 H W images and the references of N objects -> a prediction for every pair.

        Raises:
            UsageError: the images are not B 3 H W, or their sides are no multiples of the deepest
                stride, or the model has no prototype head.
        """
        self._needs("prototype", "detecting by reference photos")
        return self._detect(self._maps(images), references)

    def classify(self, images: Tensor) -> StandardPrediction:
        """B 3 H W images -> every anchor point scored against every class.

        Raises:
            UsageError: the images do not fit, or the model has no standard head.
        """
        self._needs("standard", "classifying")
        return self._classify(self._maps(images))

    def both(
        self, images: Tensor, references: References
    ) -> tuple[StandardPrediction, DetectionPrediction]:
        """:meth:`classify` and :meth:`detect` from one pass through the backbone.

        Raises:
            UsageError: the images do not fit, or the model lacks one of the heads.
        """
        self._needs("prototype", "detecting by reference photos")
        self._needs("standard", "classifying")
        maps = self._maps(images)
        return self._classify(maps), self._detect(maps, references)

    def conditioned(
        self,
        prediction: DetectionPrediction,
        references: References | None,
        image: Tensor,
        object: Tensor,
        *,
        stride: int | None = None,
    ) -> Tensor:
        """Embeddings conditioned by an object, for chosen pairs of image and object.

        Their product with the object's prototype is what :meth:`detect` scored, exactly: nothing
        of the scene is computed again. With the fusion ``none`` they are the embeddings.

        Args:
            prediction: of this model.
            references: None for those of the prediction.
            image: P, int64, 0 .. B-1.
            object: P, int64, 0 .. N-1.
            stride: of the one level that is wanted, in pixels; None for all.

        Returns:
            P A D, float32, no longer than 1.5; with ``stride`` the h w cells of that level, row by
            row, whose h and w ``prediction.levels`` has.

        Raises:
            UsageError: the indices are not P each, or there is no such level.

        >>> import torch
        >>> model = RefDet(RefDetConfig.pocket())
        >>> found = model(torch.rand(2, 3, 64, 64), supports=torch.rand(5, 3, 3, 32, 32))
        >>> image, object = torch.tensor([1, 1, 0]), torch.tensor([4, 0, 2])
        >>> c = model.conditioned(found, None, image, object)
        >>> likeness = (c * found.prototypes[object][:, None]).sum(-1)
        >>> logits = model.score(likeness[..., None], found.objectness[image])[..., 0]
        >>> torch.allclose(logits, found.logits[image, :, object], atol=1e-4)
        True
        """
        if image.ndim != 1 or image.shape != object.shape:
            raise UsageError(
                f"conditioned: image indices {tuple(image.shape)} and object indices "
                f"{tuple(object.shape)}; expected P of each, a pair a place."
            )
        references = references or References.of(prediction)
        levels, cells = prediction.levels, slice(None)
        if stride is not None:
            levels, cells = level_of(levels, stride)
        e = prediction.embeddings[:, cells][image].float()
        if self.conditioning is None:
            return e
        scene = prediction.scene
        scene = None if scene is None else scene[:, cells][image]
        return self.conditioning.paired(e, references.take(object), scene, levels)

    def freeze(self, part: Literal["backbone", "support", "none"]) -> None:
        """Holds a part still: no gradient, and evaluation mode through every later ``train()``.

        Parts add up; ``none`` lets all of them learn again, but for what the support encoder's own
        configuration freezes. The statistics that a :class:`BackboneSupport` keeps for photos hold
        still with the backbone.

        Raises:
            ConfigError: no such part.
            UsageError: ``support`` where the model has no support encoder of its own.

        >>> model = RefDet(RefDetConfig.pocket())
        >>> model.freeze("backbone")
        >>> model.train().backbone.training
        False
        """
        if part not in ("backbone", "support", "none"):
            raise ConfigError(f"freeze: {part!r}; expected backbone, support or none.")
        if part == "support" and not isinstance(getattr(self, "support", None), DinoSupport):
            raise UsageError(
                "freeze: this model has no support encoder of its own: it has no prototype head, "
                'or the backbone encodes the photos; freeze("backbone") holds that still.'
            )
        wanted = frozenset[str]() if part == "none" else self.frozen | {part}
        for name in self.frozen ^ wanted:
            module = self.get_submodule(name)
            module.requires_grad_(name not in wanted)
            if name in wanted:
                for parameter in module.parameters():
                    parameter.grad = None
            elif isinstance(module, DinoSupport):
                module.freeze_blocks()
        self.frozen = wanted
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode; a frozen part stays in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def _detect(self, maps: dict[int, Tensor], references: References) -> DetectionPrediction:
        embeddings, distribution, objectness = self.head(list(maps.values()))
        levels = tuple((m.shape[-2], m.shape[-1], stride) for stride, m in maps.items())
        scene = None
        if self.conditioning is None:
            cosine = embeddings @ references.prototypes.mT
        else:
            scene = self.conditioning.look(embeddings, levels)
            cosine = self.conditioning(embeddings, references, scene, levels)
        points, strides = _anchors(maps)
        return DetectionPrediction(
            logits=self.score(cosine, objectness),
            objectness=objectness,
            distribution=distribution,
            embeddings=embeddings,
            prototypes=references.prototypes,
            shots=references.shots,
            anchor_points=points,
            strides=strides,
            levels=levels,
            tokens=references.tokens,
            places=references.places,
            scene=scene,
        )

    def _classify(self, maps: dict[int, Tensor]) -> StandardPrediction:
        distribution, logits = self.standard(list(maps.values()))
        points, strides = _anchors(maps)
        return StandardPrediction(
            logits=logits, distribution=distribution, anchor_points=points, strides=strides
        )

    def _maps(self, images: Tensor) -> dict[int, Tensor]:
        if images.ndim != 4 or images.shape[1] != 3:
            raise UsageError(f"detecting: images are {tuple(images.shape)}; expected B 3 H W.")
        self._check_sides("images", images)
        return self.backbone(images)

    def _needs(self, head: Literal["prototype", "standard"], doing: str) -> None:
        if self.config.mode not in (head, "dual"):
            raise UsageError(
                f"{doing}: this model has no {head} head, its mode is {self.config.mode!r}; build "
                f'it with mode "{head}" or "dual".'
            )

    def _check_sides(self, what: str, images: Tensor) -> None:
        height, width, deepest = images.shape[-2], images.shape[-1], self.backbone.deepest
        if height % deepest or width % deepest or not height or not width:
            raise UsageError(
                f"{what} are {height}x{width} pixels; both sides have to be multiples of "
                f"{deepest}, the backbone's deepest stride. Letterbox them to such a size."
            )


def _fusion(config: RefDetConfig) -> Fusion | None:
    match config.fusion:
        case "tokens":
            return TokenConditioning(config.embedding)
        case "psalm":
            return PyramidAttention(config.embedding, config.backbone.strides)
        case "cheaf":
            return CrossScaleAttention(config.embedding, config.backbone.strides)
        case "none":
            return None


def _anchors(maps: dict[int, Tensor]) -> tuple[Tensor, Tensor]:
    sizes = {stride: (m.shape[-2], m.shape[-1]) for stride, m in maps.items()}
    return anchor_points(sizes, next(iter(maps.values())).device)
