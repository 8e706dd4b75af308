"""``surefoot demo refdet``."""

from __future__ import annotations

from collections.abc import Sequence

import tyro

from surefoot.recipes.refdet.demo import DemoConfig, run_demo

__all__ = ["run"]


def run(arguments: Sequence[str]) -> int:
    """Make the demo; returns the exit status."""
    run_demo(tyro.cli(DemoConfig, args=arguments, prog="surefoot demo refdet"))
    return 0
