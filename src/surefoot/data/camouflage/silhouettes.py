"""Outlines of procedural animals: conditions on coordinates, so that any size can be asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surefoot.errors import ConfigError

__all__ = ["HELD_OUT_SILHOUETTES", "SILHOUETTES", "silhouette"]

Field = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
_Random = np.random.Generator
_Outline = Callable[[Field, Field], Mask]
_TRIES = 20


def _blob(random: _Random) -> _Outline:
    """A circle whose radius is waved."""
    waves = np.arange(2, 6)
    heights = random.normal(0, 0.3, 4) / waves
    phases = random.uniform(0, 2 * math.pi, 4)

    def inside(x: Field, y: Field) -> Mask:
        angle = np.arctan2(y, x)[..., None]
        reach = 0.8 + (heights * np.cos(waves * angle + phases)).sum(-1)
        return np.asarray(np.hypot(x, y) < reach)

    return inside


def _polygon(random: _Random) -> _Outline:
    count = int(random.integers(5, 9))
    angles = (np.arange(count) + random.uniform(-0.3, 0.3, count)) * (2 * math.pi / count)
    return _corners(angles, random.uniform(0.55, 1.0, count))


def _star(random: _Random) -> _Outline:
    points = int(random.integers(4, 7))
    radii = np.where(np.arange(2 * points) % 2 == 0, 1.0, random.uniform(0.4, 0.6))
    return _corners(np.arange(2 * points) * (math.pi / points), radii)


def _corners(angles: Field, radii: Field) -> _Outline:
    """A polygon around the origin, corners in the order of their angles."""
    px, py = radii * np.cos(angles), radii * np.sin(angles)
    qx, qy = np.roll(px, -1), np.roll(py, -1)

    def inside(x: Field, y: Field) -> Mask:
        """Inside the triangle of the origin and some edge."""
        a, b = x[..., None], y[..., None]
        left = (px * b - py * a >= 0) & (a * qy - b * qx >= 0)
        within = (qx - px) * (b - py) - (qy - py) * (a - px) >= 0
        return np.asarray((left & within).any(-1))

    return inside


def _animal(random: _Random) -> _Outline:
    """Body, head, tail and four legs, an ellipse each: x, y, half axes, turn."""
    body = random.uniform(0.28, 0.42)
    head = random.uniform(0.18, 0.28)
    parts = [
        (0.0, 0.0, 0.62, body, 0.0),
        (0.68, random.uniform(-0.4, 0.1), head * 1.3, head, random.uniform(-0.5, 0.5)),
        (-0.75, random.uniform(-0.4, 0.0), 0.32, 0.08, random.uniform(-0.6, 0.6)),
    ]
    parts += [
        (
            place + random.uniform(-0.06, 0.06),
            0.6 * body + 0.26,
            0.1,
            0.36,
            random.uniform(-0.4, 0.4),
        )
        for place in (-0.42, -0.2, 0.22, 0.42)
    ]
    return _ellipses(parts)


def _serpent(random: _Random) -> _Outline:
    """A chain of discs along a wave, thinner towards the tail."""
    along = np.linspace(-0.9, 0.9, 24)
    wave = random.uniform(0.25, 0.4) * np.sin(along * random.uniform(3, 5) + random.uniform(0, 6))
    width = random.uniform(0.2, 0.27) * np.linspace(0.5, 1.0, 24)
    return _ellipses([(a, b, r, r, 0.0) for a, b, r in zip(along, wave, width, strict=True)])


def _ellipses(parts: Sequence[tuple[float, float, float, float, float]]) -> _Outline:
    def inside(x: Field, y: Field) -> Mask:
        found = np.zeros(x.shape, dtype=bool)
        for cx, cy, rx, ry, turn in parts:
            u, v = _turned(x - cx, y - cy, turn)
            found |= (u / rx) ** 2 + (v / ry) ** 2 < 1
        return found

    return inside


def _turned(x: Field, y: Field, angle: float) -> tuple[Field, Field]:
    cosine, sine = math.cos(angle), math.sin(angle)
    return cosine * x + sine * y, cosine * y - sine * x


_FAMILIES: dict[str, Callable[[_Random], _Outline]] = {
    "blob": _blob,
    "animal": _animal,
    "polygon": _polygon,
    "star": _star,
    "serpent": _serpent,
}
HELD_OUT_SILHOUETTES = ("star", "serpent")
"""Outline families kept out of training, for tests on outlines never seen."""
SILHOUETTES = tuple(name for name in _FAMILIES if name not in HELD_OUT_SILHOUETTES)
"""The outline families objects are made of."""


def silhouette(random: _Random, family: str, size: int, area: tuple[float, float]) -> Mask:
    """An outline, turned and placed anywhere in a square, its area in bounds.

    Args:
        random: where every choice comes from.
        family: one of the names in SILHOUETTES or HELD_OUT_SILHOUETTES.
        size: side of the square in pixels.
        area: smallest and largest share of the square that it covers.

    Returns:
        ``size`` x ``size``, True inside.

    Raises:
        ConfigError: no such family, or bounds that no outline of it can meet.
    """
    if family not in _FAMILIES:
        raise ConfigError(f"silhouette: family is {family!r}; expected one of {tuple(_FAMILIES)}.")
    axis = (np.arange(size) + 0.5) / size
    for _ in range(_TRIES):
        outline = _FAMILIES[family](random)
        turn, target = random.uniform(0, 2 * math.pi), random.uniform(*area)
        centre, scale = random.uniform(0.2, 0.8, 2), math.sqrt(target / 1.5)
        for _ in range(3):  # what the border cuts off is made up by the rest
            x, y = np.meshgrid((axis - centre[0]) / scale, (axis - centre[1]) / scale)
            mask = outline(*_turned(x, y, turn))
            share = float(mask.mean())
            if area[0] <= share <= area[1]:
                return mask
            scale *= math.sqrt(target / max(share, 1e-3))
    raise ConfigError(
        f"silhouette: no {family} that covers {area[0]:g} to {area[1]:g} of {size} x {size} "
        f"pixels in {_TRIES} tries; allow a wider range."
    )
