"""What is said of memory beforehand is what the tensors take."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from test_video_episodes import CONFIG

from surefoot.data import AeroEyes, MemoryForecast, VideoEpisodes, predicted_memory
from surefoot.errors import ConfigError


def nbytes(episode) -> int:
    values = (getattr(episode, field.name) for field in fields(episode))
    return sum(value.nbytes for value in values if isinstance(value, torch.Tensor))


@pytest.mark.parametrize("change", [{}, {"n_way": 2, "n_query": 3, "k_shot": 1, "image_size": 96}])
def test_an_episode_takes_what_was_predicted(written, change):
    source = VideoEpisodes(AeroEyes.open(written), replace(CONFIG, **change))
    forecast = predicted_memory(source, workers=2)
    episode = source[0]
    assert forecast.episode == episode.images.nbytes + episode.supports.nbytes
    assert forecast.episode <= nbytes(episode) <= 1.01 * forecast.episode


def test_caches_are_counted_once_a_process_and_as_far_as_they_can_fill(written):
    data = AeroEyes.open(written, cache_mb=0.05)
    source = VideoEpisodes(data, CONFIG)
    forecast = predicted_memory(source, workers=0)
    for index in range(6):
        source[index]
    photos = 5 * 3 * 3 * 32 * 32
    assert forecast.caches == 50_000 + photos
    assert 0 < source.dataset.videos[0]._cache.used <= 50_000
    assert 0 < source._photos.used <= photos


def test_workers_and_prefetching_multiply(written):
    source = VideoEpisodes(AeroEyes.open(written, cache_mb=1), CONFIG)
    alone, two = (predicted_memory(source, workers=n) for n in (0, 2))
    assert (alone.processes, alone.episodes) == (1, 1)
    assert (two.processes, two.episodes) == (2, 9)
    assert two.total == 9 * two.episode + 2 * (two.caches + two.making)
    assert predicted_memory(source, workers=3, prefetch=2).episodes == 7


def test_it_is_said_in_one_line():
    forecast = MemoryForecast(
        processes=2, episodes=9, episode=43_000_000, caches=320_000_000, making=40_000_000
    )
    assert str(forecast) == (
        "loading takes up to 1.11 GB of host memory: 9 episodes of 43.0 MB, and in 2 processes "
        "caches of 320 MB and 40 MB to work in each"
    )


@pytest.mark.parametrize("given", [{"workers": -1}, {"workers": 1, "prefetch": 0}])
def test_numbers_that_cannot_be_are_refused(written, given):
    source = VideoEpisodes(AeroEyes.open(written), CONFIG)
    with pytest.raises(ConfigError, match=r"predicted_memory: workers .* and prefetch .*expected"):
        predicted_memory(source, **given)
