"""``surefoot eval refdet``."""

from __future__ import annotations

from collections.abc import Sequence

from surefoot.cli.from_flags import read_flags
from surefoot.recipes.refdet.evaluate import EvalConfig, evaluate_detector, print_report

__all__ = ["run"]


def run(arguments: Sequence[str]) -> int:
    """Measure and print the tables; returns the exit status."""
    config = read_flags(EvalConfig, arguments, prog="surefoot eval refdet")
    print_report(evaluate_detector(config))
    if config.out is not None:
        print(f"scores, and every frame: {config.out}")
    return 0
