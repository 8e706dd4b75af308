"""The AeroEyes reader: what it gives, and how it says what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from surefoot.data import AeroEyes
from surefoot.errors import ConfigError, DataError, UsageError


def annotations(root: Path) -> list[dict]:
    return json.loads((root / "annotations" / "annotations.json").read_text())


def annotate(root: Path, entries: object) -> None:
    (root / "annotations" / "annotations.json").write_text(json.dumps(entries))


def change_first_box(root: Path, **corners: float) -> int:
    """Change the first box of Object0_0; returns its frame."""
    entries = annotations(root)
    box = entries[0]["annotations"][0]["bboxes"][0]
    box.update(corners)
    annotate(root, entries)
    return box["frame"]


def test_a_data_set_gives_its_videos_frames_boxes_and_photos(written):
    data = AeroEyes.open(written)
    assert [video.id for video in data.videos] == [f"Object{i}_0" for i in range(5)]
    video = data.videos[1]
    assert (video.frame_count, video.size, video.category) == (24, (96, 96), "Object1")
    assert len(video.references) == 3
    assert video.read_reference(0).shape == (64, 64, 3)
    file = written / "samples" / "Object1_0" / "frames" / "000007.jpg"
    assert np.array_equal(video.frame(7), np.asarray(Image.open(file)))
    assert repr(video) == "Video('Object1_0', 24 frames of 96x96)"


def test_all_groups_of_a_video_are_merged_frame_by_frame(broken):
    entries = annotations(broken)
    box = {"frame": 5, "x1": 1, "y1": 2, "x2": 3, "y2": 4}
    other = {"frame": 5, "x1": 10, "y1": 20, "x2": 30, "y2": 40}
    entries[2]["annotations"] = [{"bboxes": [box]}, {"bboxes": []}, {"bboxes": [other]}]
    annotate(broken, entries)
    video = AeroEyes.open(broken).videos[2]
    assert {frame: boxes.tolist() for frame, boxes in video.boxes.items()} == {
        5: [[1, 2, 3, 4], [10, 20, 30, 40]]
    }


def test_frames_without_a_box_are_kept_and_the_guard_band_widens_around_those_with_one(broken):
    entries = annotations(broken)
    box = {"frame": 10, "x1": 1, "y1": 2, "x2": 3, "y2": 4}
    entries[0]["annotations"] = [{"bboxes": [box, {**box, "frame": 1}]}]
    annotate(broken, entries)
    video = AeroEyes.open(broken).videos[0]
    assert video.present.tolist() == [1, 10]
    assert video.absent().tolist() == [0, *range(2, 10), *range(11, 24)]
    assert video.absent(3).tolist() == [5, 6, *range(14, 24)]


def test_samples_itself_and_annotations_beside_it_are_found(broken):
    shutil.move(broken / "annotations" / "annotations.json", broken / "annotations.json")
    assert len(AeroEyes.open(broken).videos) == 5
    assert len(AeroEyes.open(broken / "samples").videos) == 5
    elsewhere = shutil.move(broken / "annotations.json", broken.parent / "boxes.json")
    assert len(AeroEyes.open(broken, elsewhere).videos) == 5
    with pytest.raises(DataError, match=r"no annotations; looked for .*annotations\.json or "):
        AeroEyes.open(broken)


@pytest.mark.parametrize("cache_mb", [0, 0.06, 100])
def test_the_cache_changes_no_picture_and_keeps_to_its_budget(written, cache_mb):
    data = AeroEyes.open(written, cache_mb=cache_mb)
    video, order = data.videos[0], [0, 1, 2, 0, 5, 1, 0, 23, 5, 5]
    frames = written / "samples" / video.id / "frames"
    for index, picture in zip(order, video.frames(order), strict=True):
        assert np.array_equal(picture, np.asarray(Image.open(frames / f"{index:06d}.jpg"))), index
        assert video._cache.used <= cache_mb * 1e6
    assert len(video._cache) == {0: 0, 0.06: 2, 100: 5}[cache_mb]


def test_a_picture_of_the_cache_cannot_be_written_to(written):
    picture = AeroEyes.open(written).videos[0].frame(0)
    with pytest.raises(ValueError, match="read-only"):
        picture[:] = 0


def test_a_frame_a_video_does_not_have_is_refused(written):
    video = AeroEyes.open(written).videos[0]
    with pytest.raises(UsageError, match=r"Object0_0: frame 24 was asked for; .* frames 0 to 23"):
        video.frame(24)
    with pytest.raises(UsageError, match="frame -1 was asked for"):
        video.frames([3, -1])


def test_a_subset_holds_the_videos_named(written):
    data = AeroEyes.open(written)
    part = data.subset(["Object3_0", "Object1_0"])
    assert [video.id for video in part.videos] == ["Object1_0", "Object3_0"]
    with pytest.raises(ConfigError, match=r"has no videos Boat_0; it has Object0_0, .*Object4_0"):
        data.subset(["Boat_0", "Object1_0"])


def test_a_missing_folder_is_named():
    with pytest.raises(DataError, match=r"data set /no/where: no such folder; expected one that"):
        AeroEyes.open("/no/where")


def test_a_folder_without_samples_is_named(tmp_path):
    with pytest.raises(DataError, match=r"it holds no samples/ folder; expected samples/<video_id"):
        AeroEyes.open(tmp_path)


def test_a_data_set_without_videos_is_named(broken):
    shutil.rmtree(broken / "samples")
    (broken / "samples").mkdir()
    annotate(broken, [])
    with pytest.raises(DataError, match=r"no videos: .*samples holds no folders"):
        AeroEyes.open(broken)


@pytest.mark.parametrize("missing", ["entry", "boxes"])
def test_a_video_without_annotations_is_named(broken, missing):
    entries = annotations(broken)
    if missing == "entry":
        del entries[1]
    else:
        entries[1]["annotations"] = []
    annotate(broken, entries)
    with pytest.raises(
        DataError, match=r"1 problem\.\n.*Object1_0: no boxes in .*annotations\.json"
    ):
        AeroEyes.open(broken)


def test_annotations_for_a_missing_video_are_named(broken):
    shutil.rmtree(broken / "samples" / "Object2_0")
    with pytest.raises(
        DataError,
        match=r"Object2_0: annotated in annotations\.json, but .*Object2_0 does not exist",
    ):
        AeroEyes.open(broken)


@pytest.mark.parametrize(
    ("corners", "message"),
    [
        (
            {"x1": 20, "y1": 5, "x2": 99, "y2": 30},
            r"box \(x1, y1, x2, y2\) = \(20, 5, 99, 30\) reaches outside the frame; the frame is "
            r"96 x 96 pixels",
        ),
        ({"x1": -4, "y1": 5, "x2": 9, "y2": 30}, r"\(-4, 5, 9, 30\) reaches outside the frame"),
        ({"x1": 96, "y1": 5, "x2": 96.5, "y2": 30}, r"\(96, 5, 96.5, 30\) reaches outside"),
        ({"x1": 30, "y1": 5, "x2": 20, "y2": 30}, r"\(30, 5, 20, 30\) is inverted or empty"),
        ({"x1": 20, "y1": 5, "x2": 20, "y2": 30}, r"\(20, 5, 20, 30\) is inverted or empty"),
        ({"x1": 20, "y1": 30, "x2": 25, "y2": 5}, r"\(20, 30, 25, 5\) is inverted or empty"),
        ({"x1": float("nan"), "y1": 3, "x2": 5, "y2": 5}, r"\(nan, 3, 5, 5\) is not finite"),
    ],
)
def test_a_box_that_cannot_be_is_named_with_video_frame_and_frame_size(broken, corners, message):
    frame = change_first_box(broken, **corners)
    with pytest.raises(DataError, match=rf"Object0_0 frame {frame}: .*{message}"):
        AeroEyes.open(broken)


def test_a_box_in_a_frame_the_video_does_not_have_is_named(broken):
    change_first_box(broken, frame=24)
    with pytest.raises(
        DataError, match="Object0_0: a box in frame 24, but the video has frames 0 to 23"
    ):
        AeroEyes.open(broken)


def test_a_box_that_passes_the_border_by_rounding_is_cut_there(broken):
    frame = change_first_box(broken, x1=-0.5, y1=0, x2=97, y2=96.4)
    boxes = AeroEyes.open(broken).videos[0].boxes[frame]
    assert boxes.tolist() == [[0, 0, 96, 96]]


def test_an_unreadable_photo_is_named(broken):
    photo = broken / "samples" / "Object4_0" / "object_images" / "img_2.jpg"
    photo.write_bytes(photo.read_bytes()[:700])
    with pytest.raises(DataError, match=r"Object4_0: unreadable image .*img_2\.jpg: .*truncated"):
        AeroEyes.open(broken)


def test_an_unreadable_frame_is_named(broken):
    frame = broken / "samples" / "Object4_0" / "frames" / "000003.jpg"
    frame.write_text("no image")
    with pytest.raises(
        DataError, match=r"Object4_0: unreadable image .*000003\.jpg: cannot identif"
    ):
        AeroEyes.open(broken)


def test_an_unreadable_video_is_named(broken):
    home = broken / "samples" / "Object4_0"
    shutil.rmtree(home / "frames")
    (home / "drone_video.mp4").write_text("no video")
    with pytest.raises(DataError, match=r"Object4_0: unreadable video .*drone_video\.mp4"):
        AeroEyes.open(broken)
    (home / "drone_video.mp4").unlink()
    with pytest.raises(
        DataError, match=r"Object4_0: no video; expected .*mp4 or a folder .*frames"
    ):
        AeroEyes.open(broken)


@pytest.mark.parametrize("folder_left", [True, False])
def test_a_video_without_photos_is_named(broken, folder_left):
    photos = broken / "samples" / "Object0_0" / "object_images"
    shutil.rmtree(photos)
    if folder_left:
        photos.mkdir()
        (photos / "notes.txt").write_text("none yet")
    with pytest.raises(
        DataError, match=r"Object0_0: no reference photos; expected some in .*images"
    ):
        AeroEyes.open(broken)


def test_all_problems_are_reported_together(broken):
    change_first_box(broken, x1=50, x2=40)
    shutil.rmtree(broken / "samples" / "Object1_0" / "object_images")
    shutil.rmtree(broken / "samples" / "Object2_0")
    with pytest.raises(DataError) as caught:
        AeroEyes.open(broken)
    said = str(caught.value)
    assert said.startswith(f"Reading the data set {broken}: 3 problems.\n")
    for part in ("Object0_0 frame", "Object1_0: no reference photos", "Object2_0: annotated in"):
        assert part in said
    assert caught.value.path == broken


def test_of_many_problems_the_first_twenty_and_their_number_are_told(broken):
    entries = annotations(broken)
    inverted = {"x1": 9, "y1": 2, "x2": 3, "y2": 4}
    entries[0]["annotations"] = [{"bboxes": [{"frame": i, **inverted} for i in range(24)]}]
    annotate(broken, entries)
    with pytest.raises(DataError) as caught:
        AeroEyes.open(broken)
    lines = str(caught.value).splitlines()
    assert lines[0].endswith("24 problems.")
    assert lines[-1] == "  and 4 more"
    assert len(lines) == 22


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", r"Reading annotations .*annotations\.json: .*line 1"),
        ('{"a": 1}', "the file holds a dict; expected a list of"),
        ('[{"video": "Boat_0"}]', r"entry 0: KeyError\('video_id'\); expected .\"video_id"),
        (
            '[{"video_id": "B", "annotations": [{"bboxes": [{"frame": 1.5, "x1": 1, "y1": 1, '
            '"x2": 2, "y2": 2}]}]}]',
            "frame 1.5 is not a whole number",
        ),
    ],
)
def test_annotations_of_another_form_are_refused(broken, text, message):
    (broken / "annotations" / "annotations.json").write_text(text)
    with pytest.raises(DataError, match=message):
        AeroEyes.open(broken)


def test_a_video_annotated_twice_is_named(broken):
    entries = annotations(broken)
    annotate(broken, [*entries, entries[0]])
    with pytest.raises(DataError, match="entry 5: Object0_0 is annotated twice; merge the two"):
        AeroEyes.open(broken)


def test_real_clips_open_and_decode_as_annotated(shared):
    root = shared / "data" / "video"
    if not root.is_dir():
        pytest.skip(f"no real clips at {root}")
    truth = {entry["video_id"]: entry["annotations"] for entry in annotations(root)}
    meta = json.loads((root / "meta.json").read_text())
    data = AeroEyes.open(root, cache_mb=1)
    assert {video.id for video in data.videos} == set(truth)
    for video in data.videos:
        annotated = [box["frame"] for group in truth[video.id] for box in group["bboxes"]]
        assert sorted(video.boxes) == sorted(annotated)
        assert sum(1 for _ in video.frames(range(video.frame_count))) == meta[video.id]["frames"]
        assert list(video.size) == meta[video.id]["size"]
        for number in range(len(video.references)):
            photo = video.read_reference(number)
            assert photo.ndim == 3
            assert min(photo.shape[:2]) >= 16
