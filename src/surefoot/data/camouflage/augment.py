"""Geometry that moves image and mask together, and colour that changes the image alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from surefoot.errors import ConfigError

__all__ = ["Augment", "augment_pair", "resize_pair"]

_HALF = 128


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How far a training pair may be changed; the defaults are mild."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    vertical_flip: float = 0.2
    """Probability of a vertical flip."""
    scale: tuple[float, float] = (0.75, 1.25)
    """Smallest and largest zoom; what lies outside the image is the image mirrored, and so is the
    mask."""
    rotate: float = 15.0
    """Largest turn either way, in degrees, at most 45."""
    brightness: float = 0.2
    """Largest relative change."""
    contrast: float = 0.2
    """Largest relative change."""
    saturation: float = 0.2
    """Largest relative change."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"Augment.scale is {self.scale}; expected 0 < smallest <= largest.")
        if not 0 <= self.rotate <= 45:
            raise ConfigError(f"Augment.rotate is {self.rotate}; expected 0 to 45 degrees.")
        for name in ("flip", "vertical_flip", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"Augment.{name} is {getattr(self, name)}; expected 0 to 1.")


def augment_pair(
    image: Tensor, mask: Tensor, *, size: int, random: np.random.Generator, how: Augment
) -> tuple[Tensor, Tensor]:
    """A changed copy of an image and its mask, ``size`` x ``size``.

    A window of random size and place is cut out, brought to the square, turned and flipped; both
    sides are scaled alike, to ``size``, as they are where nothing is changed.

    Args:
        image: 3 H W, bytes.
        mask: H W, bytes, 0 or 1.
        size: side in pixels.
        random: where every choice comes from; torch's global generator is not touched.
        how: the ranges.

    Returns:
        Image 3 S S and mask S S, bytes; the mask still holds 0 and 1 alone.
    """
    angle = float(random.uniform(-how.rotate, how.rotate))
    zoom = math.exp(random.uniform(*np.log(how.scale)))
    place = random.uniform(size=2)
    flips = random.uniform(size=2) < (how.flip, how.vertical_flip)
    colours = 1 + random.uniform(-1, 1, 3) * (how.brightness, how.contrast, how.saturation)
    # Room around the square, so that its turned corners find pixels.
    turned = math.radians(abs(angle))
    margin = math.ceil(size * (math.cos(turned) + math.sin(turned) - 1) / 2)
    outer = size + 2 * margin
    rows = _window(image.shape[-2], zoom, float(place[0]), outer / size)
    columns = _window(image.shape[-1], zoom, float(place[1]), outer / size)
    image, mask = resize_pair(_cut(image, rows, columns), _cut(mask, rows, columns), outer)
    pair: tuple[Tensor, Tensor] = (tv_tensors.Image(image), tv_tensors.Mask(mask))
    if margin:
        bilinear = F.InterpolationMode.BILINEAR  # the mask is dispatched to nearest all the same
        turn = [F.rotate(one, angle, interpolation=bilinear) for one in pair]
        pair = (F.center_crop(turn[0], [size, size]), F.center_crop(turn[1], [size, size]))
    for wanted, flip in zip(flips, (F.horizontal_flip, F.vertical_flip), strict=True):
        if wanted:
            pair = (flip(pair[0]), flip(pair[1]))
    image, mask = (one.as_subclass(Tensor) for one in pair)
    for change, factor in zip(_COLOURS, colours.tolist(), strict=True):
        image = change(image, factor)
    return image, mask


_COLOURS = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)


def resize_pair(image: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Image 3 H W and mask H W, bytes, brought to ``size`` x ``size``, each pixel to its place.

    The mask is averaged and cut at a half: picking the nearest pixel, as torchvision does for
    masks, takes the top left one of each block, and shifts the mask against the averaged image.
    """
    image = F.resize(image, [size, size], antialias=True)
    soft = F.resize(mask[None] * 255, [size, size], antialias=True)[0]
    return image, (soft >= _HALF).to(torch.uint8)


def _window(length: int, zoom: float, place: float, room: float) -> Tensor:
    """Which pixels of an axis the window shows; those outside it are mirrored."""
    inner = length / zoom
    start = place * (length - inner) - inner * (room - 1) / 2
    count = max(1, round(inner * room))
    period = max(2 * (length - 1), 1)
    folded = (torch.arange(count) + round(start)).remainder(period)
    return torch.minimum(folded, period - folded).clamp_(max=length - 1)


def _cut(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return values.index_select(-2, rows).index_select(-1, columns)
