"""Masks as a person wants to see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

__all__ = ["SheetRow", "draw_sheet", "overlay", "side_by_side"]

Picture = NDArray[np.uint8]
Chances = NDArray[np.float32]

PAPER, INK, FAINT = "#0f1318", "#eef1f4", "#8d97a3"
_FOUND = np.array([255, 178, 36])
_TRUTH = "#2fd6b5"
_TILE, _GAP, _MARGIN, _CAPTION, _HEADER = 200, 10, 32, 26, 92


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """One image of a sheet."""

    picture: Picture
    """H W 3."""
    truth: NDArray[np.uint8]
    """H W, 0 or 1."""
    probability: Chances
    """H W, 0 to 1."""
    caption: str


def overlay(picture: Picture, probability: Chances, *, share: float = 0.55) -> Picture:
    """The picture, amber where the object is, and its outline at probability 0.5.

    >>> seen = overlay(np.zeros((2, 2, 3), np.uint8), np.ones((2, 2), np.float32))
    >>> seen[0, 0].tolist()
    [140, 97, 19]
    """
    weight = share * probability[..., None]
    mixed = picture * (1 - weight) + _FOUND * weight
    line = _outline(probability > 0.5)
    mixed[line] = _FOUND
    return mixed.astype(np.uint8)


def _outline(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of the object that touch what is none."""
    image = Image.fromarray(inside.astype(np.uint8) * 255)
    eroded = np.asarray(image.filter(ImageFilter.MinFilter(3))) > 0
    return inside & ~eroded


def side_by_side(picture: Picture, probability: Chances) -> Picture:
    """The picture, its mask, and both, in a row."""
    grey = np.repeat((probability * 255).round().astype(np.uint8)[..., None], 3, axis=2)
    return np.concatenate([picture, grey, overlay(picture, probability)], axis=1)


def draw_sheet(rows: Sequence[SheetRow], path: Path, *, title: str, subtitle: str) -> None:
    """Write a PNG file: for each image what was seen, the truth, the mask, and both.

    Args:
        rows: images in the order they are shown, two to a line.
        path: the file.
        title: the first line.
        subtitle: the second.
    """
    columns = 2 if len(rows) > 1 else 1
    lines = -(-len(rows) // columns)
    block = 4 * _TILE + 3 * _GAP
    width = 2 * _MARGIN + columns * block + (columns - 1) * 3 * _GAP
    height = _HEADER + lines * (_TILE + _CAPTION + _GAP) + _MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 20), title, INK, font=_font(24))
    draw.text((_MARGIN, 54), subtitle, FAINT, font=_font(14))
    for number, row in enumerate(rows):
        line, column = divmod(number, columns)
        left = _MARGIN + column * (block + 3 * _GAP)
        top = _HEADER + line * (_TILE + _CAPTION + _GAP)
        for place, tile in enumerate(_tiles(row)):
            sheet.paste(tile, (left + place * (_TILE + _GAP), top))
        draw.text((left, top + _TILE + 4), row.caption, FAINT, font=_font(13))
    sheet.save(path, optimize=True)


def _tiles(row: SheetRow) -> list[Image.Image]:
    seen = Image.fromarray(row.picture)
    truth = Image.fromarray(row.truth * np.uint8(255)).convert("RGB")
    mask = Image.fromarray((row.probability * 255).round().astype(np.uint8)).convert("RGB")
    both = overlay(row.picture, row.probability)
    both[_outline(row.truth > 0)] = tuple(int(_TRUTH[i : i + 2], 16) for i in (1, 3, 5))
    return [_fit(one) for one in (seen, truth, mask, Image.fromarray(both))]


def _fit(image: Image.Image) -> Image.Image:
    """In a square tile, whole, on the paper."""
    scale = _TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    tile = Image.new("RGB", (_TILE, _TILE), PAPER)
    small = image.resize(size, Image.Resampling.LANCZOS)
    tile.paste(small, ((_TILE - size[0]) // 2, (_TILE - size[1]) // 2))
    return tile


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
