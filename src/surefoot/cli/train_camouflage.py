"""``surefoot train camouflage``."""

from __future__ import annotations

from collections.abc import Sequence

from surefoot.cli.from_flags import training_settings
from surefoot.recipes.camouflage import CamouflageConfig

__all__ = ["parse", "run"]


def parse(arguments: Sequence[str]) -> CamouflageConfig:
    """Settings from flags; see :func:`training_settings`."""
    return training_settings(arguments, CamouflageConfig(), prog="surefoot train camouflage")


def run(arguments: Sequence[str]) -> int:
    """Train and validate; returns the exit status."""
    config = parse(arguments)
    from surefoot.doctor.live import LiveDoctor
    from surefoot.recipes.camouflage.train import train_on_folders
    from surefoot.recipes.verdict import attended_by

    with attended_by(LiveDoctor):
        train_on_folders(config)
    return 0
