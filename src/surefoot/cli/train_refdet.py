"""``surefoot train refdet``."""

from __future__ import annotations

from collections.abc import Sequence

from surefoot.cli.from_flags import training_settings
from surefoot.recipes.refdet import TrainConfig

__all__ = ["parse", "run"]


def parse(arguments: Sequence[str]) -> TrainConfig:
    """Settings from flags; see :func:`training_settings`."""
    return training_settings(arguments, TrainConfig(), prog="surefoot train refdet")


def run(arguments: Sequence[str]) -> int:
    """Train, measure and draw; returns the exit status."""
    config = parse(arguments)
    from surefoot.doctor.live import LiveDoctor
    from surefoot.recipes.refdet.pictures import draw_run
    from surefoot.recipes.refdet.sources import open_sources
    from surefoot.recipes.refdet.train import train
    from surefoot.recipes.verdict import attended_by

    sources = open_sources(config)
    with attended_by(LiveDoctor):
        outcome = train(config, sources)
    if not outcome.first:
        return 0
    videos = sources.held_out.videos if sources.held_out else ()
    for line in draw_run(outcome.folder, outcome.detector, videos, outcome.evaluation):
        print(line)
    return 0
