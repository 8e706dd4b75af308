"""Procedural scenes: what they show is where the boxes say, and they are the same every time."""

from __future__ import annotations

from dataclasses import fields, replace
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.ops import box_iou

from surefoot.data import HELD_OUT_SHAPES, SHAPES, SceneConfig, SceneEpisodes, SyntheticScenes
from surefoot.data.synthetic import paste, placement, rotation, split_seed
from surefoot.data.synthetic_grounds import make_ground
from surefoot.data.synthetic_objects import make_sprite
from surefoot.errors import ConfigError
from surefoot.shapes import Episode

SMALL = SceneConfig(
    n_way=5, scenes=6, scene_size=64, objects_per_scene=(1, 4), episodes=4, grounds=3, objects=40
)


def assert_same(a: Episode, b: Episode) -> None:
    for field in fields(Episode):
        mine, other = getattr(a, field.name), getattr(b, field.name)
        same = torch.equal(mine, other) if isinstance(mine, torch.Tensor) else mine == other
        assert same, field.name


@pytest.mark.parametrize("family", SHAPES + HELD_OUT_SHAPES)
def test_every_shape_family_fills_its_sprite_without_touching_the_border(family):
    for seed in range(5):
        alpha = np.asarray(make_sprite(seed, [family]).levels[0])[..., 3]
        assert 0.08 < (alpha > 127).mean() < 0.9
        assert not alpha[[0, -1]].any()
        assert not alpha[:, [0, -1]].any()


def test_objects_of_different_seeds_look_different():
    pictures = {make_sprite(seed).levels[0].tobytes() for seed in range(100)}
    assert len(pictures) == 100


def test_an_unknown_shape_family_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"object 3: families are \('blob',\); expected .*star"):
        make_sprite(3, ["blob"])


def test_a_sprite_is_never_enlarged_when_a_finer_level_exists():
    sprite = make_sprite(0)
    assert [sprite.level(side).width for side in (5, 12, 13, 40, 96, 200)] == [
        12, 12, 24, 48, 96, 96,
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_a_box_is_tight_around_what_changed_on_a_plain_ground(seed):
    random = np.random.default_rng(seed)
    picture = np.full((80, 100, 3), 120, dtype=np.uint8)
    matrix = placement(random, random.uniform(16, 60), stretch=0.15)
    placed = paste(picture, make_sprite(seed), matrix, random.uniform(0, 80, 2))
    changed = np.abs(picture.astype(int) - 120).max(axis=-1) > 8
    rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
    around = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert np.abs(placed.box - around).max() <= 1.5


def test_the_box_of_an_upright_sprite_is_that_of_its_alpha_mask():
    sprite = make_sprite(4)
    alpha = np.asarray(sprite.levels[0])[..., 3] > 127
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    picture = np.zeros((128, 128, 3), dtype=np.uint8)
    placed = paste(picture, sprite, rotation(0.0) * 96, np.array([60.0, 70.0]))
    offset = np.array([12, 22, 12, 22])
    expected = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]) + offset
    assert placed.box.tolist() == expected.tolist()
    assert placed.visible == 1.0


def test_visible_share_counts_the_pixels_inside_the_picture():
    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    half = paste(picture, make_sprite(1, ["ellipse"]), rotation(0.0) * 40, np.array([0.0, 32.0]))
    outside = paste(picture, make_sprite(1), rotation(0.0) * 40, np.array([-90.0, 32.0]))
    assert half.visible == pytest.approx(0.5, abs=0.03)
    assert half.box[0] == 0
    assert outside.visible == 0.0
    assert outside.box.tolist() == [0, 0, 0, 0]


def test_objects_of_a_scene_hardly_overlap_and_stay_inside():
    scenes = SyntheticScenes()
    for seed in range(20):
        random = np.random.default_rng(seed)
        scene = scenes.scene(random, objects=range(6), ground=seed % 3, size=128)
        assert 1 <= len(scene.objects) == len(set(scene.objects)) <= 6
        assert (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()
        assert scene.boxes.min() >= 0
        assert scene.boxes.max() <= 128
        overlap = box_iou(torch.from_numpy(scene.boxes), torch.from_numpy(scene.boxes))
        assert overlap.fill_diagonal_(0).max() < 0.3


def test_episodes_have_the_promised_axes_types_and_ranges():
    episode = SceneEpisodes(SMALL)[2]
    assert episode.images.shape == (6, 3, 64, 64)
    assert episode.supports.shape == (5, 3, 3, 64, 64)
    for pictures in (episode.images, episode.supports):
        assert pictures.dtype == torch.float32
        assert pictures.is_contiguous()
        assert 0 <= pictures.min() < 0.3
        assert 0.5 < pictures.max() <= 1
    count = len(episode.boxes)
    assert episode.boxes.shape == (count, 4)
    assert episode.boxes.dtype == torch.float32
    assert episode.box_image.shape == episode.box_object.shape == episode.ignore.shape == (count,)
    assert episode.box_image.dtype == episode.box_object.dtype == torch.int64
    assert episode.ignore.dtype == torch.bool
    assert set(episode.box_object.tolist()) <= set(range(5))
    assert episode.sample_ids[3] == "epoch 0 episode 2/scene 3"


def test_every_object_stands_under_its_own_box():
    """The colours inside a box are closer to the object's own reference than to most others."""
    config = replace(SMALL, n_way=8, scenes=24, scene_size=128, object_px=(40, 60))
    episode = SceneEpisodes(config)[0]
    photos = episode.supports[..., 20:44, 20:44].flatten(-2).mean(-1).mean(1)
    hits = []
    for box, image, obj in zip(
        episode.boxes.int().tolist(), episode.box_image, episode.box_object, strict=True
    ):
        x1, y1, x2, y2 = box
        inside = episode.images[image, :, y1:y2, x1:x2].flatten(1).mean(1)
        hits.append(int((photos - inside).norm(dim=1).argmin()) == int(obj))
    assert sum(hits) / len(hits) > 2 / 8


def test_objects_that_hardly_show_are_ignored_and_they_are_at_the_border():
    config = replace(SMALL, scenes=64, scene_size=48, object_px=(30, 50))
    episode = SceneEpisodes(config)[0]
    at_border = (episode.boxes[:, :2].amin(1) == 0) | (episode.boxes[:, 2:].amax(1) == 48)
    assert 0.02 < episode.ignore.float().mean() < 0.3
    assert at_border[episode.ignore].all()
    assert not at_border[~episode.ignore].all()


def test_an_episode_depends_on_seed_epoch_and_index_alone():
    first, second = SceneEpisodes(SMALL), SceneEpisodes(SMALL)
    second[0], second[3]
    assert_same(first[1], second[1])
    second.set_epoch(1)
    assert not torch.equal(first[1].images, second[1].images)
    second.set_epoch(0)
    assert_same(first[1], second[1])
    other = SceneEpisodes(replace(SMALL, seed=1))
    assert not torch.equal(first[1].images, other[1].images)


def test_workers_change_nothing_and_see_a_new_epoch():
    alone, shared = SceneEpisodes(SMALL), SceneEpisodes(SMALL)
    loader = DataLoader(shared, batch_size=None, num_workers=2, persistent_workers=True)
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        shared.set_epoch(epoch)
        episodes = list(loader)
        assert len(episodes) == 4
        for index, episode in enumerate(episodes):
            assert_same(episode, alone[index])


def test_what_is_sent_to_a_spawned_worker_is_small_and_without_the_caches():
    dataset = SceneEpisodes(SMALL)
    before = len(ForkingPickler.dumps(dataset))
    dataset[0]
    assert len(ForkingPickler.dumps(dataset)) == before < 10_000


def test_splits_share_no_object_and_no_ground():
    seeds = {
        split: {split_seed(split, index) for index in (0, 999_999)}
        for split in ("train", "calibration", "validation")
    }
    assert len(set.union(*seeds.values())) == 6
    assert make_ground(split_seed("train", 0), 64) != make_ground(split_seed("validation", 0), 64)
    train = SceneEpisodes(SMALL)[0]
    validation = SceneEpisodes(replace(SMALL, split="validation"))[0]
    assert not torch.equal(train.supports, validation.supports)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_way": 41}, "n_way is 41, but there are only 40 objects"),
        ({"n_way": 0}, "n_way is 0; at least 1"),
        ({"objects_per_scene": (0, 3)}, r"objects_per_scene is \(0, 3\)"),
        ({"objects_per_scene": (1, 9)}, r"most <= n_way \(5\)"),
        ({"object_px": (40, 20)}, r"object_px is \(40, 20\); expected 4 <= smallest <= largest"),
        ({"first_object": 999_990}, "objects 999990 to 1000029 of a split"),
    ],
)
def test_a_config_that_cannot_work_is_refused_by_field(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(SMALL, **change)


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match="split is 'test'; expected one of"):
        SceneEpisodes(replace(SMALL, split="test"))


def test_episodes_outside_the_epoch_and_negative_epochs_are_refused():
    dataset = SceneEpisodes(SMALL)
    with pytest.raises(IndexError, match="episode 4: an epoch has 4"):
        dataset[4]
    with pytest.raises(ConfigError, match="epochs count from 0"):
        dataset.set_epoch(-1)
    with pytest.raises(ConfigError, match="episodes is 0"):
        SceneEpisodes(replace(SMALL, episodes=0))
    with pytest.raises(ConfigError, match="seed is -1"):
        SceneEpisodes(replace(SMALL, seed=-1))
