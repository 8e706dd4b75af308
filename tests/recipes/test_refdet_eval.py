"""Scores of a trained detector: thresholds from elsewhere, controls, files of every frame."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from recipes.refdet_runs import two_steps
from surefoot import cli
from surefoot.data import AeroEyes, Video
from surefoot.errors import ConfigError
from surefoot.recipes.refdet import TrainConfig
from surefoot.recipes.refdet.engines import TorchEngine
from surefoot.recipes.refdet.evaluate import EvalConfig, evaluate_detector, print_report
from surefoot.recipes.refdet.finder import ReferenceDetector
from surefoot.recipes.refdet.measured_videos import (
    OWN,
    STRANGER,
    Looked,
    best_threshold,
    figures,
    look,
)
from surefoot.recipes.refdet.validate import calibrate, evaluate


@pytest.fixture(scope="module")
def run(tiny_config: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_steps(tiny_config, tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture
def data(videos: Path) -> AeroEyes:
    return AeroEyes.open(videos / "train")


def known(video: Video, sure: float = 0.9, low: float = 0.2) -> Looked:
    """As a detector sees it that knows the truth; it says a little in empty frames, too."""
    frames = np.arange(video.frame_count)
    boxes = np.tile([0.0, 0.0, 5.0, 5.0], (1, len(frames), 1, 1))
    scores = np.full((1, len(frames), 1), low)
    for frame, truth in video.boxes.items():
        boxes[0, frame, 0], scores[0, frame, 0] = truth[0], sure
    return Looked(video, frames, (OWN,), boxes, scores)


def test_a_perfect_detector_measures_one(data: AeroEyes) -> None:
    seen = [known(video) for video in data.videos]
    level = best_threshold(seen, smooth=False)
    assert level == 0.9
    found = figures([one.decided(level, smooth=False) for one in seen])
    assert found.st_iou == pytest.approx(1.0)
    assert found.map50_95 == pytest.approx(1.0)
    assert (found.precision, found.recall, found.fires_present) == (1.0, 1.0, 1.0)
    assert found.fires_empty == 0.0
    low = figures([one.decided(0.1, smooth=False) for one in seen])
    shown = sum(len(video.boxes) for video in data.videos)
    assert low.precision == pytest.approx(shown / sum(v.frame_count for v in data.videos))
    assert low.fires_empty == 1.0


def test_it_measures_what_training_measures(run: Path, data: AeroEyes) -> None:
    detector = ReferenceDetector.load(run)
    assert isinstance(detector.engine, TorchEngine)
    inner = detector.engine.detector
    first, *rest = data.videos
    seen = [look(detector, video, {OWN: list(video.references)}) for video in rest]
    level = best_threshold(seen, smooth=False)
    assert level == pytest.approx(calibrate(inner, data.subset(v.id for v in rest), 0), abs=1e-6)
    pairs = zip(rest, reversed(rest), strict=True)
    strange = [
        look(detector, one, {OWN: list(one.references), STRANGER: list(other.references)})
        for one, other in pairs
    ]
    for share in (1.0, 0.4, 0.0):
        quiet = best_threshold(strange, smooth=False, stranger_share=share)
        same = calibrate(inner, data.subset(v.id for v in rest), 0, stranger_share=share)
        assert quiet == pytest.approx(same, abs=1e-6)
    expected = evaluate(inner, [first], threshold=level, stranger=rest[0])
    own, swapped = list(first.references), list(rest[0].references)
    looked = look(detector, first, {OWN: own, "other": swapped})
    for row, right in enumerate((expected.right, expected.swapped)):
        found = figures([looked.decided(level, smooth=False, row=row)])
        assert found.st_iou == pytest.approx(right.st_iou, abs=1e-4)
        assert found.map50 == pytest.approx(right.map50, abs=1e-4)
        assert found.recall == right.recall
        assert found.fires_empty == right.false_alarms


def test_smoothing_is_calibrated_with_its_own_paths(data: AeroEyes) -> None:
    seen = [known(video, sure=0.7, low=0.05) for video in data.videos]
    plain = best_threshold(seen, smooth=False)
    level = best_threshold(seen, smooth=True)
    best = np.mean([one.decided(level, smooth=True).st_iou for one in seen])
    assert best >= np.mean([one.decided(plain, smooth=True).st_iou for one in seen])


def test_eval_writes_the_tables_and_every_frame(
    run: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    words = ["eval", "refdet", "--checkpoint", str(run), "--data_root", str(videos / "val")]
    words += ["--calibration-data-root", str(videos / "train"), "--out", str(out)]
    assert cli.main([*words, "--smooth", "viterbi", "--device", "cpu"]) == 0
    said = capsys.readouterr().out
    for row in (OWN, "of another object", "plain noise", "plain grey"):
        assert row in said
    assert "Threshold chosen on 3 calibration videos" in " ".join(said.split())
    scores = json.loads((out / "scores.json").read_text())
    assert len(set(scores["thresholds"].values())) == 1
    own = scores["figures"][OWN]
    assert own["st_iou"] == pytest.approx(np.mean(list(own["per_video"].values())))
    assert scores["unfair"] >= 0
    with (out / "frames.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 2 * 8  # kinds of references, videos, frames
    given = [r["given"] == "1" for r in rows if r["references"] == OWN and r["iou"]]
    assert np.mean(given) == pytest.approx(own["fires_present"])
    on = [r["given"] == "1" and float(r["iou"]) >= 0.5 for r in rows if r["references"] == OWN]
    assert np.mean(on) == pytest.approx(own["recall"])  # all of these frames show the object
    assert own["fires_empty"] is None  # JSON has no NaN


def test_left_out_each_video_gets_the_threshold_of_the_others(run: Path, videos: Path) -> None:
    config = EvalConfig(
        checkpoint=run, data_root=videos / "train", leave_one_out=True, device="cpu", frames=6
    )
    report = evaluate_detector(config, stream=io.StringIO())
    detector = ReferenceDetector.load(run)
    data = AeroEyes.open(videos / "train")
    seen = [look(detector, v, {OWN: list(v.references)}, 6) for v in data.videos]
    for number, video in enumerate(data.videos):
        others = seen[:number] + seen[number + 1 :]
        expected = best_threshold(others, smooth=False)
        assert report.thresholds[video.id] == pytest.approx(expected, abs=1e-6)
    assert report.chosen == "for each video on the 2 others"
    text = io.StringIO()
    print_report(report, stream=text)
    assert data.videos[0].id in text.getvalue()


def test_where_the_threshold_comes_from_is_said(run: Path, videos: Path) -> None:
    config = EvalConfig(checkpoint=run, data_root=videos / "val", device="cpu", frames=2)
    report = evaluate_detector(config, stream=io.StringIO())
    assert report.chosen == "by the run itself, on its calibration videos"
    assert set(report.thresholds.values()) == {ReferenceDetector.load(run).threshold}
    name = AeroEyes.open(videos / "train").videos[1].id
    config = EvalConfig(
        checkpoint=run, data_root=videos / "train", held_out=(name,), device="cpu", frames=2,
        calibration_frames=3,
    )  # fmt: skip
    report = evaluate_detector(config, stream=io.StringIO())
    assert report.chosen == "on 2 calibration videos"
    assert list(report.videos) == [name]
    assert "of another object" in report.figures  # a calibration video's, for want of another


def test_settings_that_cannot_work_are_refused(run: Path, videos: Path) -> None:
    root = videos / "train"
    with pytest.raises(ConfigError, match="each say where the threshold comes from"):
        EvalConfig(checkpoint=run, data_root=root, threshold=0.5, leave_one_out=True)
    with pytest.raises(ConfigError, match="--threshold -1: has to be between 0 and 1"):
        EvalConfig(checkpoint=run, data_root=root, threshold=-1)
    with pytest.raises(ConfigError, match=r"--calibration-frames -1: has to be 0 \(all\) or more"):
        EvalConfig(checkpoint=run, data_root=root, calibration_frames=-1)
    name = AeroEyes.open(root).videos[0].id
    alone = EvalConfig(
        checkpoint=run, data_root=root, held_out=(name,), leave_one_out=True, device="cpu"
    )
    with pytest.raises(ConfigError, match="at least two are needed"):
        evaluate_detector(alone)
