"""What a run learns from, where its threshold is chosen, and what it is measured on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from surefoot.data import AeroEyes, EpisodeConfig, Episodes, VideoEpisodes
from surefoot.errors import ConfigError
from surefoot.recipes.refdet.build import IMAGE_SIZES
from surefoot.recipes.refdet.config import TrainConfig

__all__ = ["Sources", "open_sources"]


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Three disjoint sets of objects, where there are three."""

    episodes: Episodes
    """What is learnt from."""
    calibration: AeroEyes
    """Where the score threshold is chosen."""
    held_out: AeroEyes | None
    """What is measured on; None: nothing is measured."""


def open_sources(config: TrainConfig) -> Sources:
    """The folders of ``config.data``.

    Raises:
        ConfigError: names of videos that are not there, or no video left to train on.
        DataError: a folder is missing, or its data are not what they have to be.
    """
    data = config.data
    everything = _open(data.data_root, data.annotations, config)
    training, held_out = everything, None
    if data.held_out:
        held_out = everything.subset(data.held_out)
        rest = [video.id for video in everything.videos if video.id not in data.held_out]
        if not rest:
            raise ConfigError(f"--held-out names every video of {data.data_root}; leave some out.")
        training = everything.subset(rest)
    elif data.val_data_root is not None:
        held_out = _open(data.val_data_root, data.val_annotations, config)
    calibration = training
    if data.calibration_data_root is not None:
        calibration = _open(data.calibration_data_root, None, config)
    return Sources(
        episodes=VideoEpisodes(training, _episodes(config, training)),
        calibration=calibration,
        held_out=held_out,
    )


def _open(root: Path, annotations: Path | None, config: TrainConfig) -> AeroEyes:
    share = config.data.cache_mb / max(config.data.num_workers, 1)
    return AeroEyes.open(root, annotations, cache_mb=share)


def _episodes(config: TrainConfig, training: AeroEyes) -> EpisodeConfig:
    episode = config.episode
    count = episode.n_episodes
    if episode.auto_episodes:
        annotated = sum(len(video.boxes) for video in training.videos)
        with_object = episode.n_way * episode.n_query * (1 - episode.background_share)
        count = math.ceil(annotated / with_object)
    size, support_size = IMAGE_SIZES[config.model.preset]
    return EpisodeConfig(
        n_way=episode.n_way,
        n_query=episode.n_query,
        k_shot=episode.k_shot,
        image_size=episode.image_size or size,
        support_size=episode.support_size or support_size,
        background_share=episode.background_share,
        episodes=count,
        seed=config.run.seed,
    )
