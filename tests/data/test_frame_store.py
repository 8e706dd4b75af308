"""Frames on disk are the frames of the video, within a budget, whoever was killed while writing."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_video_episodes import CONFIG, assert_same
from torch.utils.data import DataLoader

from surefoot.data import AeroEyes, FrameStore, VideoEpisodes, letterbox
from surefoot.data.frame_file import FrameFile, content_of
from surefoot.errors import ConfigError, DataError

RAW = 64 * 64 * 3
"""Bytes of a frame of the written videos at 64 pixels."""
VIDEOS, FRAMES = 5, 24
TABLE = 4096 + 24 * FRAMES


def budget(frames: float) -> float:
    """MB for so many frames of the written videos, and the tables."""
    return (VIDEOS * TABLE + frames * RAW) / 1e6


def build(root: Path, folder: Path, **settings) -> tuple[FrameStore, list[str]]:
    said: list[str] = []
    how = {"size": 64, "budget_mb": 100, "say": said.append} | settings
    return FrameStore.build(folder, AeroEyes.open(root).videos, **how), said


def on_disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


@pytest.mark.parametrize("size", [64, 96, 150])
def test_raw_frames_are_those_of_the_video_to_the_bit(written, tmp_path, size):
    data = AeroEyes.open(written)
    store = FrameStore.build(tmp_path, data.videos, size=size, budget_mb=100)
    assert store.kept == store.frames == VIDEOS * FRAMES
    assert store.bytes == on_disk(tmp_path)
    for video in data.videos:
        for index, picture in enumerate(video.frames(range(video.frame_count))):
            square, place = letterbox(picture, size)
            kept = store.read(video.id, index)
            assert kept is not None
            assert np.array_equal(kept[0], square)
            assert kept[1] == place


def test_what_is_kept_of_a_frame_of_any_size_gives_its_square_again():
    random = np.random.default_rng(0)
    for _ in range(300):
        height, width, size = (int(n) for n in random.integers(1, 70, 3))
        picture = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        content = content_of(picture, size)
        assert content.nbytes <= picture.nbytes
        assert np.array_equal(letterbox(content, size)[0], letterbox(picture, size)[0])


@pytest.mark.parametrize("share", [1.0, 0.4, 0.0])
def test_episodes_are_the_same_with_a_store_and_without(written, tmp_path, share):
    config = replace(CONFIG, augment=True)
    store, _ = build(written, tmp_path, budget_mb=budget(share * VIDEOS * FRAMES))
    assert store.kept == pytest.approx(share * store.frames, abs=VIDEOS)
    plain = VideoEpisodes(AeroEyes.open(written), config)
    stored = VideoEpisodes(AeroEyes.open(written), config, store=store)
    for index in range(3):
        assert_same(stored[index], plain[index])


def test_workers_read_the_same_store(written, tmp_path):
    store, _ = build(written, tmp_path)
    plain = VideoEpisodes(AeroEyes.open(written), CONFIG)
    stored = VideoEpisodes(AeroEyes.open(written, cache_mb=0), CONFIG, store=store)
    assert len(pickle.dumps(store)) < 10_000
    for index, episode in enumerate(DataLoader(stored, batch_size=None, num_workers=2)):
        assert_same(episode, plain[index])


def test_what_is_kept_is_not_decoded_again(broken, tmp_path):
    store, said = build(broken, tmp_path)
    assert len(said) == VIDEOS
    assert "Object0_0: decoding 24 of 24 frames into " in said[0]
    episodes = VideoEpisodes(AeroEyes.open(broken, cache_mb=0), CONFIG, store=store)
    for frame in broken.glob("samples/*/frames/*"):
        frame.unlink()
    assert episodes[0].images.shape == (12, 3, 64, 64)


def test_a_second_build_decodes_nothing(written, tmp_path):
    first, _ = build(written, tmp_path)
    files = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    second, said = build(written, tmp_path)
    assert said == []
    assert str(second) == str(first) == "120 of 120 frames on disk, 1 MB"
    frames = {file for file in files if file.suffix == ".frames"}
    assert {f: f.stat().st_mtime_ns for f in frames} == {f: files[f] for f in frames}
    _, said = build(written, tmp_path, budget_mb=50)  # all frames still fit
    assert said == []


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
@pytest.mark.parametrize("megabytes", [0.0, 0.01, 0.05, 0.2, 0.6, 1.2])
def test_the_budget_is_kept_on_disk(written, tmp_path, megabytes, encoding):
    store, _ = build(written, tmp_path, budget_mb=megabytes, encoding=encoding)
    assert on_disk(tmp_path) == store.bytes <= megabytes * 1e6
    if store.kept < store.frames:
        assert str(store).endswith("MB; the others are decoded from their videos")


def test_frames_with_a_box_come_before_the_others(written, tmp_path):
    data = AeroEyes.open(written)
    present = sum(len(video.boxes) for video in data.videos)
    for wanted in (present // 2, present, present + 20):
        store, _ = build(written, tmp_path / str(wanted), budget_mb=budget(wanted) + 1e-5)
        shown, empty = _kept(store, data)
        assert wanted - VIDEOS <= shown + empty <= wanted
        assert empty == 0 if wanted <= present else shown == present
        if wanted < present:
            each = [_kept(store, data.subset([v.id]))[0] / len(v.boxes) for v in data.videos]
            assert min(each) > 0.3  # no video goes without


def _kept(store: FrameStore, data: AeroEyes) -> tuple[int, int]:
    counts = [0, 0]
    for video in data.videos:
        for index in range(video.frame_count):
            counts[index not in video.boxes] += store.read(video.id, index) is not None
    return counts[0], counts[1]


def test_jpeg_is_smaller_and_near(written, tmp_path):
    raw, _ = build(written, tmp_path / "raw", size=96)
    jpeg, _ = build(written, tmp_path / "jpeg", size=96, encoding="jpeg")
    assert jpeg.kept == raw.kept
    assert jpeg.bytes < 0.6 * raw.bytes
    for index in range(0, FRAMES, 5):
        near, exact = jpeg.read("Object1_0", index), raw.read("Object1_0", index)
        assert near[1] == exact[1]
        assert np.abs(near[0].astype(int) - exact[0]).mean() < 3


@pytest.mark.parametrize(
    "harm",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-100]),
        lambda file: file.write_bytes(file.read_bytes() + b"more"),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"\0" * 5000),
        lambda file: file.write_bytes(file.read_bytes()[:20] + b"}" + file.read_bytes()[21:]),
        lambda file: file.write_bytes(file.read_bytes()[:4100] + b"?" + file.read_bytes()[4101:]),
        Path.unlink,
    ],
    ids=["torn", "longer", "empty", "zeros", "header", "table", "gone"],
)
def test_a_file_that_is_not_whole_is_made_anew(written, tmp_path, harm):
    store, _ = build(written, tmp_path)
    expected = store.read("Object2_0", 7)[0]
    (file,) = tmp_path.glob("Object2_0*.frames")
    harm(file)
    assert FrameFile.open(file) is None
    again, said = build(written, tmp_path)
    assert len(said) == 1
    assert np.array_equal(again.read("Object2_0", 7)[0], expected)


def test_a_frame_that_is_damaged_is_decoded_from_the_video_and_said(written, tmp_path):
    store, _ = build(written, tmp_path)
    (file,) = tmp_path.glob("Object2_0*.frames")
    data = bytearray(file.read_bytes())
    data[TABLE + 7 * RAW + 5] ^= 1
    file.write_bytes(data)
    with pytest.warns(RuntimeWarning, match=r"Object2_0.*frame 7 cannot be read.*checksum.*Delete"):
        assert store.read("Object2_0", 7) is None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored = VideoEpisodes(AeroEyes.open(written), CONFIG, store=store)
        plain = VideoEpisodes(AeroEyes.open(written), CONFIG)
        for index in range(6):
            assert_same(stored[index], plain[index])
        shutil.rmtree(tmp_path)
        assert_same(stored[0], plain[0])


def test_another_video_under_the_name_is_decoded_anew(broken, tmp_path):
    store, _ = build(broken, tmp_path)
    before = store.read("Object0_0", 3)[0]
    samples = broken / "samples"
    shutil.rmtree(samples / "Object0_0" / "frames")
    shutil.copytree(samples / "Object1_0" / "frames", samples / "Object0_0" / "frames")
    later, said = build(broken, tmp_path)
    assert [line.split(":")[0] for line in said] == ["Object0_0"]
    assert np.array_equal(later.read("Object0_0", 3)[0], store.read("Object1_0", 3)[0])
    assert not np.array_equal(later.read("Object0_0", 3)[0], before)


def test_videos_of_one_name_in_two_data_sets_keep_a_file_each(written, broken, tmp_path):
    build(written, tmp_path / "store")
    _, said = build(broken, tmp_path / "store")
    assert len(said) == VIDEOS
    _, said = build(written, tmp_path / "store")
    assert said == []


def test_other_boxes_choose_other_frames_where_not_all_fit(broken, tmp_path):
    build(broken, tmp_path, budget_mb=budget(30))
    file = broken / "annotations" / "annotations.json"
    entries = json.loads(file.read_text())
    box = {"x1": 1, "y1": 1, "x2": 9, "y2": 9}
    entries[0]["annotations"] = [{"bboxes": [{"frame": i, **box} for i in range(8, 20)]}]
    file.write_text(json.dumps(entries))
    store, said = build(broken, tmp_path, budget_mb=budget(30))
    name = entries[0]["video_id"]
    assert any(line.startswith(f"{name}:") for line in said)
    kept = [i for i in range(FRAMES) if store.read(name, i) is not None]
    assert 3 < len(kept) < 12
    assert set(kept) <= set(range(8, 20))


def _killed(root: Path, folder: Path) -> None:
    count = 0

    def stop(line: str) -> None:
        nonlocal count
        count += 1
        if count == 3:
            os._exit(9)

    import surefoot.data.frame_store as module

    original = module.write_frame_file

    def torn(path, pictures, **how):
        def first_half():
            for number, pair in enumerate(pictures):
                if count == 2 and number == 5:
                    os._exit(9)
                yield pair

        return original(path, first_half(), **how)

    module.write_frame_file = torn
    FrameStore.build(folder, AeroEyes.open(root).videos, size=64, budget_mb=100, say=stop)


def test_a_build_that_is_killed_leaves_what_it_had_done_and_nothing_else(written, tmp_path):
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(written, tmp_path))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert len(list(tmp_path.glob("*.frames"))) == 1
    assert len(list(tmp_path.glob("*.partial"))) == 1
    store, said = build(written, tmp_path)
    assert len(said) == VIDEOS - 1
    assert store.kept == store.frames
    assert not list(tmp_path.glob("*.partial"))


def _build_and_count(root: Path, folder: Path, decoded) -> None:
    store = FrameStore.build(
        folder,
        AeroEyes.open(root).videos,
        size=64,
        budget_mb=100,
        say=lambda line: decoded.put(line),
    )
    decoded.put(f"kept {store.kept}")


def test_two_processes_that_build_at_once_decode_every_video_once(written, tmp_path):
    context = multiprocessing.get_context("fork")
    said = context.SimpleQueue()
    processes = [
        context.Process(target=_build_and_count, args=(written, tmp_path, said)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    lines = [said.get() for _ in range(VIDEOS + 3)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert said.empty()
    assert sorted(line.split(":")[0] for line in lines) == [
        *(f"Object{i}_0" for i in range(VIDEOS)),
        *["kept 120"] * 3,
    ]
    store, _ = build(written, tmp_path)
    plain = VideoEpisodes(AeroEyes.open(written), CONFIG)
    assert_same(VideoEpisodes(AeroEyes.open(written), CONFIG, store=store)[0], plain[0])


def test_a_video_that_ends_too_soon_is_kept_up_to_there(broken, tmp_path):
    frame = sorted((broken / "samples" / "Object3_0" / "frames").iterdir())[10]
    data = AeroEyes.open(broken)
    frame.write_bytes(frame.read_bytes()[:400])
    said: list[str] = []
    store = FrameStore.build(tmp_path, data.videos, size=64, budget_mb=100, say=said.append)
    assert store.kept == store.frames - 14
    assert any("Object3_0: kept up to there: unreadable image" in line for line in said)
    assert store.read("Object3_0", 9) is not None
    assert store.read("Object3_0", 10) is store.read("Object3_0", 99) is None
    assert store.read("nobody", 0) is None


def test_a_store_of_another_size_is_refused(written, tmp_path):
    store, _ = build(written, tmp_path)
    with pytest.raises(ConfigError, match="image_size is 80, but the store keeps frames of 64"):
        VideoEpisodes(AeroEyes.open(written), replace(CONFIG, image_size=80), store=store)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, "size 0 and budget_mb 100; expected a side of at least 1 pixel"),
        ({"budget_mb": -1}, "budget_mb -1; expected .* a finite budget of at least 0"),
        ({"encoding": "png"}, "encoding 'png'; expected one of raw, jpeg"),
    ],
)
def test_settings_that_cannot_work_are_refused(written, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        build(written, tmp_path, **settings)


def test_a_folder_that_cannot_be_written_to_is_named(written, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"Keeping decoded frames in .*file.*name another folder"):
        build(written, tmp_path / "file")


def test_real_clips_are_kept_to_the_bit(shared, tmp_path):
    root = shared / "data" / "video"
    if not root.is_dir():
        pytest.skip(f"no real clips at {root}")
    data = AeroEyes.open(root, cache_mb=0)
    data = data.subset([video.id for video in data.videos[:3]])
    store = FrameStore.build(tmp_path, data.videos, size=160, budget_mb=20)
    assert 0 < store.kept < store.frames
    assert on_disk(tmp_path) <= 20e6
    config = replace(CONFIG, image_size=160, augment=True)
    plain = VideoEpisodes(data, config)
    assert_same(VideoEpisodes(data, config, store=store)[1], plain[1])
    video = data.videos[0]
    hits = [(i, kept) for i in range(40) if (kept := store.read(video.id, i)) is not None]
    assert hits
    for (_, (square, place)), picture in zip(hits, video.frames([i for i, _ in hits]), strict=True):
        expected, expected_place = letterbox(picture, 160)
        assert torch.equal(torch.from_numpy(square), torch.from_numpy(expected))
        assert place == expected_place
