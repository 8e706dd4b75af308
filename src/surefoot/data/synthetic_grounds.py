"""Procedural ground seen from the air: three colours mixed by noise, and the roads across it."""

from __future__ import annotations

import colorsys
import itertools
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["GROUND_SIZE", "make_ground"]

GROUND_SIZE = 512
"""Side of the ground that training scenes are cut from, in pixels."""
_TAG = 0x6204D

_Random = np.random.Generator

# Hue, saturation and value ranges of what lies under a drone.
_PALETTES = (
    ((0.20, 0.38), (0.20, 0.65), (0.25, 0.65)),  # grass and woods
    ((0.05, 0.12), (0.20, 0.55), (0.30, 0.75)),  # soil
    ((0.10, 0.15), (0.10, 0.40), (0.55, 0.95)),  # sand and dry grass
    ((0.00, 1.00), (0.00, 0.10), (0.30, 0.85)),  # asphalt and concrete
    ((0.48, 0.62), (0.25, 0.65), (0.25, 0.65)),  # water
)


def _palette(random: _Random) -> NDArray[np.float32]:
    """Three related colours, rows of RGB in 0-255."""
    ranges = _PALETTES[int(random.integers(len(_PALETTES)))]
    colours = [colorsys.hsv_to_rgb(*(random.uniform(*r) for r in ranges)) for _ in range(3)]
    return np.array(colours, dtype=np.float32) * 255


def _octaves(random: _Random, size: int, finest: int) -> NDArray[np.float32]:
    """Smooth noise of mean 0 and deviation 1: waves of ``finest`` pixels and all their doublings.

    Drawn from coarse to fine, each octave on the grid of its own wave, so that the whole costs
    little more than the last enlargement.
    """
    cells = [max(2, math.ceil(size / finest))]
    while cells[-1] > 3:
        cells.append(math.ceil(cells[-1] / 2))
    total = random.standard_normal((cells[-1], cells[-1]), dtype=np.float32)
    for side in reversed(cells[:-1]):
        total = 1.5 * _enlarge(total, side)
        total += random.standard_normal((side, side), dtype=np.float32)
    total = _enlarge(total, size)
    return (total - total.mean()) / total.std()


def _enlarge(values: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    picture = Image.fromarray(values.astype(np.float32, copy=False))
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))


def _roads(random: _Random, ground: Image.Image, count: int) -> Image.Image:
    """Roads with soft borders from edge to edge; wide ones may carry a broken line."""
    for _ in range(count):
        level, tint = random.uniform(70, 190), random.uniform(-8, 8, 3)
        colour = tuple(int(c) for c in np.clip(level + tint, 0, 255))
        points = _course(random, ground.width)
        width = int(random.uniform(9, 26))
        mask = Image.new("L", ground.size)
        ImageDraw.Draw(mask).line(points, fill=230, width=width, joint="curve")
        ground.paste(colour, mask=mask.filter(ImageFilter.BoxBlur(1)))
        if random.uniform() < 0.5 and width > 14:
            _broken_line(ImageDraw.Draw(ground), points)
    return ground


def _course(random: _Random, size: int) -> list[tuple[float, float]]:
    """Three points of a road: outside, somewhere within, and outside on the other side."""
    middle = random.uniform(0.15, 0.85, 2)
    angle = random.uniform(0, 2 * math.pi)
    back = angle + math.pi + random.normal(0, 0.35)
    ends = [middle + 1.3 * np.array([math.cos(a), math.sin(a)]) for a in (angle, back)]
    return [(float(x * size), float(y * size)) for x, y in (ends[0], middle, ends[1])]


def _broken_line(draw: ImageDraw.ImageDraw, points: list[tuple[float, float]]) -> None:
    for (x1, y1), (x2, y2) in itertools.pairwise(points):
        length = max(math.hypot(x2 - x1, y2 - y1), 1.0)
        dx, dy = (x2 - x1) / length, (y2 - y1) / length
        for step in range(int(length // 18)):
            start, end = step * 18, step * 18 + 8
            ends = [(x1 + dx * start, y1 + dy * start), (x1 + dx * end, y1 + dy * end)]
            draw.line(ends, fill=(225, 222, 210), width=1)


def make_ground(seed: int, size: int = GROUND_SIZE) -> Image.Image:
    """The ground of a seed, RGB, ``size`` x ``size``; a pure function of its arguments.

    >>> make_ground(3, size=64).size
    (64, 64)
    """
    random = np.random.default_rng([_TAG, seed])
    colours = _palette(random)
    mix = np.stack([_octaves(random, size, 16) for _ in range(3)], axis=-1)
    weights = np.exp(2.0 * mix)
    surface = (weights / weights.sum(axis=-1, keepdims=True)) @ colours
    grain = _octaves(random, size, 3) * random.uniform(4, 10)
    grain += random.standard_normal((size, size), dtype=np.float32) * random.uniform(2, 7)
    surface = np.clip(surface + grain[..., None], 0, 255).astype(np.uint8)
    return _roads(random, Image.fromarray(surface), int(random.integers(0, 4)))
