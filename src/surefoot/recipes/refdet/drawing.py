"""Boxes on a picture, as a person wants to see them: an outline, a name, a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from surefoot.recipes.refdet.finder import Sightings

__all__ = ["COLORS", "draw_sightings"]

COLORS = ("#ffb224", "#2fd6b5", "#7c9cff", "#ff7ab6", "#b4e051", "#ff8a5c", "#5cc8ff", "#d79bff")
"""One for each object; of more than eight they come again."""
_INK, _EDGE, _PAD = "#0f1318", "#000000", 3

Rectangle: TypeAlias = tuple[float, float, float, float]


def draw_sightings(
    picture: NDArray[np.uint8], found: Sightings, names: Sequence[str]
) -> NDArray[np.uint8]:
    """A copy of a picture with the boxes on it.

    Args:
        picture: H W 3, RGB bytes; lines and letters grow with it.
        found: boxes in its pixels.
        names: of the objects; of a single one only the score is written.
    """
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    line = max(2, round(min(image.size) / 200))
    font = ImageFont.load_default(max(12, round(min(image.size) / 30)))
    order = np.argsort(found.scores, kind="stable").tolist()  # the surest on top
    for row in order:
        _outline(draw, found.boxes[row].tolist(), _color(found, row), line)
    taken: list[Rectangle] = []
    for row in reversed(order):
        number, score = int(found.objects[row]), float(found.scores[row])
        text = f"{names[number]} {score:.2f}" if len(names) > 1 else f"{score:.2f}"
        room = _room(draw, found.boxes[row].tolist(), draw.textbbox((0, 0), text, font), taken)
        taken.append(room)
        draw.rectangle(room, fill=_color(found, row))
        draw.text((room[0] + _PAD, room[1] + _PAD), text, font=font, fill=_INK, anchor="lt")
    return np.asarray(image)


def _color(found: Sightings, row: int) -> str:
    return COLORS[int(found.objects[row]) % len(COLORS)]


def _outline(draw: ImageDraw.ImageDraw, box: Sequence[float], color: str, line: int) -> None:
    """Around the box, not over what is in it."""
    for more, width, ink in ((line + 1, 1, _EDGE), (line, line, color)):
        x1, y1, x2, y2 = box
        draw.rectangle((x1 - more, y1 - more, x2 + more, y2 + more), outline=ink, width=width)


def _room(
    draw: ImageDraw.ImageDraw,
    box: Sequence[float],
    text: Sequence[float],
    taken: Sequence[Rectangle],
) -> Rectangle:
    """For a tag: above the box, or below it, clear of the tags that are there, in the picture."""
    width, height = text[2] - text[0] + 2 * _PAD, text[3] - text[1] + 2 * _PAD
    wide, high = draw.im.size
    x = min(max(box[0] - _PAD, 0), max(wide - width, 0))
    above, below = box[1] - height - 2 * _PAD, box[3] + 2 * _PAD
    tries = [above - i * (height + 1) for i in range(4)] + [
        below + i * (height + 1) for i in range(4)
    ]
    rooms = [(x, y, x + width, y + height) for y in tries if 0 <= y <= high - height]
    clear = [room for room in rooms if not any(_meet(room, other) for other in taken)]
    y = min(max(above, 0), max(high - height, 0))
    return (clear or rooms or [(x, y, x + width, y + height)])[0]


def _meet(a: Rectangle, b: Rectangle) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]
