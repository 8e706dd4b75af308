"""The task: ten digits drawn by strokes, a small convolutional network, and how well it reads them.

Drawn, not downloaded: 6,400 samples to learn from (100 batches of 64) and 4,000 to be measured on,
the same on every machine. A healthy run of 400 steps reads about 0.97 of them, a lost one 0.10.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from benchmarks.chaos.inject import Clock

__all__ = ["BATCH", "CLASSES", "Digits", "Net", "accuracy", "held_out"]

BATCH, CLASSES = 64, 10
_SIDE, _TRAIN, _TEST = 16, 6400, 4000
_NOISE = 0.22
# Polylines in a square from -1 to 1, x to the right and y down.
_STROKES: dict[int, list[tuple[float, float]]] = {
    0: [(0.0, -1), (0.6, -0.6), (0.6, 0.6), (0, 1), (-0.6, 0.6), (-0.6, -0.6), (0, -1)],
    1: [(-0.4, -0.6), (0.1, -1), (0.1, 1)],
    2: [(-0.6, -0.6), (0, -1), (0.6, -0.5), (-0.6, 1), (0.6, 1)],
    3: [(-0.5, -1), (0.5, -0.8), (0, 0), (0.6, 0.5), (0, 1), (-0.6, 0.8)],
    4: [(0.3, 1), (0.3, -1), (-0.6, 0.3), (0.7, 0.3)],
    5: [(0.6, -1), (-0.5, -1), (-0.5, 0), (0.5, 0), (0.6, 0.6), (0, 1), (-0.6, 0.8)],
    6: [(0.4, -1), (-0.5, 0), (-0.5, 0.7), (0, 1), (0.5, 0.6), (0.3, 0.1), (-0.5, 0.3)],
    7: [(-0.6, -1), (0.6, -1), (0, 0), (-0.2, 1)],
    8: [
        (0, 0),
        (0.5, -0.5),
        (0, -1),
        (-0.5, -0.5),
        (0, 0),
        (0.6, 0.5),
        (0, 1),
        (-0.6, 0.5),
        (0, 0),
    ],
    9: [(0.5, -0.3), (-0.4, -0.1), (-0.5, -0.7), (0, -1), (0.5, -0.7), (0.5, 0.2), (0.1, 1)],
}


def _along(points: list[tuple[float, float]], count: int = 40) -> np.ndarray:
    """(count, 2): points at equal distances along a polyline."""
    corners = np.array(points)
    lengths = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    at = np.concatenate([[0.0], np.cumsum(lengths)])
    wanted = np.linspace(0.0, at[-1], count)
    return np.stack([np.interp(wanted, at, corners[:, i]) for i in (0, 1)], axis=1)


@functools.cache
def _drawn() -> tuple[Tensor, Tensor]:
    """All samples: (N, 1, 16, 16) float32 images and (N,) labels."""
    rng = np.random.default_rng(20240601)
    count = _TRAIN + _TEST
    labels = rng.integers(0, CLASSES, count)
    strokes = np.stack([_along(_STROKES[digit]) for digit in range(CLASSES)])[labels]
    turn, shear = rng.uniform(-0.22, 0.22, count), rng.uniform(-0.22, 0.22, count)
    wide, tall = rng.uniform(0.75, 1.05, count), rng.uniform(0.8, 1.05, count)
    cos, sin = np.cos(turn), np.sin(turn)
    x, y = strokes[..., 0] * wide[:, None], strokes[..., 1] * tall[:, None]
    x = x + shear[:, None] * y
    turned = cos[:, None] * x - sin[:, None] * y, sin[:, None] * x + cos[:, None] * y
    grid = np.linspace(-1.4, 1.4, _SIDE)
    near = [
        np.exp(-((grid - (t + rng.uniform(-0.2, 0.2, (count, 1)))[..., None]) ** 2) / 0.02)
        for t in turned
    ]
    ink = np.minimum(np.matmul(near[1].transpose(0, 2, 1), near[0]), 1.0)
    ink += rng.normal(0.0, _NOISE, ink.shape)
    return torch.tensor(ink[:, None], dtype=torch.float32), torch.tensor(labels)


def held_out() -> tuple[Tensor, Tensor]:
    """Images and labels that no run trains on."""
    images, labels = _drawn()
    return images[_TRAIN:], labels[_TRAIN:]


class Digits(Dataset[tuple[Tensor, int, int]]):
    """Image, label and number of the first ``count`` samples; a fault may have got at them."""

    def __init__(self, clock: Clock, count: int = _TRAIN) -> None:
        images, labels = _drawn()
        self._images, self._labels = images[:count], labels[:count].tolist()
        self._clock = clock

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        image, label = self._clock.sample(index, self._images[index], self._labels[index])
        return image, label, index


class Net(nn.Module):
    """Convolution, perhaps BatchNorm, two linear layers: 34 thousand weights."""

    def __init__(self, clock: Clock, *, batchnorm: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8) if batchnorm else nn.Identity()
        self.fc1 = nn.Linear(8 * (_SIDE // 2) ** 2, 64)
        self.fc2 = nn.Linear(64, CLASSES)
        self._clock = clock

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 16, 16) to (B, 10)."""
        if self.training and torch.is_grad_enabled():
            self._clock.forward(self, x)
        x = nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


def accuracy(model: nn.Module) -> float:
    """Share of the held-out samples that are read rightly; an output of NaN reads nothing."""
    images, labels = held_out()
    model.eval()
    with torch.no_grad():
        logits: Any = model(images)
    right = (logits.argmax(1) == labels) & torch.isfinite(logits).all(1)
    return float(right.float().mean())
