"""``surefoot train refdet``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import tyro

from surefoot.recipes.refdet import TrainConfig
from surefoot.recipes.run_folder import run_folder_of

__all__ = ["parse", "run"]


def parse(arguments: Sequence[str]) -> TrainConfig:
    """Settings from flags; with ``--resume``, what is not given is the resumed run's.

    Raises:
        ConfigError: an impossible value, or nothing to resume at the path.
        SystemExit: an unknown flag or an unreadable value (status 2), or ``--help`` (0).
    """
    config = _read(arguments, TrainConfig())
    if config.run.resume is None:
        return config
    folder = run_folder_of(config.run.resume)
    saved = TrainConfig.load(folder / "config.json")
    run = replace(saved.run, save_dir=folder, checkpoint=None)
    return _read(arguments, replace(saved, run=run))


def _read(arguments: Sequence[str], default: TrainConfig) -> TrainConfig:
    return tyro.cli(
        TrainConfig,
        args=arguments,
        default=default,
        prog="surefoot train refdet",
        description=(TrainConfig.__doc__ or "").partition("\n")[0],
        config=(tyro.conf.OmitArgPrefixes,),
    )


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
    videos = sources.held_out.videos if sources.held_out else ()
    for line in draw_run(outcome.folder, outcome.detector, videos, outcome.evaluation):
        print(line)
    return 0
