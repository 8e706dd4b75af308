"""Detections as a person wants to see them: frames beside the reference photos.

A row per video: its references, then frames with the true box, the predicted box and its score, and
a word where the two disagree about the object being there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["SheetFrame", "SheetRow", "draw_contact_sheet", "spread"]

PAPER, CARD, INK, FAINT = "#0f1318", "#1a2028", "#eef1f4", "#8d97a3"
TRUTH, PREDICTION, ALARM = "#2fd6b5", "#ffb224", "#ff5d5d"
_MARGIN, _GAP, _CAPTION, _STRIP, _HEADER = 36, 10, 34, 22, 104
_TILE_AREA = 248 * 248

Color = str
Box = NDArray[np.float64]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, kw_only=True)
class SheetFrame:
    """One frame and what was said of it; boxes are x1 y1 x2 y2 in the frame's pixels."""

    image: NDArray[np.uint8]
    """H W 3, RGB."""
    index: int
    truth: NDArray[np.float64]
    """n 4; n = 0 where the object is not there."""
    box: NDArray[np.float64] | None
    """4; None where nothing was said."""
    score: float
    iou: float
    """Overlap of the two; 0 where one is missing."""


@dataclass(frozen=True, kw_only=True)
class SheetRow:
    """A video."""

    title: str
    note: str
    references: Sequence[NDArray[np.uint8]]
    """Photos, H W 3 RGB."""
    frames: Sequence[SheetFrame]


def spread(visible: Sequence[int], empty: Sequence[int], count: int) -> list[int]:
    """``count`` frame numbers in order: mostly with the object, about every fourth without it.

    >>> spread(range(100), range(100, 200), 4)
    [16, 50, 83, 150]
    >>> spread(range(3), [], 5)
    [0, 1, 2]
    """
    without = min(len(empty), max(count // 4, count - len(visible)))
    return sorted(_evenly(visible, count - without) + _evenly(empty, without))


def _evenly(numbers: Sequence[int], count: int) -> list[int]:
    count = min(count, len(numbers))
    places = (np.arange(count) + 0.5) * len(numbers) / max(count, 1)
    return [numbers[int(place)] for place in places]


def draw_contact_sheet(rows: Sequence[SheetRow], path: Path, *, title: str, subtitle: str) -> None:
    """Write the sheet as a PNG file.

    Args:
        rows: videos, in the order they are shown.
        path: the file to write.
        title: first line.
        subtitle: second line: what was measured.
    """
    sizes = [_tile_size(row) for row in rows]
    widths = [
        _photo_side(size) + 2 * _GAP + len(row.frames) * (size[0] + _GAP)
        for row, size in zip(rows, sizes, strict=True)
    ]
    width = max(max(widths, default=0) + 2 * _MARGIN, 720)
    height = _HEADER + sum(_row_height(size) for size in sizes) + _MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    _header(draw, width, title, subtitle)
    top = _HEADER
    for row, size in zip(rows, sizes, strict=True):
        _row(sheet, draw, row, size, top)
        top += _row_height(size)
    sheet.save(path)


def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def _tile_size(row: SheetRow) -> tuple[int, int]:
    height, width = row.frames[0].image.shape[:2]
    side = math.sqrt(_TILE_AREA * width / height)
    return round(side), round(side * height / width)


def _row_height(size: tuple[int, int]) -> int:
    return _CAPTION + size[1] + _STRIP + 2 * _GAP


def _photo_side(size: tuple[int, int]) -> int:
    return (size[1] + _STRIP - 2 * _GAP) // 3


def _header(draw: ImageDraw.ImageDraw, width: int, title: str, subtitle: str) -> None:
    draw.text((_MARGIN, 26), title, font=_font(28), fill=INK)
    draw.text((_MARGIN, 66), subtitle, font=_font(16), fill=FAINT)
    x = width - _MARGIN
    for label, color in (("prediction and score", PREDICTION), ("truth", TRUTH)):
        x -= round(draw.textlength(label, font=_font(16)))
        draw.text((x, 34), label, font=_font(16), fill=INK)
        x -= 28
        draw.rounded_rectangle((x, 36, x + 18, 50), 3, outline=color, width=3)
        x -= 24


def _row(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    row: SheetRow,
    size: tuple[int, int],
    top: int,
) -> None:
    draw.text((_MARGIN, top + 6), row.title, font=_font(17), fill=INK)
    after = _MARGIN + draw.textlength(row.title, font=_font(17)) + 14
    draw.text((after, top + 7), row.note, font=_font(15), fill=FAINT)
    top += _CAPTION
    side = _photo_side(size)
    for place, photo in enumerate(row.references[:3]):
        _paste(sheet, _square(photo, side), (_MARGIN, top + place * (side + _GAP)))
    for place, frame in enumerate(row.frames):
        x = _MARGIN + side + 2 * _GAP + place * (size[0] + _GAP)
        _paste(sheet, _tile(frame, size), (x, top))


def _paste(sheet: Image.Image, picture: Image.Image, at: tuple[int, int]) -> None:
    """With rounded corners."""
    mask = Image.new("L", (picture.width * 4, picture.height * 4), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), 28, fill=255)
    sheet.paste(picture, at, mask.resize(picture.size, Image.Resampling.LANCZOS))


def _square(photo: NDArray[np.uint8], side: int) -> Image.Image:
    image = Image.fromarray(photo)
    scale = side / max(image.size)
    inner = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    square = Image.new("RGB", (side, side), CARD)
    resized = image.resize(inner, Image.Resampling.LANCZOS)
    square.paste(resized, ((side - inner[0]) // 2, (side - inner[1]) // 2))
    return square


def _tile(frame: SheetFrame, size: tuple[int, int]) -> Image.Image:
    image = Image.fromarray(frame.image).resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(image)
    scale = size[0] / frame.image.shape[1]
    for box in frame.truth:
        _outline(draw, box * scale, TRUTH)
    if frame.box is not None:
        box = frame.box * scale
        _outline(draw, box, PREDICTION if len(frame.truth) else ALARM)
        _score_tag(draw, box, frame, size)
    tile = Image.new("RGB", (size[0], size[1] + _STRIP), CARD)
    tile.paste(image)
    _conclusion(ImageDraw.Draw(tile), frame, size)
    return tile


def _outline(draw: ImageDraw.ImageDraw, box: Box, color: Color) -> None:
    x1, y1, x2, y2 = box.tolist()
    draw.rectangle((x1 - 2, y1 - 2, x2 + 2, y2 + 2), outline="#000000", width=1)
    draw.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=color, width=2)


def _score_tag(
    draw: ImageDraw.ImageDraw, box: Box, frame: SheetFrame, size: tuple[int, int]
) -> None:
    text, font = f"{frame.score:.2f}", _font(13)
    width = draw.textlength(text, font=font) + 8
    x = min(max(box[0] - 2, 0), size[0] - width)
    y = box[1] - 19 if box[1] >= 19 else min(box[3] + 3, size[1] - 17)
    color = PREDICTION if len(frame.truth) else ALARM
    draw.rectangle((x, y, x + width, y + 16), fill=color)
    draw.text((x + 4, y), text, font=font, fill=PAPER)


def _conclusion(draw: ImageDraw.ImageDraw, frame: SheetFrame, size: tuple[int, int]) -> None:
    """The frame's number and, below the picture, what a person should conclude from it."""
    if len(frame.truth) and frame.box is not None:
        text, color = f"IoU {frame.iou:.2f}", INK if frame.iou >= 0.5 else ALARM
    elif len(frame.truth):
        text, color = "missed", ALARM
    elif frame.box is not None:
        text, color = "false alarm", ALARM
    else:
        text, color = "absent, silent", TRUTH
    font, top = _font(13), size[1] + 3
    draw.text((9, top), f"frame {frame.index}", font=font, fill=FAINT)
    draw.text((size[0] - 9 - draw.textlength(text, font=font), top), text, font=font, fill=color)
