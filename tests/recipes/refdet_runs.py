"""Detector runs of seconds, and what is looked at with them, for tests."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np

from surefoot.recipes.refdet import TrainConfig
from surefoot.recipes.refdet.train import train_on_folders


def two_steps(tiny_config: Callable[..., TrainConfig], folder: Path) -> Path:
    """Train, measured on two videos; gives the run folder."""
    return train_on_folders(tiny_config(folder, max_steps=2), stream=io.StringIO()).folder


def one(videos: Path) -> Path:
    return sorted((videos / "val" / "samples").iterdir())[0]


def photos(videos: Path) -> list[Path]:
    return sorted((one(videos) / "object_images").iterdir())


def picture(height: int = 50, width: int = 90, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def frames_in(path: Path) -> tuple[list[np.ndarray], list[float]]:
    with av.open(path) as container:
        shown = [(f.to_ndarray(format="rgb24"), f.time) for f in container.decode(video=0)]
    return [frame for frame, _ in shown], [float(time or 0.0) for _, time in shown]
