"""``surefoot predict camouflage``."""

from __future__ import annotations

from collections.abc import Sequence

from surefoot.cli.from_flags import read_flags
from surefoot.recipes.camouflage.predict import PredictConfig, predict

__all__ = ["run"]


def run(arguments: Sequence[str]) -> int:
    """Segment; returns the exit status."""
    config = read_flags(PredictConfig, arguments, prog="surefoot predict camouflage")
    written, problems = predict(config)
    for problem in problems:
        print(f"left out: {problem}")
    print(f"{len(written)} masks, overlays and both side by side: {config.out}")
    return 0
