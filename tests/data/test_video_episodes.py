"""Episodes from videos: who meets whom, how many frames are empty, where the boxes are."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from surefoot.data import AeroEyes, EpisodeConfig, VideoEpisodes, letterbox
from surefoot.errors import ConfigError
from surefoot.shapes import Episode

CONFIG = EpisodeConfig(
    n_way=3, n_query=4, image_size=64, support_size=32, episodes=6, augment=False, guard_band=1
)


def assert_same(a: Episode, b: Episode) -> None:
    for field in fields(Episode):
        mine, other = getattr(a, field.name), getattr(b, field.name)
        same = torch.equal(mine, other) if isinstance(mine, torch.Tensor) else mine == other
        assert same, field.name


def rename(root: Path, names: dict[str, str]) -> AeroEyes:
    """The data set with videos renamed."""
    file = root / "annotations" / "annotations.json"
    entries = json.loads(file.read_text())
    for entry in entries:
        new = names[entry["video_id"]]
        shutil.move(root / "samples" / entry["video_id"], root / "samples" / new)
        entry["video_id"] = new
    file.write_text(json.dumps(entries))
    return AeroEyes.open(root)


def of_sample(name: str) -> tuple[str, int]:
    video, _, frame = name.partition("/frame ")
    return video, int(frame)


def test_episodes_have_the_promised_axes_types_and_ranges(written):
    episode = VideoEpisodes(AeroEyes.open(written), CONFIG)[0]
    assert episode.images.shape == (12, 3, 64, 64)
    assert episode.supports.shape == (3, 3, 3, 32, 32)
    for pictures in (episode.images, episode.supports):
        assert pictures.dtype == torch.float32
        assert 0 <= pictures.min() < pictures.max() <= 1
    count = len(episode.boxes)
    assert episode.boxes.dtype == torch.float32
    assert episode.boxes.shape == (count, 4)
    assert episode.box_image.dtype == episode.box_object.dtype == torch.int64
    assert episode.ignore.tolist() == [False] * count
    assert episode.box_object.tolist() == [int(image) // 4 for image in episode.box_image]
    frames = [of_sample(name)[1] for name in episode.sample_ids]
    assert all(frames[i : i + 4] == sorted(frames[i : i + 4]) for i in (0, 4, 8))


def test_pictures_and_boxes_are_those_of_the_frames_named(written):
    data = AeroEyes.open(written)
    videos = {video.id: video for video in data.videos}
    episode = VideoEpisodes(data, replace(CONFIG, image_size=80))[2]
    for image, name in enumerate(episode.sample_ids):
        video, frame = of_sample(name)
        square, place = letterbox(videos[video].frame(frame), 80)
        shown = (episode.images[image] * 255).round().permute(1, 2, 0).numpy()
        assert np.array_equal(shown, square)
        expected = place.apply(videos[video].boxes.get(frame, np.zeros((0, 4))))
        boxes = episode.boxes[episode.box_image == image].numpy()
        np.testing.assert_allclose(boxes, expected, atol=1e-4)


def test_photos_belong_to_the_object_of_their_row(written):
    data = AeroEyes.open(written)
    videos = {video.id: video for video in data.videos}
    episode = VideoEpisodes(data, CONFIG)[1]
    for number in range(3):
        video = videos[of_sample(episode.sample_ids[4 * number])[0]]
        for shot in range(3):
            square, _ = letterbox(video.read_reference(shot), 32)
            photo = (episode.supports[number, shot] * 255).round().permute(1, 2, 0).numpy()
            assert np.array_equal(photo, square)


@pytest.mark.parametrize("share", [0.0, 0.35, 0.6])
def test_the_share_of_empty_frames_is_the_one_asked_for(written, share):
    config = replace(CONFIG, background_share=share, n_query=5, episodes=60, n_way=5)
    dataset = VideoEpisodes(AeroEyes.open(written), config)
    empty = []
    for index in range(40):
        episode = dataset[index]
        empty.append(1 - len(episode.box_image.unique()) / len(episode.images))
    assert np.mean(empty) == pytest.approx(share, abs=0.05)


def test_every_video_shows_its_object_at_least_once(written):
    config = replace(CONFIG, background_share=1.0, n_query=2)
    episode = VideoEpisodes(AeroEyes.open(written), config)[0]
    assert episode.box_object.unique().tolist() == [0, 1, 2]


def test_empty_frames_keep_away_from_frames_with_a_box(written):
    data = AeroEyes.open(written)
    for band in (0, 2):
        config = replace(CONFIG, guard_band=band, background_share=0.7)
        dataset = VideoEpisodes(data, config)
        distances = []
        for index in range(6):
            for name in dataset[index].sample_ids:
                video_id, frame = of_sample(name)
                video = next(v for v in data.videos if v.id == video_id)
                distance = int(np.abs(video.present - frame).min())
                if distance and len(video.absent(band)) >= len(video.absent()) / 2:
                    distances.append(distance)
        assert distances
        assert min(distances) == band + 1


def test_a_band_that_would_leave_few_empty_frames_is_narrowed(written):
    config = replace(CONFIG, guard_band=50, background_share=0.5, n_way=5)
    episode = VideoEpisodes(AeroEyes.open(written), config)[0]
    assert len(episode.box_image.unique()) < len(episode.images)


def test_a_video_that_always_shows_its_object_gives_no_empty_frame(broken):
    file = broken / "annotations" / "annotations.json"
    entries = json.loads(file.read_text())
    for entry in entries:
        box = {"x1": 3, "y1": 3, "x2": 20, "y2": 20}
        entry["annotations"] = [{"bboxes": [{"frame": i, **box} for i in range(24)]}]
    file.write_text(json.dumps(entries))
    episode = VideoEpisodes(AeroEyes.open(broken), CONFIG)[0]
    assert episode.box_image.tolist() == list(range(12))


def test_videos_of_one_category_do_not_meet_while_categories_suffice(broken):
    names = ["Boat_0", "Boat_1", "Boat_2", "Car_0", "Backpack_red_0"]
    data = rename(broken, {f"Object{i}_0": name for i, name in enumerate(names)})
    dataset = VideoEpisodes(data, replace(CONFIG, episodes=40, n_query=1))
    met, seen = [], set()
    for index in range(40):
        videos = [of_sample(name)[0] for name in dataset[index].sample_ids]
        seen |= set(videos)
        met.append(sorted(video.rpartition("_")[0] for video in videos))
    assert met == [["Backpack_red", "Boat", "Car"]] * 40
    assert seen == set(names)
    unavoidable = VideoEpisodes(data, replace(CONFIG, n_way=4, n_query=1))[0]
    videos = {of_sample(name)[0] for name in unavoidable.sample_ids}
    assert len(videos) == 4
    assert {"Car_0", "Backpack_red_0"} < videos


def test_more_objects_than_videos_are_refused(written):
    with pytest.raises(
        ConfigError,
        match=r"n_way is 6, but .* has 5 videos.*Ask for fewer .*--n-way.*or add videos",
    ):
        VideoEpisodes(AeroEyes.open(written), replace(CONFIG, n_way=6))


def test_missing_photos_are_made_up_by_repeating_those_there_are(broken):
    for photo in broken.glob("samples/*/object_images/img_[23].jpg"):
        photo.unlink()
    supports = VideoEpisodes(AeroEyes.open(broken), CONFIG)[0].supports
    assert torch.equal(supports[:, 0], supports[:, 1])
    assert torch.equal(supports[:, 0], supports[:, 2])
    assert not torch.equal(supports[0, 0], supports[1, 0])


def test_an_episode_depends_on_seed_epoch_and_index_alone(written):
    config = replace(CONFIG, augment=True)
    first = VideoEpisodes(AeroEyes.open(written), config)
    second = VideoEpisodes(AeroEyes.open(written, cache_mb=0), config)
    second[3], second[0]
    torch.manual_seed(123)
    assert_same(first[1], second[1])
    second.set_epoch(4)
    assert first[1].sample_ids != second[1].sample_ids
    other = VideoEpisodes(AeroEyes.open(written), replace(config, seed=9))
    assert first[1].sample_ids != other[1].sample_ids


def test_workers_change_nothing(written):
    config = replace(CONFIG, augment=True)
    alone = VideoEpisodes(AeroEyes.open(written), config)
    shared = VideoEpisodes(AeroEyes.open(written), config)
    shared[0]
    loader = DataLoader(shared, batch_size=None, num_workers=2)
    for epoch in (0, 1):
        alone.set_epoch(epoch)
        shared.set_epoch(epoch)
        episodes = list(loader)
        assert len(episodes) == 6
        for index, episode in enumerate(episodes):
            assert_same(episode, alone[index])


def test_what_is_sent_to_a_spawned_worker_is_small_and_without_the_caches(written):
    dataset = VideoEpisodes(AeroEyes.open(written), CONFIG)
    before = len(ForkingPickler.dumps(dataset))
    dataset[0]
    assert len(dataset.dataset.videos[0]._cache) > 0
    assert len(ForkingPickler.dumps(dataset)) == before < 50_000


def test_augmented_boxes_stay_inside_and_the_hardly_visible_are_ignored(written):
    how = replace(CONFIG.augmentation, scale=(1.5, 2.5), shift=0.4)
    config = replace(CONFIG, augment=True, augmentation=how, background_share=0.0, episodes=40)
    dataset = VideoEpisodes(AeroEyes.open(written), config)
    episodes = [dataset[index] for index in range(20)]
    boxes = torch.cat([episode.boxes for episode in episodes])
    ignore = torch.cat([episode.ignore for episode in episodes])
    assert boxes.min() >= 0
    assert boxes.max() <= 64
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert 0 < ignore.float().mean() < 0.5
    assert len(boxes) < 20 * 12
    at_border = (boxes[:, :2].amin(1) == 0) | (boxes[:, 2:].amax(1) == 64)
    assert at_border[ignore].all()


def test_real_clips_give_episodes(shared):
    root = shared / "data" / "video"
    if not root.is_dir():
        pytest.skip(f"no real clips at {root}")
    dataset = VideoEpisodes(AeroEyes.open(root), replace(CONFIG, image_size=160, augment=True))
    episode = dataset[0]
    assert episode.images.shape == (12, 3, 160, 160)
    assert len({of_sample(name)[0] for name in episode.sample_ids}) == 3
    assert episode.box_object.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_query": 0}, "n_query is 0; at least 1"),
        ({"background_share": 1.2}, "background_share is 1.2; expected 0 to 1"),
        ({"guard_band": -1}, "guard_band is -1; at least 0"),
        ({"support_size": 0}, "support_size is 0; at least 1"),
    ],
)
def test_a_config_that_cannot_work_is_refused_by_field(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **change)
