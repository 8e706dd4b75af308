"""``surefoot train refdet``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from surefoot.cli.from_flags import training_settings
from surefoot.recipes.refdet import TrainConfig

__all__ = ["parse", "run"]


def parse(arguments: Sequence[str]) -> TrainConfig:
    """Settings from flags, with the defaults of their stage; see :func:`training_settings`."""
    return training_settings(arguments, _defaults(arguments), prog="surefoot train refdet")


def _defaults(arguments: Sequence[str]) -> TrainConfig:
    """Those of the stage that the flags name, so that ``--help`` shows them too."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--stage", default="2")
    first.add_argument("--data", default="")
    try:
        known, _ = first.parse_known_args(list(arguments))
    except argparse.ArgumentError:
        return TrainConfig()  # a flag without its value: the full reading says so
    stage = int(known.stage) if known.stage in ("1", "3") else 2
    return TrainConfig.for_stage(stage, procedural=known.data == "procedural")


def run(arguments: Sequence[str]) -> int:
    """Train, measure and draw; returns the exit status."""
    config = parse(arguments)
    return _train_base(config) if config.learns_classes else _train_on_episodes(config)


def _train_base(config: TrainConfig) -> int:
    from surefoot.doctor.live import LiveDoctor
    from surefoot.recipes.refdet.base.data import open_base_sources
    from surefoot.recipes.refdet.base.train import train_base
    from surefoot.recipes.verdict import attended_by

    sources = open_base_sources(config)
    with attended_by(LiveDoctor):
        train_base(config, sources)
    return 0


def _train_on_episodes(config: TrainConfig) -> int:
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
