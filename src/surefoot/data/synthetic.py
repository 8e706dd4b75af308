"""Procedural pictures taken from the air: sprites set on ground, lit, blurred and grainy.

Every picture is a pure function of the seeds of its parts and of the generator passed in. Objects
and grounds of different splits have different seeds, always.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from surefoot.data.cache import ByteCache
from surefoot.data.synthetic_grounds import GROUND_SIZE, make_ground
from surefoot.data.synthetic_objects import SHAPES, Sprite, make_sprite
from surefoot.errors import ConfigError

__all__ = [
    "SEEDS_PER_SPLIT",
    "Exposure",
    "Placed",
    "Scene",
    "Split",
    "SyntheticScenes",
    "cut_ground",
    "free_place",
    "paste",
    "placement",
    "rotation",
    "split_seed",
]

Split = Literal["train", "calibration", "validation"]
"""Whose objects and grounds: no two splits share one."""
SEEDS_PER_SPLIT = 1_000_000
_SOLID = 127

_Random = np.random.Generator
_Matrix = NDArray[np.floating[Any]]


def split_seed(split: Split, index: int) -> int:
    """The seed of object (or ground) ``index`` of a split.

    >>> split_seed("train", 5), split_seed("validation", 5)
    (5, 2000005)
    """
    if split not in get_args(Split):
        raise ConfigError(f"split is {split!r}; expected one of {get_args(Split)}.")
    if not 0 <= index < SEEDS_PER_SPLIT:
        raise ConfigError(
            f"Seed {index} of split {split!r}: a split has {SEEDS_PER_SPLIT} objects and grounds, "
            "numbered from 0."
        )
    return get_args(Split).index(split) * SEEDS_PER_SPLIT + index


@dataclass(frozen=True)
class Placed:
    """Where an object came to lie."""

    box: NDArray[np.float32]
    """4, x1 y1 x2 y2 in pixels, tight around what shows of it; zeros when nothing does."""
    visible: float
    """Share of the object's pixels inside the picture, 0 to 1."""


@dataclass(frozen=True)
class Scene:
    """A picture and the objects in it."""

    image: NDArray[np.uint8]
    """H W 3, RGB."""
    boxes: NDArray[np.float32]
    """M 4, x1 y1 x2 y2 in pixels."""
    objects: NDArray[np.int64]
    """M: which of the objects asked for."""
    visible: NDArray[np.float32]
    """M: share of each object inside the picture."""


def placement(random: _Random, side: float, *, stretch: float) -> _Matrix:
    """2 2: turns an object by any angle, makes it ``side`` pixels wide, stretched by a little."""
    angle = random.uniform(0, 2 * math.pi)
    aspect = math.sqrt(random.uniform(1 - stretch, 1 + stretch))
    return rotation(angle) @ np.diag([side * aspect, side / aspect])


def rotation(angle: float) -> _Matrix:
    """2 2, by ``angle`` in radians."""
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]])


def paste(
    picture: NDArray[np.uint8], sprite: Sprite, matrix: _Matrix, centre: NDArray[np.float64]
) -> Placed:
    """Set a sprite into ``picture``, in place.

    Args:
        picture: H W 3, RGB.
        sprite: the object.
        matrix: 2 2, maps the sprite's unit square around 0 to pixels around ``centre``.
        centre: x y in pixels.
    """
    half = np.abs(matrix).sum(axis=1) / 2
    low = np.floor(centre - half).astype(int)
    width, height = (np.ceil(centre + half).astype(int) - low).tolist()
    level = sprite.level(float(np.linalg.norm(matrix, axis=0).max()))
    inverse = np.linalg.inv(matrix) * level.width
    offset = inverse @ (low - centre) + level.width / 2
    warped = level.transform(
        (width, height),
        Image.Transform.AFFINE,
        (*inverse[0], offset[0], *inverse[1], offset[1]),
        Image.Resampling.BILINEAR,
    )
    return _blend(picture, np.asarray(warped), int(low[0]), int(low[1]))


def _blend(picture: NDArray[np.uint8], patch: NDArray[np.uint8], x: int, y: int) -> Placed:
    """Lay a premultiplied patch over ``picture`` with its corner at x y, cut at the border."""
    solid = patch[..., 3] > _SOLID
    total = int(np.count_nonzero(solid))
    left, top = max(-x, 0), max(-y, 0)
    patch = patch[top : max(picture.shape[0] - y, top), left : max(picture.shape[1] - x, left)]
    x, y = x + left, y + top
    under = picture[y : y + patch.shape[0], x : x + patch.shape[1]]
    clear = 255 - patch[..., 3:].astype(np.uint16)
    under[...] = (under * clear + 127) // 255 + patch[..., :3]
    solid = patch[..., 3] > _SOLID
    columns, rows = np.flatnonzero(solid.any(axis=0)), np.flatnonzero(solid.any(axis=1))
    if not len(columns):
        return Placed(np.zeros(4, dtype=np.float32), 0.0)
    ends = [x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1]
    return Placed(np.array(ends, dtype=np.float32), int(np.count_nonzero(solid)) / total)


@functools.cache
def _grain() -> NDArray[np.float32]:
    """A megabyte of normal noise: drawing it anew costs more than all the rest of a scene."""
    return np.random.default_rng(0).standard_normal(1 << 18, dtype=np.float32)


def _grain_like(values: NDArray[np.float32], random: _Random) -> NDArray[np.float32]:
    """Noise of the shape of ``values``, from a place of the pool that ``random`` chooses."""
    spare = len(_grain()) - values.size
    if spare < len(_grain()) // 4:
        return random.standard_normal(values.shape, dtype=np.float32)
    start = int(random.integers(spare))
    return _grain()[start : start + values.size].reshape(values.shape)


@dataclass(frozen=True)
class Exposure:
    """How a camera saw it: light, colour cast, blur and grain."""

    gain: NDArray[np.float32]
    """3, per channel."""
    offset: float
    noise: float
    """Standard deviation of the grain, in 0-255."""
    blur: float
    """Radius of the blur in pixels; 0 is none."""

    @classmethod
    def draw(cls, random: _Random) -> Exposure:
        """Any light a drone may fly in."""
        return cls(
            (random.uniform(0.75, 1.2) * random.uniform(0.93, 1.07, 3)).astype(np.float32),
            random.uniform(-18, 18),
            random.uniform(0, 7),
            max(0.0, random.uniform(-0.9, 0.9)),
        )

    def apply(self, picture: NDArray[np.uint8], random: _Random) -> NDArray[np.uint8]:
        """The picture as the camera saw it: H W 3, RGB."""
        if self.blur > 0.2:
            image = Image.fromarray(picture)
            picture = np.asarray(image.filter(ImageFilter.GaussianBlur(self.blur)))
        values = picture * self.gain
        values += self.offset
        values += _grain_like(values, random) * self.noise
        return np.clip(values, 0, 255, out=values).astype(np.uint8)


def cut_ground(
    ground: Image.Image, size: int, matrix: _Matrix, centre: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """``size`` x ``size`` pixels of ground: ``matrix`` maps pixels around the middle to ground."""
    offset = centre - matrix @ np.full(2, size / 2)
    coefficients = (*matrix[0], offset[0], *matrix[1], offset[1])
    cut = ground.transform(
        (size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR
    )
    return np.array(cut)


class SyntheticScenes:
    """Draws scenes and reference photos; keeps the sprites and grounds it used last.

    >>> scenes = SyntheticScenes()
    >>> scene = scenes.scene(np.random.default_rng(0), objects=[1, 2, 3], ground=0, size=96)
    >>> scene.image.shape, bool(np.isin(scene.objects, [0, 1, 2]).all())
    ((96, 96, 3), True)
    """

    def __init__(self, *, families: Sequence[str] = SHAPES, cache_mb: float = 128) -> None:
        self.families = tuple(families)
        self._sprites = ByteCache[Sprite](cache_mb / 2, size=attrgetter("nbytes"))
        self._grounds = ByteCache[Image.Image](cache_mb / 2, size=_picture_bytes)

    def sprite(self, seed: int) -> Sprite:
        """The object of a seed."""
        return self._sprites.get(seed, lambda: make_sprite(seed, self.families))

    def ground(self, seed: int) -> Image.Image:
        """The ground of a seed, ``GROUND_SIZE`` pixels wide."""
        return self._grounds.get(seed, lambda: make_ground(seed))

    def scene(
        self,
        random: _Random,
        *,
        objects: Sequence[int],
        ground: int,
        size: int,
        object_px: tuple[float, float] = (16, 64),
    ) -> Scene:
        """A scene with the objects of these seeds, none over another.

        The objects have one size in common, drawn log-uniformly from ``object_px`` (side of the
        sprite in pixels), times 0.75 to 1.35 each. What finds no free place is left out, so there
        may be fewer boxes than objects.

        Args:
            random: where every choice comes from.
            objects: seeds of the objects.
            ground: seed of the ground.
            size: side of the scene in pixels.
            object_px: smallest and largest common size.
        """
        picture = self._backdrop(random, ground, size)
        base = math.exp(random.uniform(*np.log(object_px)))
        taken: list[tuple[NDArray[np.float64], float]] = []
        placed: list[tuple[int, Placed]] = []
        for index, seed in enumerate(objects):
            side = base * random.uniform(0.75, 1.35)
            centre = free_place(random, taken, side, size)
            if centre is None:
                continue
            taken.append((centre, side))
            matrix = placement(random, side, stretch=0.1)
            placed.append((index, paste(picture, self.sprite(seed), matrix, centre)))
        image = Exposure.draw(random).apply(picture, random)
        seen = [(index, one) for index, one in placed if one.visible > 0]
        return Scene(
            image,
            np.array([one.box for _, one in seen], dtype=np.float32).reshape(-1, 4),
            np.array([index for index, _ in seen], dtype=np.int64),
            np.array([one.visible for _, one in seen], dtype=np.float32),
        )

    def reference(self, random: _Random, *, obj: int, ground: int, size: int) -> NDArray[np.uint8]:
        """A photo of one object, ``size size 3``; it fills 65-95 % of the side."""
        picture = self._backdrop(random, ground, size)
        matrix = placement(random, size * random.uniform(0.65, 0.95), stretch=0.15)
        centre = size / 2 + random.uniform(-0.03, 0.03, 2) * size
        paste(picture, self.sprite(obj), matrix, centre)
        return Exposure.draw(random).apply(picture, random)

    def _backdrop(self, random: _Random, ground: int, size: int) -> NDArray[np.uint8]:
        """A piece of ground, turned by any angle and scaled by 0.7 to 1.3."""
        scale = random.uniform(0.7, 1.3)
        scale = min(scale, GROUND_SIZE / (1.42 * size))
        margin = min(scale * size * 0.71, GROUND_SIZE / 2)
        matrix = rotation(random.uniform(0, 2 * math.pi)) * scale
        centre = random.uniform(margin, GROUND_SIZE - margin, 2)
        return cut_ground(self.ground(ground), size, matrix, centre)


def _picture_bytes(picture: Image.Image) -> int:
    return 4 * picture.width * picture.height


def free_place(
    random: _Random, taken: list[tuple[NDArray[np.float64], float]], side: float, size: float
) -> NDArray[np.float64] | None:
    """A centre whose circle touches no other; None when eight tries found none."""
    for _ in range(8):
        centre = random.uniform(0, size, 2)
        if all(math.dist(centre, c) > 0.5 * (side + s) for c, s in taken):
            return centre
    return None
