"""Procedural camouflage: an object of the texture that lies around it.

Ground and object are two draws of one random process; the object's is turned, finer or coarser.
Colours, mean and contrast are the same on both sides, so no pixel tells them apart: only the
structure of a neighbourhood does. What lies about as a decoy has an outline and no such change.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from surefoot.data.camouflage.augment import Augment
from surefoot.data.camouflage.items import CamouflageItems
from surefoot.data.camouflage.silhouettes import HELD_OUT_SILHOUETTES, SILHOUETTES, silhouette
from surefoot.data.camouflage.textures import (
    HELD_OUT_TEXTURES,
    TEXTURES,
    Field,
    Process,
    clouds,
    smooth,
    texture,
)
from surefoot.errors import ConfigError

__all__ = ["ProceduralCamouflage", "ProceduralSplit", "hidden_object"]

ProceduralSplit = Literal["train", "validation", "test", "novel"]
"""No two share a seed; ``"novel"`` has textures and outlines that are in none of the others."""
_TAG = 0xCA4021
_AREA = (0.05, 0.28)
_Random = np.random.Generator


class ProceduralCamouflage(CamouflageItems):
    """A data set of images that are made as they are asked for; nothing is stored.

    Args:
        length: items in an epoch, at least 1.
        size: side of the images in pixels, at least 32.
        seed: which images.
        split: see :data:`ProceduralSplit`.
        fresh: make other images in every epoch, instead of the same ones again.
        augment: how they are changed further.

    Raises:
        ConfigError: settings that cannot work.

    >>> data = ProceduralCamouflage(length=4, size=64, seed=0)
    >>> data[3]["image"].shape, data[3]["mask"].shape, data[3]["id"]
    (torch.Size([3, 64, 64]), torch.Size([1, 64, 64]), 'procedural-train-0-3')
    """

    def __init__(
        self,
        *,
        length: int,
        size: int,
        seed: int,
        split: ProceduralSplit = "train",
        fresh: bool = False,
        augment: Augment | None = None,
    ) -> None:
        super().__init__(size=size, augment=augment, seed=seed)
        if length < 1 or size < 32:
            raise ConfigError(
                f"ProceduralCamouflage: {length} images of {size} pixels; at least 1 of 32."
            )
        if split not in get_args(ProceduralSplit):
            raise ConfigError(
                f"ProceduralCamouflage: split is {split!r}; expected one of "
                f"{get_args(ProceduralSplit)}."
            )
        self.length, self.split, self.fresh = length, split, fresh

    def __len__(self) -> int:
        """Items in an epoch."""
        return self.length

    def id_of(self, index: int) -> str:
        """Split, seed, where images are fresh the epoch, and index."""
        epoch = f"-{self.epoch}" if self.fresh else ""
        return f"procedural-{self.split}-{self.seed}{epoch}-{index}"

    def original(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """See :meth:`CamouflageItems.original`; ``size`` x ``size``."""
        number = get_args(ProceduralSplit).index(self.split)
        epoch = self.epoch if self.fresh else 0
        random = np.random.default_rng([_TAG, number, self.seed, epoch, index])
        novel = self.split == "novel"
        return hidden_object(
            random,
            self.size,
            textures=HELD_OUT_TEXTURES if novel else TEXTURES,
            silhouettes=HELD_OUT_SILHOUETTES if novel else SILHOUETTES,
        )


def hidden_object(
    random: _Random,
    size: int,
    *,
    textures: tuple[str, ...] = TEXTURES,
    silhouettes: tuple[str, ...] = SILHOUETTES,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image, S S 3 RGB bytes, and its mask, S S bytes 0 or 1; the object covers 5 to 28 %.

    Half of the images have a decoy: a patch with a seam of the kind an object has, cut out of
    another draw of the ground itself.

    Args:
        random: where every choice comes from.
        size: side in pixels.
        textures: the texture families to draw from.
        silhouettes: the outline families to draw from.

    >>> image, mask = hidden_object(np.random.default_rng(0), 64)
    >>> image.shape, mask.shape, bool(0.05 <= mask.mean() <= 0.28)
    ((64, 64, 3), (64, 64), True)
    """
    ground = Process.draw(random, str(random.choice(textures)), size)
    mask = silhouette(random, str(random.choice(silhouettes)), size, _AREA)
    surface = texture(random, ground, size)
    if random.uniform() < 0.5:
        decoy = silhouette(random, str(random.choice(silhouettes)), size, (0.04, 0.2))
        surface = _laid(random, surface, texture(random, ground, size), decoy & ~mask)
    inner = texture(random, ground.changed(random), size)
    # The same mean and contrast inside as outside: no pixel by itself gives the object away.
    inner = (inner - inner[mask].mean()) / max(float(inner[mask].std()), 1e-9)
    surface = (surface - surface[~mask].mean()) / max(float(surface[~mask].std()), 1e-9)
    surface = _laid(random, surface, inner, mask)
    return _painted(random, surface), mask.astype(np.uint8)


def _laid(random: _Random, under: Field, over: Field, where: NDArray[np.bool_]) -> Field:
    """One texture on another, blended over a pixel, with a light or dark rim or none."""
    soft = smooth(where.astype(np.float64), random.uniform(0.6, 1.2))
    rim = 4 * soft * (1 - soft) * random.uniform(-0.5, 0.5)
    return soft * over + (1 - soft) * under + rim


def _painted(random: _Random, surface: Field) -> NDArray[np.uint8]:
    """A texture in two colours, unevenly lit, tinted by clouds, grainy."""
    size = len(surface)
    middle, contrast = random.uniform(70, 185, 3), random.uniform(18, 34)
    direction = random.normal(1, 0.35, 3)
    turn = random.uniform(0, 2 * math.pi)
    axis = np.linspace(-1, 1, size)
    ramp = math.cos(turn) * axis + math.sin(turn) * axis[:, None]
    light = random.uniform(0, 14) * ramp
    tint = random.uniform(0, 8) * clouds(random, size)[..., None] * random.normal(0, 1, 3)
    picture = middle + contrast * np.tanh(surface / 2)[..., None] * direction
    picture += light[..., None] + tint
    picture += 4 * random.standard_normal((size, size, 3), dtype=np.float32)
    return np.clip(picture, 0, 255).round().astype(np.uint8)
