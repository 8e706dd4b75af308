"""``surefoot eval camouflage``."""

from __future__ import annotations

from collections.abc import Sequence

from surefoot.cli.from_flags import read_flags
from surefoot.recipes.camouflage.evaluate import EvalConfig, evaluate

__all__ = ["run"]


def run(arguments: Sequence[str]) -> int:
    """Score and print the table; returns the exit status."""
    config = read_flags(EvalConfig, arguments, prog="surefoot eval camouflage")
    for number, one in enumerate(evaluate(config)):
        print(("\n" if number else "") + one.table())
    if config.out is not None:
        print(f"\nscores, images and sheets: {config.out}")
    return 0
