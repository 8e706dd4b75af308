"""A share of replayed episodes, always the same ones."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_video_episodes import CONFIG, assert_same
from torch.utils.data import DataLoader

from surefoot.data import AeroEyes, MixedEpisodes, SceneConfig, SceneEpisodes, VideoEpisodes
from surefoot.errors import ConfigError

SCENES = SceneConfig(
    n_way=4, scenes=3, scene_size=64, support_size=32, objects_per_scene=(1, 3), episodes=5
)


@pytest.fixture
def sources(written) -> tuple[VideoEpisodes, SceneEpisodes]:
    return VideoEpisodes(AeroEyes.open(written), CONFIG), SceneEpisodes(SCENES)


def is_replayed(episode) -> bool:
    return "scene" in episode.sample_ids[0]


def test_a_share_of_the_episodes_is_replayed_and_the_rest_untouched(sources):
    first, second = sources
    mixed = MixedEpisodes(first, second, 0.5)
    assert len(mixed) == len(first) == 6
    for index in range(6):
        expected = second[index // 2] if index % 2 else first[index]
        assert_same(mixed[index], expected)


@pytest.mark.parametrize(("share", "replayed"), [(0.0, 0), (0.25, 1), (0.34, 2), (0.8, 4)])
def test_the_share_is_the_one_asked_for(sources, share, replayed):
    mixed = MixedEpisodes(*sources, share)
    assert sum(is_replayed(mixed[index]) for index in range(6)) == replayed


class _Counted(MixedEpisodes):
    """Without episodes: only their numbers."""

    def __init__(self, share: float) -> None:
        self.share = share


@given(share=st.floats(0, 1), count=st.integers(1, 500))
def test_replayed_episodes_are_evenly_spread_and_each_its_own(share, count):
    mixed = _Counted(share)
    numbers = [mixed._replayed(index) for index in range(count + 1)]
    steps = [b - a for a, b in pairwise(numbers)]
    assert set(steps) <= {0, 1}
    assert numbers[-1] == pytest.approx(share * count, abs=1)
    assert _Counted(1.0)._replayed(count) == count
    assert _Counted(0.1)._replayed(10 * count) == count


def test_the_epoch_reaches_both(sources):
    first, second = sources
    mixed = MixedEpisodes(first, second, 0.5)
    before = [mixed[index].sample_ids for index in (0, 1)]
    mixed.set_epoch(3)
    assert mixed.epoch == first.epoch == second.epoch == 3
    assert [mixed[index].sample_ids for index in (0, 1)] != before
    assert mixed[1].sample_ids[0].startswith("epoch 3 episode 0")
    mixed.set_epoch(0)
    assert [mixed[index].sample_ids for index in (0, 1)] == before


def test_workers_that_outlive_an_epoch_see_the_next(sources):
    mixed = MixedEpisodes(*sources, 0.5)
    loader = DataLoader(mixed, batch_size=None, num_workers=2, persistent_workers=True)
    for epoch in (0, 1):
        mixed.set_epoch(epoch)
        for index, episode in enumerate(loader):
            assert_same(episode, mixed[index])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scene_size": 96}, r"frames of \(3, 64, 64\) in the first source and \(3, 96, 96\)"),
        ({"support_size": 48}, r"reference photos .* of \(3, 3, 32, 32\) .* and \(3, 3, 48, 48\)"),
        ({"k_shot": 2}, r"\(3, 3, 32, 32\) .* and \(2, 3, 32, 32\) .*the same k-shot"),
    ],
)
def test_sources_of_other_sizes_are_refused(sources, change, message):
    with pytest.raises(ConfigError, match=message):
        MixedEpisodes(sources[0], SceneEpisodes(replace(SCENES, **change)), 0.5)


def test_a_share_that_cannot_be_is_refused(sources):
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match=r"share .*; a part of the whole is from 0 to 1"):
            MixedEpisodes(*sources, share)
    with pytest.raises(ConfigError, match=r"a share of 1\.0 of 6 episodes is 6, but .* has 5"):
        MixedEpisodes(*sources, 1.0)
    with pytest.raises(IndexError, match="episode 6: an epoch has 6"):
        MixedEpisodes(*sources, 0.5)[6]
