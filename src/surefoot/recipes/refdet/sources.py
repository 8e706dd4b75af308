"""What a run learns from, where its threshold is chosen, and what it is measured on."""

from __future__ import annotations

import math
import shutil
import weakref
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

from surefoot.data import (
    AeroEyes,
    EpisodeConfig,
    Episodes,
    FrameStore,
    MixedEpisodes,
    SceneConfig,
    SceneEpisodes,
    Split,
    VideoEpisodes,
    predicted_memory,
    write_aeroeyes,
)
from surefoot.errors import ConfigError
from surefoot.recipes.refdet.build import IMAGE_SIZES
from surefoot.recipes.refdet.config import TrainConfig

__all__ = ["Sources", "open_sources"]

_VIDEOS = 12


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Three disjoint sets of objects, where there are three."""

    episodes: Episodes
    """What is learnt from."""
    calibration: AeroEyes
    """Where the score threshold is chosen."""
    held_out: AeroEyes | None
    """What is measured on; None: nothing is measured."""
    notes: tuple[str, ...] = ()
    """What a person should know of them before workers start."""


def open_sources(config: TrainConfig) -> Sources:
    """The folders of ``config.data``, or procedural scenes.

    Raises:
        ConfigError: names of videos that are not there, or no video left to train on.
        DataError: a folder is missing, or its data are not what they have to be.
    """
    return _procedural(config) if config.data.procedural else _videos(config)


def _videos(config: TrainConfig) -> Sources:
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
    settings = _episodes(config, training)
    store = _store(config, training, settings.image_size)
    episodes: Episodes = VideoEpisodes(training, settings, store=store)
    forecast = predicted_memory(episodes, workers=data.num_workers)
    notes = [str(forecast), *([] if store is None else [str(store)])]
    if config.episode.replay_share:
        episodes = MixedEpisodes(
            episodes, SceneEpisodes(_scenes(config, len(episodes))), config.episode.replay_share
        )
    return Sources(
        episodes=episodes, calibration=calibration, held_out=held_out, notes=tuple(notes)
    )


def _store(config: TrainConfig, training: AeroEyes, size: int) -> FrameStore | None:
    data = config.data
    if data.frame_cache is None:
        return None
    return FrameStore.build(
        data.frame_cache,
        training.videos,
        size=size,
        budget_mb=data.frame_cache_mb,
        encoding=data.frame_cache_encoding,
    )


def _procedural(config: TrainConfig) -> Sources:
    """Drawn scenes; and drawn videos of other objects, in a folder that goes with them."""
    data, scratch = config.data, Path(mkdtemp(prefix="surefoot-"))
    side = config.episode.val_image_size or _sizes(config)[0]

    def drawn(split: Split) -> AeroEyes:
        seed = config.run.seed
        return AeroEyes.open(
            write_aeroeyes(scratch / split, videos=_VIDEOS, size=side, seed=seed, split=split)
        )

    calibration = data.calibration_data_root
    made = Sources(
        episodes=SceneEpisodes(_scenes(config, config.episode.n_episodes)),
        calibration=drawn("calibration")
        if calibration is None
        else _open(calibration, None, config),
        held_out=drawn("validation")
        if data.val_data_root is None
        else _open(data.val_data_root, data.val_annotations, config),
    )
    weakref.finalize(made, shutil.rmtree, scratch, ignore_errors=True)
    return made


def _scenes(config: TrainConfig, episodes: int) -> SceneConfig:
    episode, (size, support_size) = config.episode, _sizes(config)
    return SceneConfig(
        n_way=episode.n_way,
        k_shot=episode.k_shot,
        scenes=episode.n_way * episode.n_query,
        scene_size=size,
        support_size=support_size,
        objects_per_scene=(1, min(6, episode.n_way)),
        episodes=episodes,
        seed=config.run.seed,
    )


def _sizes(config: TrainConfig) -> tuple[int, int]:
    """Sides of a frame and of a photo, in pixels."""
    size, support_size = IMAGE_SIZES[config.model.preset]
    return config.episode.image_size or size, config.episode.support_size or support_size


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
    size, support_size = _sizes(config)
    return EpisodeConfig(
        n_way=episode.n_way,
        n_query=episode.n_query,
        k_shot=episode.k_shot,
        image_size=size,
        support_size=support_size,
        background_share=episode.background_share,
        guard_band=episode.guard_band,
        episodes=count,
        seed=config.run.seed,
    )
