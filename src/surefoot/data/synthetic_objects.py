"""Procedural objects: one RGBA sprite per seed, a shape family times a pattern times colours."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from surefoot.errors import ConfigError

__all__ = ["HELD_OUT_SHAPES", "SHAPES", "SPRITE_SIZE", "Sprite", "make_sprite"]

SPRITE_SIZE = 96
"""Side of a sprite in pixels, at the finest level of its pyramid."""
_CANVAS = 2 * SPRITE_SIZE
_REACH = 0.94
_TAG = 0x0B1EC7

_Points = NDArray[np.float64]
_Random = np.random.Generator


class _Pen:
    """Draws in coordinates from -1 to 1 on a mask of twice the sprite's side."""

    def __init__(self) -> None:
        self.mask = Image.new("L", (_CANVAS, _CANVAS))
        self._draw = ImageDraw.Draw(self.mask)

    def polygon(self, points: _Points | Sequence[tuple[float, float]]) -> None:
        self._draw.polygon([self._pixel(x, y) for x, y in points], fill=255)

    def rectangle(self, x1: float, y1: float, x2: float, y2: float, radius: float = 0.0) -> None:
        corners = [self._pixel(x1, y1), self._pixel(x2, y2)]
        self._draw.rounded_rectangle(corners, radius * _REACH * SPRITE_SIZE, fill=255)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: int = 255) -> None:
        corners = [self._pixel(x - rx, y - ry), self._pixel(x + rx, y + ry)]
        self._draw.ellipse(corners, fill=fill)

    @staticmethod
    def _pixel(x: float, y: float) -> tuple[float, float]:
        return (SPRITE_SIZE * (1 + _REACH * x), SPRITE_SIZE * (1 + _REACH * y))


def _ellipse(pen: _Pen, random: _Random) -> None:
    pen.ellipse(0, 0, 1, random.uniform(0.5, 1.0))


def _rectangle(pen: _Pen, random: _Random) -> None:
    half = random.uniform(0.4, 0.85)
    pen.rectangle(-0.9, -half, 0.9, half)


def _polygon(pen: _Pen, random: _Random) -> None:
    corners = int(random.integers(5, 9))
    angles = (np.arange(corners) + random.uniform(-0.3, 0.3, corners)) * (2 * math.pi / corners)
    radii = random.uniform(0.55, 1.0, corners)
    pen.polygon(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1))


def _cross(pen: _Pen, random: _Random) -> None:
    arm, other = random.uniform(0.22, 0.45, 2)
    pen.rectangle(-1, -arm, 1, arm)
    pen.rectangle(-other, -1, other, 1)


def _ring(pen: _Pen, random: _Random) -> None:
    hole = random.uniform(0.4, 0.62)
    pen.ellipse(0, 0, 1, 1)
    pen.ellipse(0, 0, hole, hole, fill=0)


def _dumbbell(pen: _Pen, random: _Random) -> None:
    left, right = random.uniform(0.32, 0.5, 2)
    bar = random.uniform(0.12, 0.24)
    pen.ellipse(left - 1, 0, left, left)
    pen.ellipse(1 - right, 0, right, right)
    pen.rectangle(left - 1, -bar, 1 - right, bar)


def _ell(pen: _Pen, random: _Random) -> None:
    upright, foot = random.uniform(0.45, 0.85, 2)
    pen.rectangle(-0.9, -0.9, upright - 0.9, 0.9)
    pen.rectangle(-0.9, 0.9 - foot, 0.9, 0.9)


def _capsule(pen: _Pen, random: _Random) -> None:
    half = random.uniform(0.32, 0.6)
    pen.rectangle(-1, -half, 1, half, radius=half)


def _star(pen: _Pen, random: _Random) -> None:
    points = int(random.integers(4, 7))
    angles = np.arange(2 * points) * (math.pi / points)
    radii = np.where(np.arange(2 * points) % 2 == 0, 1.0, random.uniform(0.4, 0.6))
    pen.polygon(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1))


def _arrow(pen: _Pen, random: _Random) -> None:
    shaft, neck = random.uniform(0.2, 0.4), random.uniform(-0.2, 0.3)
    pen.rectangle(-1, -shaft, neck, shaft)
    pen.polygon([(neck, -0.85), (1.0, 0.0), (neck, 0.85)])


def _aitch(pen: _Pen, random: _Random) -> None:
    post, bar = random.uniform(0.35, 0.55), random.uniform(0.15, 0.3)
    pen.rectangle(-0.9, -0.9, post - 0.9, 0.9)
    pen.rectangle(0.9 - post, -0.9, 0.9, 0.9)
    pen.rectangle(-0.9, -bar, 0.9, bar)


_FAMILIES: dict[str, Callable[[_Pen, _Random], None]] = {
    "ellipse": _ellipse,
    "rectangle": _rectangle,
    "polygon": _polygon,
    "cross": _cross,
    "ring": _ring,
    "dumbbell": _dumbbell,
    "ell": _ell,
    "capsule": _capsule,
    "star": _star,
    "arrow": _arrow,
    "aitch": _aitch,
}
HELD_OUT_SHAPES = ("star", "arrow", "aitch")
"""Shape families kept out of training, for tests on shapes never seen."""
SHAPES = tuple(name for name in _FAMILIES if name not in HELD_OUT_SHAPES)
"""The shape families objects are made of."""

_AXIS = (np.arange(SPRITE_SIZE) + 0.5) * (2 / SPRITE_SIZE) - 1
_X, _Y = np.meshgrid(_AXIS, _AXIS)


def _stripes(random: _Random) -> NDArray[np.bool_]:
    angle, period = random.uniform(0, math.pi), random.uniform(0.28, 0.6)
    along = _X * math.cos(angle) + _Y * math.sin(angle) + random.uniform(0, period)
    return along % period < period / 2


def _checker(random: _Random) -> NDArray[np.bool_]:
    angle, period = random.uniform(0, math.pi / 2), random.uniform(0.5, 0.9)
    u = _X * math.cos(angle) + _Y * math.sin(angle)
    v = _Y * math.cos(angle) - _X * math.sin(angle)
    return (u % period < period / 2) ^ (v % period < period / 2)


def _half(random: _Random) -> NDArray[np.bool_]:
    angle = random.uniform(0, 2 * math.pi)
    return _X * math.cos(angle) + _Y * math.sin(angle) > random.uniform(-0.2, 0.2)


def _disc(random: _Random) -> NDArray[np.bool_]:
    x, y = random.uniform(-0.2, 0.2, 2)
    return np.hypot(_X - x, _Y - y) < random.uniform(0.3, 0.55)


def _dots(random: _Random) -> NDArray[np.bool_]:
    period = random.uniform(0.4, 0.65)
    u, v = (_X + random.uniform(0, 1)) % period, (_Y + random.uniform(0, 1)) % period
    return np.hypot(u - period / 2, v - period / 2) < period * 0.3


def _plain(random: _Random) -> NDArray[np.bool_]:
    return np.zeros((SPRITE_SIZE, SPRITE_SIZE), dtype=bool)


_PATTERNS = (_stripes, _checker, _half, _disc, _dots, _plain)


def _colours(random: _Random) -> NDArray[np.float64]:
    """Three colours, rows of RGB in 0-255; the second is never close to the first."""
    hue, saturation, value = random.uniform(0, 1), random.uniform(0.35, 1), random.uniform(0.4, 1)
    other = (hue + random.uniform(0.2, 0.8)) % 1, random.uniform(0.1, 1), random.uniform(0.2, 1)
    third = random.uniform(0, 1), random.uniform(0.2, 1), random.uniform(0.2, 1)
    rows = [(hue, saturation, value), other, third]
    return np.array([colorsys.hsv_to_rgb(*row) for row in rows]) * 255


def _paint(random: _Random) -> NDArray[np.float64]:
    """The surface of an object, H W 3 in 0-255, before it is cut to its shape."""
    colours = _colours(random)
    pattern = _PATTERNS[int(random.integers(len(_PATTERNS)))](random)
    surface = colours[pattern.astype(np.intp)]
    for _ in range(int(random.integers(0, 3))):
        x, y = random.uniform(-0.6, 0.6, 2)
        rx, ry = random.uniform(0.12, 0.3, 2)
        surface[(np.abs(_X - x) < rx) & (np.abs(_Y - y) < ry)] = colours[2]
    return surface


@dataclass(frozen=True)
class Sprite:
    """One object: its picture with premultiplied alpha, at falling sizes for clean down-scaling."""

    levels: tuple[Image.Image, ...]
    """Images of mode RGBa; each has half the side of the one before."""

    @property
    def nbytes(self) -> int:
        """Bytes of all levels."""
        return sum(4 * level.width * level.height for level in self.levels)

    def level(self, side: float) -> Image.Image:
        """The smallest level that need not be enlarged to be ``side`` pixels wide."""
        return next((im for im in reversed(self.levels) if im.width >= side), self.levels[0])


def make_sprite(seed: int, families: Sequence[str] = SHAPES) -> Sprite:
    """The object of a seed; a pure function of its arguments.

    A shape family, one of six patterns (stripes, checker, half, disc, dots, plain), three colours,
    up to two patches and a dark rim.

    Args:
        seed: which object, 0 or more.
        families: the shape families to draw from, names in ``SHAPES`` or ``HELD_OUT_SHAPES``.

    Raises:
        ConfigError: ``families`` is empty or names one that does not exist.

    >>> [level.size for level in make_sprite(7).levels]
    [(96, 96), (48, 48), (24, 24), (12, 12)]
    """
    unknown = sorted(set(families) - set(_FAMILIES))
    if unknown or not families:
        raise ConfigError(
            f"Drawing object {seed}: families are {tuple(families)}; expected one or more of "
            f"{tuple(_FAMILIES)}."
        )
    random = np.random.default_rng([_TAG, seed])
    pen = _Pen()
    _FAMILIES[families[int(random.integers(len(families)))]](pen, random)
    mask = pen.mask.reduce(2)
    inner = mask.filter(ImageFilter.MinFilter(5))
    rim = np.asarray(ImageChops.subtract(mask, inner), dtype=np.float64)[..., None] / 255
    surface = _paint(random) * (1 - 0.55 * rim)
    picture = Image.fromarray(surface.round().astype(np.uint8)).convert("RGBA")
    picture.putalpha(mask)
    level = picture.convert("RGBa")
    return Sprite((level, level.reduce(2), level.reduce(4), level.reduce(8)))
