"""Geometry and colour, applied to a picture and its boxes together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from surefoot.errors import ConfigError

__all__ = ["FILL", "Augmentation", "Letterbox", "augment", "letterbox"]

FILL = 114
"""Grey of what lies outside a picture, 0-255."""

Boxes = TypeVar("Boxes", NDArray[np.float64], NDArray[np.float32], Tensor)


@dataclass(frozen=True)
class Letterbox:
    """Where a picture lies in its square: ``x' = x * scale + pad_x``, and the same for y.

    >>> lb = Letterbox(scale=0.5, pad_x=0, pad_y=10)
    >>> lb.apply(np.array([[10.0, 20.0, 30.0, 40.0]])).tolist()
    [[5.0, 20.0, 15.0, 30.0]]
    >>> lb.invert(lb.apply(np.array([[10.0, 20.0, 30.0, 40.0]]))).tolist()
    [[10.0, 20.0, 30.0, 40.0]]
    """

    scale: float
    pad_x: int
    pad_y: int

    def apply(self, boxes: Boxes) -> Boxes:
        """Boxes of the picture, ``... 4`` floats x1 y1 x2 y2, as boxes of the square."""
        return boxes * self.scale + _pads(self, boxes)

    def invert(self, boxes: Boxes) -> Boxes:
        """Boxes of the square as boxes of the picture: undoes :meth:`apply`."""
        return (boxes - _pads(self, boxes)) / self.scale


def _pads(place: Letterbox, boxes: Tensor | NDArray[Any]) -> Any:
    pads = [place.pad_x, place.pad_y, place.pad_x, place.pad_y]
    if isinstance(boxes, Tensor):
        return boxes.new_tensor(pads)
    return np.array(pads, dtype=boxes.dtype)


def letterbox(image: NDArray[np.uint8], size: int) -> tuple[NDArray[np.uint8], Letterbox]:
    """The whole picture in a square, its sides in proportion, grey around it.

    Both axes are scaled by exactly ``scale``: what would be a fraction of a pixel at the shorter
    side's far edge is cut off, not squeezed, so that boxes map back without error.

    Args:
        image: H W 3, RGB bytes.
        size: side of the square in pixels.

    Raises:
        ConfigError: ``size`` is below 1.

    >>> square, lb = letterbox(np.zeros((360, 640, 3), dtype=np.uint8), 320)
    >>> square.shape, lb
    ((320, 320, 3), Letterbox(scale=0.5, pad_x=0, pad_y=70))
    """
    if size < 1:
        raise ConfigError(f"letterbox: size is {size}; it is a side in pixels, at least 1.")
    height, width = image.shape[:2]
    scale = size / max(height, width)
    # The small number keeps w * (size / w) from falling to size - 1 by rounding.
    inner = max(1, int(width * scale + 1e-6)), max(1, int(height * scale + 1e-6))
    region = 0.0, 0.0, min(inner[0] / scale, width), min(inner[1] / scale, height)
    resized = Image.fromarray(image).resize(inner, Image.Resampling.BILINEAR, box=region)
    place = Letterbox(scale, (size - inner[0]) // 2, (size - inner[1]) // 2)
    square = np.full((size, size, 3), FILL, dtype=np.uint8)
    square[place.pad_y : place.pad_y + inner[1], place.pad_x : place.pad_x + inner[0]] = np.asarray(
        resized
    )
    return square, place


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How far a training picture may be changed; the defaults are mild.

    There is no rotation: the upright hull of a turned box is no longer tight.
    """

    flip: float = 0.5
    """Probability of a horizontal flip."""
    scale: tuple[float, float] = (0.75, 1.3)
    """Smallest and largest zoom around the middle."""
    shift: float = 0.1
    """Largest shift along each axis, as a share of the side."""
    brightness: float = 0.25
    """Largest relative change."""
    contrast: float = 0.25
    """Largest relative change."""
    saturation: float = 0.3
    """Largest relative change."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(
                f"Augmentation.scale is {self.scale}; expected 0 < smallest <= largest."
            )
        for name in ("flip", "shift", "brightness", "contrast", "saturation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"Augmentation.{name} is {getattr(self, name)}; expected 0 to 1.")


def augment(
    image: NDArray[np.uint8],
    boxes: NDArray[np.float32],
    random: np.random.Generator,
    how: Augmentation,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """A changed copy of a picture and of its boxes; every choice comes from ``random``.

    Args:
        image: H W 3, RGB bytes.
        boxes: M 4, x1 y1 x2 y2 in pixels.
        random: where every choice comes from; torch's global generator is not touched.
        how: the ranges.

    Returns:
        The picture; the boxes, cut at its border (M 4, an empty one where nothing is left); and the
        share of each box's area that is left inside (M).
    """
    height, width = image.shape[:2]
    pair = _Pair(
        tv_tensors.Image(torch.from_numpy(np.moveaxis(image, -1, 0).copy())),
        tv_tensors.BoundingBoxes(  # pyright: ignore[reportCallIssue]
            torch.from_numpy(boxes.reshape(-1, 4).copy()),
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=(height, width),
        ),
    )
    if random.uniform() < how.flip:
        pair = pair.map(F.horizontal_flip)
    pair, growth = _zoom(pair, random, how)
    pair = pair.map(F.resize, size=[height, width], antialias=True)
    for change, reach in (
        (F.adjust_brightness, how.brightness),
        (F.adjust_contrast, how.contrast),
        (F.adjust_saturation, how.saturation),
    ):
        pair = _Pair(change(pair.image, random.uniform(1 - reach, 1 + reach)), pair.boxes)
    cut = pair.boxes.numpy().astype(np.float32)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) * growth
    left = (cut[:, 2:] - cut[:, :2]).prod(axis=1) / np.maximum(area, 1e-6)
    changed = np.moveaxis(pair.image.numpy(), 0, -1)
    return np.ascontiguousarray(changed), cut, np.clip(left, 0, 1).astype(np.float32)


@dataclass(frozen=True)
class _Pair:
    """A picture and its boxes, for what changes both."""

    image: Tensor
    boxes: Tensor

    def map(self, change: Callable[..., Tensor], **options: Any) -> _Pair:
        return _Pair(change(self.image, **options), change(self.boxes, **options))


def _zoom(pair: _Pair, random: np.random.Generator, how: Augmentation) -> tuple[_Pair, float]:
    """A window of the picture, grey where it reaches outside, and how much areas will grow.

    A crop and a resize: ten times as fast as the affine warp that would do the same.
    """
    height, width = pair.image.shape[-2:]
    zoom = float(np.exp(random.uniform(*np.log(how.scale))))
    shift = random.uniform(-how.shift, how.shift, 2) * [width, height]
    wide, high = max(1, round(width / zoom)), max(1, round(height / zoom))
    left = round((width - wide) / 2 + float(shift[0]))
    top = round((height - high) / 2 + float(shift[1]))
    pads = [max(-left, 0), max(-top, 0), max(left + wide - width, 0), max(top + high - height, 0)]
    pair = pair.map(F.pad, padding=pads, fill=FILL)
    window = {"top": top + pads[1], "left": left + pads[0], "height": high, "width": wide}
    return pair.map(F.crop, **window), (width / wide) * (height / high)
