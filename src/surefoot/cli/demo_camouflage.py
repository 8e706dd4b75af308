"""``surefoot demo camouflage``."""

from __future__ import annotations

from collections.abc import Sequence

from surefoot.cli.from_flags import read_flags
from surefoot.doctor.live import LiveDoctor
from surefoot.recipes.camouflage.demo import CamouflageDemo, run_camouflage_demo
from surefoot.recipes.verdict import attended_by

__all__ = ["run"]


def run(arguments: Sequence[str]) -> int:
    """Train on procedural camouflage, score and draw; returns the exit status."""
    config = read_flags(CamouflageDemo, arguments, prog="surefoot demo camouflage")
    with attended_by(LiveDoctor):
        run_camouflage_demo(config)
    return 0
