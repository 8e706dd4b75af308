"""What a trained detector is used for: boxes in three lines, drawn videos and pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from recipes.camouflage_runs import quiet, tiny
from recipes.refdet_runs import frames_in, one, photos, picture, two_steps
from surefoot import cli
from surefoot.checkpoint import CheckpointStore
from surefoot.data import AeroEyes
from surefoot.errors import CheckpointError, ConfigError, DataError, UsageError
from surefoot.journal import JournalReader
from surefoot.recipes.refdet import TrainConfig
from surefoot.recipes.refdet.drawing import COLORS, draw_sightings
from surefoot.recipes.refdet.engines import TorchEngine
from surefoot.recipes.refdet.finder import ReferenceDetector, Sightings
from surefoot.recipes.refdet.footage import Timing, VideoWriter, open_frames, timing_of
from surefoot.recipes.refdet.predict import PredictConfig, predict
from surefoot.recipes.refdet.written import submission


@pytest.fixture(scope="module")
def run(tiny_config: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_steps(tiny_config, tmp_path_factory.mktemp("trained") / "run")


def even(rate: int, count: int) -> Timing:
    return Timing(Fraction(rate), Fraction(1, rate), range(count))


def clip(path: Path, pictures: list[np.ndarray], rate: int) -> Path:
    height, width, _ = pictures[0].shape
    with VideoWriter(path, (width, height), even(rate, len(pictures))) as out:
        for each in pictures:
            out.write(each)
    return path


def test_three_lines_give_what_the_run_itself_measures(run: Path, videos: Path) -> None:
    detector = ReferenceDetector.load(run)
    video = AeroEyes.open(videos / "val").videos[0]
    references = detector.references([list(video.references)], ["it"])
    found = detector.find(video.frames([1, 4]), references, threshold=0.0)
    assert isinstance(detector.engine, TorchEngine)
    inner = detector.engine.detector
    (expected,) = inner.predict(video, [1, 4], inner.references([video]))
    for frame, sight in zip((1, 4), found, strict=True):
        np.testing.assert_allclose(sight.boxes[0], expected[frame][0], atol=1e-3)
        assert sight.scores[0] == pytest.approx(expected[frame][1], abs=1e-6)
        assert sight.objects.tolist() == [0]


def test_the_weights_and_the_threshold_are_those_that_were_measured(run: Path) -> None:
    detector = ReferenceDetector.load(run)
    best = CheckpointStore(run / "checkpoints").best()
    assert best is not None
    assert detector.source == f"{best.path} ({best.measured_on} weights)"
    (entry,) = [e for e in JournalReader(run / "journal.jsonl") if e.kind == "evaluation"]
    assert detector.calibrated
    assert detector.threshold == entry.number("threshold")
    assert ReferenceDetector.load(best.path).source == detector.source


def test_a_run_that_measured_nothing_says_so(
    run: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "checkpoints").symlink_to(run / "checkpoints")
    (bare / "config.json").write_text((run / "config.json").read_text())
    detector = ReferenceDetector.load(bare)
    assert (detector.calibrated, detector.threshold) == (False, 0.5)
    words = ["predict", "refdet", "--checkpoint", str(bare), "--references", str(photos(videos)[0])]
    words += ["--images", str(photos(videos)[1]), "--out", str(tmp_path / "o"), "--device", "cpu"]
    assert cli.main(words) == 0
    assert "has no threshold: its run held no videos out to measure on" in capsys.readouterr().out


def test_a_picture_of_any_size_gets_boxes_inside_it(run: Path, videos: Path) -> None:
    detector = ReferenceDetector.load(run, batch_size=2)
    references = detector.references([photos(videos)] * 2)
    sizes = [(20, 300), (301, 33), (64, 64)]
    given = [picture(height, width) for height, width in sizes]
    for (height, width), found in zip(
        sizes, detector.candidates(given, references, limit=4), strict=True
    ):
        assert found.boxes.shape == (2, 4, 4)
        assert found.boxes.min() >= 0
        assert (found.boxes.reshape(-1, 4).max(0) <= [width, height, width, height]).all()
        assert (np.diff(found.scores, axis=1) <= 0).all()


def test_an_object_is_the_same_whatever_else_is_asked_for(run: Path, videos: Path) -> None:
    detector = ReferenceDetector.load(run)
    files = photos(videos)
    together = detector.references([files, files[:1], files[1:]], ["three", "one", "two"])
    every = next(detector.candidates([picture()], together, limit=3))
    for row, own in enumerate((files, files[:1], files[1:])):
        alone = next(detector.candidates([picture()], detector.references([own]), limit=3))
        np.testing.assert_allclose(alone.scores[0], every.scores[row], atol=1e-5)
        np.testing.assert_allclose(alone.boxes[0], every.boxes[row], atol=1e-2)


def test_what_cannot_be_looked_at_or_for_is_refused(
    run: Path, videos: Path, tmp_path: Path
) -> None:
    detector = ReferenceDetector.load(run)
    with pytest.raises(UsageError, match="object '0' has no list of photos"):
        detector.references(["a.jpg"])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="0 objects and 0 names"):
        detector.references([])
    with pytest.raises(DataError, match=r"unreadable image .*none\.jpg"):
        detector.references([[tmp_path / "none.jpg"]])
    known = detector.references([photos(videos)])
    with pytest.raises(UsageError, match=r"shape \(4, 4\) and uint8; expected H W 3"):
        detector.find([np.zeros((4, 4), np.uint8)], known)
    with pytest.raises(CheckpointError, match=r"no weights 'swa'; it has"):
        ReferenceDetector.load(run, weights="swa")
    with pytest.raises(ConfigError, match=r"is no run folder, no checkpoint of one and no \.onnx"):
        ReferenceDetector.load(tmp_path)
    with pytest.raises(ConfigError, match="--batch-size 0"):
        ReferenceDetector.load(run, batch_size=0)


def test_a_run_of_the_other_program_is_named(tmp_path: Path) -> None:
    other = quiet(tiny(tmp_path / "other", epochs=1, stage1_epochs=0, max_steps=1))
    with pytest.raises(ConfigError, match="is a run of surefoot train camouflage; expected one"):
        ReferenceDetector.load(other)


@pytest.mark.parametrize("verb", ["predict", "eval", "export"])
def test_a_run_of_stage_1_that_compares_nothing_is_refused_with_the_way_on(
    verb: str, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "base"
    folder.mkdir()
    config = TrainConfig.for_stage(1)
    config.having(model=replace(config.model, classes=80)).save(folder / "config.json")
    more = {
        "predict": ["--references", str(photos(videos)[0]), "--video", "a.mp4", "--out", "b.mp4"],
        "eval": ["--data-root", str(videos / "val")],
        "export": ["--out", str(tmp_path / "a.onnx")],
    }
    assert cli.main([verb, "refdet", "--checkpoint", str(folder), *more[verb]]) == 2
    said = capsys.readouterr().err
    assert f"--checkpoint {folder}: is a run of stage 1 on labelled images" in said
    assert "knows its 80 classes" in said
    assert f"surefoot train refdet --stage 2 --checkpoint {folder}, and give that run" in said


def test_predict_draws_a_video_of_the_same_frames_and_writes_the_challenges_form(
    run: Path, videos: Path, tmp_path: Path
) -> None:
    source = clip(tmp_path / "odd.mp4", [picture(49, 81, seed) for seed in range(6)], rate=12)
    assert open_frames(source).size == (82, 50)
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(6):
        Image.fromarray(picture(49, 81, number)).save(frames / f"{number:06}.png")
    out = tmp_path / "new" / "drawn.mp4"
    config = PredictConfig(
        checkpoint=run, references=tuple(photos(videos)), video=frames, out=out, threshold=0.0,
        fps=12, device="cpu",
    )  # fmt: skip
    said = io.StringIO()
    done = predict(config, stream=said)
    shown, times = frames_in(out)
    assert len(shown) == 6
    assert shown[0].shape == (50, 82, 3)  # odd sides are made even
    np.testing.assert_allclose(times, np.arange(6) / 12, atol=1e-4)
    assert "Looking: 100% 6/6" in said.getvalue()
    (entry,) = json.loads(out.with_suffix(".json").read_text())
    assert entry["video_id"] == tmp_path.name  # frames/ is named by the folder it lies in
    (group,) = entry["detections"]
    assert [box["frame"] for box in group["bboxes"]] == list(range(6))
    assert all(isinstance(value, int) for box in group["bboxes"] for value in box.values())
    with out.with_suffix(".csv").open() as file:
        assert len(list(csv.DictReader(file))) == 6
    assert done.shown == {one(videos).name: 6}


def test_a_video_keeps_its_own_times(run: Path, videos: Path, tmp_path: Path) -> None:
    ticks = [0, 1, 2, 5, 9, 10]  # a variable rate
    source = tmp_path / "uneven.mp4"
    with VideoWriter(source, (64, 48), Timing(Fraction(10), Fraction(1, 10), ticks)) as out:
        for number in range(6):
            out.write(picture(48, 64, number))
    words = ["predict", "refdet", "--checkpoint", str(run), "--video", str(source), "--out"]
    words += [str(tmp_path / "out.mkv"), "--references", str(one(videos) / "object_images")]
    assert cli.main([*words, "--smooth", "viterbi", "--device", "cpu"]) == 0
    _, times = frames_in(tmp_path / "out.mkv")
    np.testing.assert_allclose(times, np.array(ticks) / 10, atol=1e-3)


def test_without_h264_the_video_is_mpeg4_and_without_both_that_is_said(tmp_path: Path) -> None:
    timing = even(25, 2)
    path = tmp_path / "a.mp4"
    with VideoWriter(path, (64, 48), timing, codecs=("no_such", "mpeg4")) as out:
        out.write(picture(48, 64))
        out.write(picture(48, 64))
    with av.open(path) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"
    assert timing_of(open_frames(path)).rate == 25
    with pytest.raises(ConfigError, match="PyAV has none of the encoders no_such here"):
        VideoWriter(path, (64, 48), timing, codecs=("no_such",))


def test_several_objects_each_have_a_name_a_colour_and_an_entry(
    run: Path, videos: Path, tmp_path: Path
) -> None:
    samples = sorted((videos / "val" / "samples").iterdir())
    homes = tuple(sample / "object_images" for sample in samples)
    out = tmp_path / "folder"
    frames = samples[0] / "frames"
    config = PredictConfig(
        checkpoint=run, references=homes, video=frames, out=out, threshold=0.0, device="cpu"
    )
    done = predict(config, stream=io.StringIO())
    assert list(done.shown) == [sample.name for sample in samples]
    entries = json.loads((out / "boxes.json").read_text())
    assert [entry["object"] for entry in entries] == list(done.shown)
    assert len(list(out.glob("*.jpg"))) == done.frames == 8


def test_pictures_are_drawn_into_a_folder_and_a_damaged_one_is_left_out(
    run: Path, videos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(picture(40, 60)).save(folder / "a.png")
    Image.fromarray(picture(90, 30)).save(folder / "a.jpg")
    (folder / "torn.jpg").write_bytes(b"\xff\xd8\xff no picture")
    config = PredictConfig(
        checkpoint=run, references=tuple(photos(videos)), images=(folder,), out=tmp_path / "out",
        threshold=0.0, device="cpu",
    )  # fmt: skip
    done = predict(config, stream=io.StringIO())
    assert [p for p in done.problems if "torn.jpg" in p] == list(done.problems) != []
    found = json.loads(done.boxes.read_text())
    assert [entry["image"] for entry in found] == ["a.png", "a-2.png"]
    with Image.open(tmp_path / "out" / "a-2.png") as image:
        assert image.size == (60, 40)
    assert set(found[0]["detections"][0]) == {"object", "score", "x1", "y1", "x2", "y2"}


def test_bad_input_to_predict_is_refused_with_what_to_do(
    run: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    empty, torn = tmp_path / "empty", tmp_path / "torn.mp4"
    empty.mkdir()
    torn.write_bytes(b"no video")
    frames, photo = str(one(videos) / "frames"), str(photos(videos)[0])
    out = str(tmp_path / "o.mp4")
    cases = [
        (["--references", "none.jpg", "--video", frames], "there is no such photo or folder"),
        (["--references", str(empty), "--video", frames], "there are no photos in it"),
        (["--references", photo, str(empty), "--video", frames], "photos and folders are mixed"),
        (["--references", str(torn), "--video", frames], "unreadable image"),
        (["--references", photo, "--video", str(torn)], "unreadable video"),
        (["--references", photo, "--video", str(tmp_path / "no")], "no such file or folder"),
        (["--references", photo, "--video", str(empty)], "no images in"),
        (["--references", photo, "--images", str(empty)], "need a folder, not a video"),
        (["--references", photo], "give either --video or --images"),
        (["--references", photo, "--video", out], "is the --video itself"),
        (["--references", photo, "--video", frames, "--threshold", "2"], "between 0 and 1"),
        (["--references", photo, "--video", frames, "--fps", "0"], "--fps 0.0: has to be above"),
        (["--references", photo, "--images", frames, "--smooth", "viterbi"], "no order in time"),
    ]
    for words, message in cases:
        given = ["predict", "refdet", "--checkpoint", str(run), "--out", out, "--device", "cpu"]
        assert cli.main([*given, *words]) == 2, words
        assert message in " ".join(capsys.readouterr().err.split()), words
        assert not Path(out).exists()
    with pytest.raises(ConfigError, match="there are no pictures there"):
        predict(
            PredictConfig(
                checkpoint=run, references=(photos(videos)[0],), images=(empty,), out=tmp_path / "x"
            )
        )


def test_intervals_are_groups_and_an_object_never_seen_has_an_empty_list() -> None:
    nothing = Sightings(boxes=np.zeros((0, 4)), scores=np.zeros(0), objects=np.zeros(0, np.int64))
    box = replace(
        nothing, boxes=np.array([[3.4, 3.4, 3.6, 9.0]]), scores=np.ones(1), objects=np.array([0])
    )
    found = submission("V", ["a", "b"], {0: box, 1: box, 2: nothing, 3: box})
    frames = [[b["frame"] for b in group["bboxes"]] for group in found[0]["detections"]]
    assert frames == [[0, 1], [3]]
    assert found[0]["detections"][0]["bboxes"][0] == {
        "frame": 0, "x1": 3, "y1": 3, "x2": 4, "y2": 9
    }  # fmt: skip
    assert found[1] == {"video_id": "V", "object": "b", "detections": []}


def test_a_box_is_drawn_around_what_is_in_it() -> None:
    grey = np.full((100, 120, 3), 90, np.uint8)
    box = np.array([[40.0, 40, 80, 70]])
    found = Sightings(boxes=box, scores=np.array([0.5]), objects=np.array([1]))
    drawn = draw_sightings(grey, found, ["a", "b"])
    assert (drawn[41:70, 41:80] == 90).all()
    color = tuple(int(COLORS[1][i : i + 2], 16) for i in (1, 3, 5))
    assert tuple(drawn[39, 60]) == color
    assert (grey == 90).all()


def test_a_real_clip_is_drawn_frame_by_frame(run: Path, shared: Path, tmp_path: Path) -> None:
    sample = shared / "data" / "video" / "samples" / "Wakeboarder_0"
    if not sample.is_dir():
        pytest.skip(f"no real clips at {sample}")
    config = PredictConfig(
        checkpoint=run, references=(sample / "object_images",), video=sample / "drone_video.mp4",
        out=tmp_path / "drawn.mp4", threshold=0.0, smooth="viterbi", device="cpu",
    )  # fmt: skip
    done = predict(config, stream=io.StringIO())
    assert done.frames == 67
    ours, theirs = timing_of(open_frames(done.out)), timing_of(open_frames(config.video))  # type: ignore[arg-type]
    assert ours.rate == theirs.rate == 10
    drawn, times = frames_in(done.out)
    assert (len(drawn), drawn[0].shape) == (67, (270, 480, 3))
    np.testing.assert_allclose(times, np.arange(67) / 10, atol=1e-3)
    entry = json.loads(done.boxes.read_text())[0]
    assert entry["video_id"] == "Wakeboarder_0"
