"""``surefoot predict refdet``."""

from __future__ import annotations

from collections.abc import Sequence

from surefoot.cli.from_flags import read_flags
from surefoot.recipes.refdet.predict import PredictConfig, predict

__all__ = ["run"]


def run(arguments: Sequence[str]) -> int:
    """Find and draw; returns the exit status."""
    config = read_flags(PredictConfig, arguments, prog="surefoot predict refdet")
    done = predict(config)
    for problem in done.problems:
        print(f"left out: {problem}")
    for name, count in done.shown.items():
        print(f"{name}: in {count} of {done.frames} frames, at a score of {done.threshold:.3f}")
    print(f"drawn: {done.out}\nboxes: {done.boxes}, and as .csv with their scores")
    return 0
