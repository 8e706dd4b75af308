"""The small trainings that :mod:`benchmarks.kill` ends at random moments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from surefoot.data import write_aeroeyes

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """How the command is told to train something small, and with how many steps."""

    verb: tuple[str, ...]
    flags: Callable[[Path], list[str]]
    """Of a new run, without its folder; data are made in the folder that is given."""
    steps: int
    epochs: int
    delay: float
    """Seconds; a life ends up to so long after its moment has come, a few steps."""


def _refdet(data: Path, *, episodes: int, epochs: int, more: Sequence[str] = ()) -> list[str]:
    if not data.exists():
        write_aeroeyes(data / "train", videos=3, frames=6, size=64, split="train")
        write_aeroeyes(data / "val", videos=1, frames=6, size=64, split="validation")
    return [
        "--preset", "pocket", "--device", "cpu", "--precision", "fp32",
        "--data-root", str(data / "train"), "--val-data-root", str(data / "val"),
        "--n-way", "2", "--n-query", "2", "--image-size", "64", "--support-size", "32",
        "--lr", "1e-3", "--calibration-frames", "2",
        "--n-episodes", str(episodes), "--epochs", str(epochs), *more,
    ]  # fmt: skip


def _camouflage(*, epochs: int, stage1_epochs: int, workers: int) -> list[str]:
    """20 optimizer steps of 2 micro-batches an epoch, half of the epochs in the first stage."""
    return [
        "--procedural", "80", "--backbone", "tiny", "--channels", "8", "--img-size", "48",
        "--batch-size", "2", "--accumulation-steps", "2", "--epochs", str(epochs),
        "--stage1-epochs", str(stage1_epochs), "--save-steps", "2", "--val-interval", "99",
        "--num-workers", str(workers), "--device", "cpu", "--precision", "fp32",
    ]  # fmt: skip


RECIPES: dict[str, Recipe] = {
    "refdet": Recipe(
        ("train", "refdet"),
        lambda data: _refdet(
            data,
            episodes=40,
            epochs=4,
            more=["--gradient-accumulation", "2", "--save-steps", "2", "--num-workers", "1"],
        ),
        steps=80,
        epochs=4,
        delay=0.2,
    ),
    "camouflage": Recipe(
        ("train", "camouflage"),
        lambda _: _camouflage(epochs=4, stage1_epochs=2, workers=1),
        steps=80,
        epochs=4,
        delay=0.2,
    ),
    "camouflage, tiny": Recipe(
        ("train", "camouflage"),
        lambda _: _camouflage(epochs=2, stage1_epochs=1, workers=0),
        steps=40,
        epochs=2,
        delay=0.03,
    ),
    "refdet, tiny": Recipe(
        ("train", "refdet"),
        lambda data: _refdet(
            data, episodes=10, epochs=2, more=["--save-steps", "2", "--num-workers", "0"]
        ),
        steps=20,
        epochs=2,
        delay=0.03,
    ),
}
