"""Four labelled pictures in one: more objects, smaller ones, and other surroundings for each.

Bochkovskiy et al. 2020, "YOLOv4", arXiv:2004.10934, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from surefoot.data.transforms import FILL
from surefoot.errors import UsageError

__all__ = ["LabelledPicture", "mosaic"]

_MIDDLE = (0.35, 0.65)


@dataclass(frozen=True)
class LabelledPicture:
    """A picture in memory and its boxes."""

    picture: NDArray[np.uint8]
    """H W 3, RGB bytes."""
    boxes: NDArray[np.float32]
    """M 4, x1 y1 x2 y2 in pixels."""
    labels: NDArray[np.int64]
    """M."""
    left: NDArray[np.float32]
    """M, in [0, 1]: the share of each box's area that is left of it."""


def mosaic(
    tiles: Sequence[LabelledPicture],
    size: int,
    random: np.random.Generator,
    scale: tuple[float, float] = (0.5, 1.0),
) -> LabelledPicture:
    """A square with one picture in each corner; all four meet at a point near its middle.

    Args:
        tiles: four pictures: top left, top right, bottom left, bottom right.
        size: side of the square in pixels.
        random: where every choice comes from.
        scale: smallest and largest factor of a picture's sides.

    Returns:
        The square; its boxes are cut where a picture is, and every one is there, also those of
        which nothing is left.

    Raises:
        UsageError: there are not four.
    """
    if len(tiles) != 4:
        raise UsageError(f"mosaic: {len(tiles)} pictures; expected four, one for each corner.")
    meet = (size * random.uniform(*_MIDDLE, 2)).round().astype(int)
    canvas = np.full((size, size, 3), FILL, dtype=np.uint8)
    drawn: list[LabelledPicture] = []
    for corner, tile in enumerate(tiles):
        small = _resized(tile, float(random.uniform(*scale)))
        side = np.array([corner % 2, corner // 2])
        low, high = np.where(side, meet, 0), np.where(side, size, meet)
        drawn.append(_draw(canvas, small, low, high, side))
    return LabelledPicture(
        canvas,
        np.concatenate([one.boxes for one in drawn]),
        np.concatenate([one.labels for one in drawn]),
        np.concatenate([one.left for one in drawn]),
    )


def _resized(tile: LabelledPicture, factor: float) -> LabelledPicture:
    height, width = tile.picture.shape[:2]
    wide, high = max(1, round(width * factor)), max(1, round(height * factor))
    picture = Image.fromarray(tile.picture).resize((wide, high), Image.Resampling.BILINEAR)
    grown = np.array([wide / width, high / height] * 2, dtype=np.float32)
    return LabelledPicture(np.asarray(picture), tile.boxes * grown, tile.labels, tile.left)


def _draw(
    canvas: NDArray[np.uint8],
    tile: LabelledPicture,
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    side: NDArray[np.int64],
) -> LabelledPicture:
    """Puts a picture into the window from ``low`` to ``high``, touching the point that all meet at;
    its boxes, in pixels of the canvas.
    """
    extent = np.array(tile.picture.shape[1::-1])
    origin = np.where(side, low, high - extent)
    low, high = np.maximum(low, origin), np.minimum(high, origin + extent)
    (x, y), (right, below), (ox, oy) = low.tolist(), high.tolist(), origin.tolist()
    canvas[y:below, x:right] = tile.picture[y - oy : below - oy, x - ox : right - ox]
    moved = tile.boxes + np.tile(origin, 2)
    cut = moved.clip(np.tile(low, 2), np.tile(high, 2))
    area, shown = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (moved, cut))
    left = tile.left * shown / np.maximum(area, 1e-6)
    return LabelledPicture(canvas, cut.astype(np.float32), tile.labels, left.astype(np.float32))
