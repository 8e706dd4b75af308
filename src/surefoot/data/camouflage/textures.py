"""Random textures: one process, drawn twice, gives ground and object that look alike."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["HELD_OUT_TEXTURES", "TEXTURES", "Process", "clouds", "smooth", "standard", "texture"]

Field = NDArray[np.float64]
_Random = np.random.Generator
_FINEST = 4.5
"""Pixels of the shortest wave of a ground."""
_NO_DIRECTION = 1.5
"""Spread in radians above which a texture looks alike in all directions."""


@dataclass(frozen=True, kw_only=True)
class Process:
    """What a texture is drawn from: noise through a band-pass, then bent."""

    family: str
    """One of the names in TEXTURES or HELD_OUT_TEXTURES."""
    frequency: float
    """Cycles per pixel at the middle of the band."""
    bandwidth: float
    """Deviation of the logarithm of frequency."""
    angle: float
    """Direction of the waves in radians."""
    spread: float
    """Deviation of that direction in radians; small makes stripes."""

    @classmethod
    def draw(cls, random: _Random, family: str, size: int) -> Process:
        """A process of a family, its waves 4.5 pixels long or more, 9 or more in an image."""
        spread, bandwidth = _RANGES[family]
        return cls(
            family=family,
            frequency=1 / math.exp(random.uniform(math.log(_FINEST), math.log(max(size / 9, 11)))),
            bandwidth=random.uniform(*bandwidth),
            angle=random.uniform(0, math.pi),
            spread=random.uniform(*spread),
        )

    def changed(self, random: _Random) -> Process:
        """What an object in front of this ground is made of: turned, finer or coarser, or both."""
        kind = random.uniform()
        turn, ratio = 0.0, 1.0
        if kind < 0.7 and self.spread < _NO_DIRECTION:
            turn = math.radians(random.uniform(45, 90)) * random.choice([-1, 1])
        if kind > 0.45 or turn == 0.0:
            ratio = random.uniform(1.5, 2.1)
            # Not finer than pixels can show, not coarser than an object is wide.
            finer = 1 / self.frequency > 7.5
            ratio = ratio if finer else 1 / ratio
        return replace(self, angle=self.angle + turn, frequency=self.frequency * ratio)


def _as_it_is(x: Field) -> Field:
    return x


def _blotched(x: Field) -> Field:
    return np.tanh(2.5 * x)


def _speckled(x: Field) -> Field:
    return np.sign(x) * np.abs(x) ** 1.6


def _veined(x: Field) -> Field:
    return -np.abs(x)


def _flaked(x: Field) -> Field:
    return np.round(x * 1.2)


_BENDS: dict[str, Callable[[Field], Field]] = {
    "stripes": _as_it_is,
    "grain": _as_it_is,
    "octaves": _as_it_is,
    "blotches": _blotched,
    "speckle": _speckled,
    "veins": _veined,
    "flakes": _flaked,
}
# Ranges of the spread and of the bandwidth.
_RANGES = {
    "stripes": ((0.2, 0.35), (0.2, 0.3)),
    "grain": ((0.4, 0.6), (0.25, 0.4)),
    "octaves": ((0.35, 0.55), (0.4, 0.55)),
    "blotches": ((2.0, 3.0), (0.2, 0.35)),
    "speckle": ((2.0, 3.0), (0.25, 0.4)),
    "veins": ((0.25, 0.5), (0.2, 0.35)),
    "flakes": ((2.0, 3.0), (0.2, 0.35)),
}
HELD_OUT_TEXTURES = ("veins", "flakes")
"""Texture families kept out of training, for tests on textures never seen."""
TEXTURES = tuple(name for name in _BENDS if name not in HELD_OUT_TEXTURES)
"""The texture families grounds and objects are made of."""


def texture(random: _Random, process: Process, size: int) -> Field:
    """A draw of a process, ``size`` x ``size``, of mean 0 and deviation 1."""
    radius, direction = _polar(size)
    off = (direction - process.angle + math.pi / 2) % math.pi - math.pi / 2  # waves have no front
    band = np.log(radius / process.frequency) ** 2 / process.bandwidth**2
    band = np.exp(-(band + (off / process.spread) ** 2) / 2)
    return standard(_BENDS[process.family](standard(_noise(random, band))))


def clouds(random: _Random, size: int) -> Field:
    """Smooth patches a few to an image, of mean 0 and deviation 1."""
    radius, _ = _polar(size)
    return standard(_noise(random, np.exp(-((radius * size) ** 2) / 2)))


def _noise(random: _Random, band: Field) -> Field:
    """Noise whose waves have the amplitudes of ``band``, as ``numpy.fft.rfft2`` lays them out."""
    parts = random.standard_normal((2, *band.shape))
    waves = (parts[0] + 1j * parts[1]) * band
    waves[0, 0] = 0
    return np.fft.irfft2(waves, s=(len(band), len(band)))


def smooth(values: Field, sigma: float) -> Field:
    """A Gaussian blur of ``sigma`` pixels, the border repeated."""
    reach = math.ceil(3 * sigma)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    for axis in (0, 1):
        pads = [(reach, reach) if axis == one else (0, 0) for one in (0, 1)]
        padded = np.pad(values, pads, mode="edge")
        count = values.shape[axis]
        windows = (padded.take(range(at, at + count), axis) for at in range(len(weights)))
        values = sum(
            (weight * window for weight, window in zip(weights, windows, strict=True)),
            np.zeros_like(values),
        )
    return values


def standard(values: Field) -> Field:
    """The same with mean 0 and deviation 1."""
    return (values - values.mean()) / max(float(values.std()), 1e-9)


@functools.cache
def _polar(size: int) -> tuple[Field, Field]:
    """Frequency in cycles per pixel and direction of every wave of ``numpy.fft.rfft2``."""
    y, x = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)
    return np.maximum(np.hypot(y, x), 1e-6), np.arctan2(y, x)
