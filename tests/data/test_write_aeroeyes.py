"""Procedural videos: the ordinary reader reads them, and they are the same to the byte."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from surefoot.data import (
    AeroEyes,
    SyntheticScenes,
    WorldConfig,
    synthetic_video,
    synthetic_world,
    write_aeroeyes,
)
from surefoot.data.synthetic_world import World
from surefoot.errors import ConfigError, UsageError

SMALL = WorldConfig(distractors=2, object_px=(20, 30), grounds=2, objects=30)


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
    }


def test_a_seed_gives_the_same_files_to_the_byte_and_another_seed_others(tmp_path):
    sets = [
        write_aeroeyes(tmp_path / name, videos=2, frames=4, size=64, seed=seed, world=SMALL)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    first, again, other = map(digests, sets)
    assert len(first) == 2 * (4 + 3) + 1
    assert first == again
    assert set(first) == set(other)
    assert not set(first.values()) & set(other.values())


def test_splits_show_different_objects_on_different_ground(tmp_path):
    one, two = (
        digests(write_aeroeyes(tmp_path / split, videos=2, frames=4, size=64, split=split))
        for split in ("calibration", "validation")
    )
    assert not set(one.values()) & set(two.values())


def test_the_reader_gives_back_the_boxes_that_were_drawn(tmp_path):
    """Written lossless, the frames and boxes read are those of the world itself."""
    world = WorldConfig(distractors=2, grounds=1, objects=3, image_format="png")
    root = write_aeroeyes(tmp_path / "set", videos=1, frames=16, size=96, seed=5, world=world)
    (video,) = AeroEyes.open(root).videos
    entries = json.loads((root / "annotations" / "annotations.json").read_text())
    written = {
        box["frame"]: [box[c] for c in ("x1", "y1", "x2", "y2")]
        for group in entries[0]["annotations"]
        for box in group["bboxes"]
    }
    assert {frame: boxes.tolist()[0] for frame, boxes in video.boxes.items()} == written
    for index in range(16):
        file = root / "samples" / video.id / "frames" / f"{index:06d}.png"
        assert np.array_equal(video.frame(index), np.asarray(Image.open(file)))


def world(seed: int, target: int) -> World:
    """Worlds of one seed differ in their target alone."""
    return World(
        np.random.default_rng(seed),
        SyntheticScenes(),
        seeds=[target, *range(100, 104)],
        ground=0,
        size=128,
        frames=16,
        object_px=(24, 40),
    )


@pytest.mark.parametrize("seed", range(4))
def test_another_target_changes_the_picture_within_the_boxes_of_the_two_and_up_to_their_sides(seed):
    one, other = world(seed, 1), world(seed, 2)
    checked = 0
    for index in range(16):
        (picture, first), (pictured, second) = one.frame(index), other.frame(index)
        changed = np.abs(picture.astype(int) - pictured).max(axis=-1) > 20
        if min(first.visible, second.visible) < 0.35:
            continue
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        around = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        low, high = np.minimum(first.box, second.box)[:2], np.maximum(first.box, second.box)[2:]
        assert np.abs(around - [*low, *high]).max() <= 2.5
        checked += 1
    assert checked >= 4


def test_ground_and_objects_move_as_one(monkeypatch):
    """A white disc lies on the ground under the target: it stays around it, and grows with it."""

    def disc(_, size):
        ground = Image.new("RGB", (size, size))
        ImageDraw.Draw(ground).circle((size / 2, size / 2), 30, fill="white")
        return ground

    monkeypatch.setattr(synthetic_world, "make_ground", disc)
    one = World(
        np.random.default_rng(1),
        SyntheticScenes(families=["ring"]),
        seeds=[0],
        ground=0,
        size=128,
        frames=32,
        object_px=(24, 24),
    )
    ratios = []
    for index in range(32):
        picture, placed = one.frame(index)
        white = picture.min(axis=-1) > 120
        rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
        if not len(rows) or min(rows[0], columns[0]) == 0 or max(rows[-1], columns[-1]) == 127:
            continue
        around = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        middles = (around[:2] + around[2:] - placed.box[:2] - placed.box[2:]) / 2
        assert np.abs(middles).max() <= 2.0
        ratios.append((placed.box[2] - placed.box[0]) / (around[2] - around[0]))
    assert len(ratios) >= 4
    assert max(ratios) - min(ratios) < 0.06


def test_no_target_is_a_distractor_in_another_video(tmp_path, monkeypatch):
    drawn: list[list[int]] = []

    def spying(*args, seeds, **options):
        drawn.append(seeds)
        return World(*args, seeds=seeds, **options)

    monkeypatch.setattr(synthetic_video, "World", spying)
    world = WorldConfig(distractors=3, objects=8, grounds=1)
    write_aeroeyes(tmp_path / "set", videos=5, frames=1, size=64, world=world)
    targets = {seeds[0] for seeds in drawn}
    assert len(targets) == 5
    assert all(set(seeds[1:]) == set(range(8)) - targets for seeds in drawn)


def test_most_frames_show_the_target_and_many_do_not(tmp_path):
    shares = []
    for seed in range(24):
        one = World(
            np.random.default_rng(seed),
            SyntheticScenes(),
            seeds=[seed],
            ground=0,
            size=64,
            frames=32,
            object_px=(8, 16),
        )
        shares.append(np.mean([one.frame(i)[1].visible >= 0.35 for i in range(32)]))
    assert 0.55 < np.mean(shares) < 0.72
    assert min(shares) > 0.35
    assert max(shares) < 0.9


def test_visible_intervals_are_groups_of_consecutive_frames(written):
    entries = json.loads((written / "annotations" / "annotations.json").read_text())
    groups = [[box["frame"] for box in g["bboxes"]] for e in entries for g in e["annotations"]]
    assert all(np.diff(group).tolist() == [1] * (len(group) - 1) for group in groups)
    per_video = [[box["bboxes"] for box in e["annotations"]] for e in entries]
    for video in per_video:
        ends = [group[-1]["frame"] for group in video[:-1]]
        starts = [group[0]["frame"] for group in video[1:]]
        assert all(start > end + 1 for end, start in zip(ends, starts, strict=True))


def test_a_video_is_written_in_about_a_second_at_most(tmp_path):
    start = time.process_time()
    write_aeroeyes(tmp_path / "set", videos=2)
    assert (time.process_time() - start) / 2 < 2.0


def test_an_interrupted_set_is_replaced_and_a_whole_one_is_not(tmp_path):
    partial = tmp_path / "set.partial" / "samples" / "Object9_0"
    partial.mkdir(parents=True)
    (tmp_path / "set").mkdir()
    root = write_aeroeyes(tmp_path / "set", videos=1, frames=2, size=64, world=SMALL)
    assert [video.name for video in (root / "samples").iterdir()] == ["Object0_0"]
    assert not partial.exists()
    with pytest.raises(UsageError, match=r"set is not empty; remove it or name another folder"):
        write_aeroeyes(root, videos=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"videos": 0}, "0 videos of 32 frames of 192 px, seed 0; expected at least 1, 1, 32"),
        ({"videos": 1, "size": 16}, "frames of 16 px"),
        ({"videos": 1, "seed": -1}, "seed -1"),
        ({"videos": 29, "world": SMALL}, "29 targets and 2 distractors need as many objects"),
        ({"videos": 1, "split": "test"}, "split is 'test'; expected one of"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        write_aeroeyes(tmp_path / "set", **settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distractors": -1}, "distractors -1"),
        ({"object_px": (30, 20)}, r"object_px is \(30, 20\); expected 4 <= smallest"),
        ({"image_format": "gif"}, "image_format is 'gif'; expected 'jpg' or 'png'"),
    ],
)
def test_a_world_that_cannot_be_is_refused_by_field(change, message):
    with pytest.raises(ConfigError, match=message):
        WorldConfig(**change)
