"""Measuring: boxes in the frames' own pixels, a threshold from elsewhere, the swapped control."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from surefoot.data import AeroEyes, Video
from surefoot.models import RefDet, RefDetConfig
from surefoot.recipes.refdet.validate import (
    Detector,
    Predictions,
    calibrate,
    evaluate,
    frames_of,
    overlap,
)


class Oracle(Detector):
    """Knows the truth of a video's own object, and is ``shift`` pixels off.

    Where the object is absent it gives a box with a low score, as a trained detector does; asked
    for another object, it gives that score everywhere.
    """

    shift = 0.0

    def references(self, videos: Sequence[Video]) -> Any:
        return [video.id for video in videos]

    def predict(self, video: Video, frames: Sequence[int], references: Any) -> list[Predictions]:
        return [
            {frame: self._one(video, frame, asked == video.id) for frame in frames}
            for asked in references
        ]

    def _one(self, video: Video, frame: int, right: bool) -> tuple[np.ndarray, float]:
        if right and frame in video.boxes:
            return video.boxes[frame][0].astype(np.float64) + self.shift, 0.9
        return np.array([0.0, 0.0, 5.0, 5.0]), 0.2


def oracle() -> Oracle:
    model = RefDet(RefDetConfig.pocket())
    return Oracle(model=model, device=torch.device("cpu"), image_size=64, support_size=32)


@pytest.fixture
def data(videos: Path) -> AeroEyes:
    return AeroEyes.open(videos / "train")


def test_a_perfect_detector_measures_one_and_nothing_when_asked_for_another(
    data: AeroEyes,
) -> None:
    threshold = calibrate(oracle(), data, 0)
    assert 0.2 < threshold <= 0.9
    measured = evaluate(oracle(), data.videos, threshold=threshold)
    assert measured.right.st_iou == pytest.approx(1.0)
    assert (measured.right.recall, measured.right.false_alarms) == (1.0, 0.0)
    assert measured.right.map50 == pytest.approx(1.0)
    assert set(measured.right.per_video) == {video.id for video in data.videos}
    assert measured.swapped.st_iou == 0.0


def test_the_threshold_is_raised_until_strangers_stay_unseen(data: AeroEyes) -> None:
    free = calibrate(oracle(), data, 0)
    for share in (0.5, 0.1):
        level = calibrate(oracle(), data, 0, stranger_share=share)
        assert level >= free
        assert evaluate(oracle(), data.videos, threshold=level).swapped.fires <= share
    alone = data.subset([data.videos[0].id])
    assert calibrate(oracle(), alone, 0, stranger_share=0.0) == calibrate(oracle(), alone, 0)


def test_a_threshold_that_is_too_low_costs_a_frame_for_every_false_alarm(data: AeroEyes) -> None:
    measured = evaluate(oracle(), data.videos, threshold=0.1)
    assert measured.right.false_alarms == 1.0
    expected = np.mean([len(v.boxes) / v.frame_count for v in data.videos])
    assert measured.right.st_iou == pytest.approx(float(expected))


def test_a_detector_that_is_off_loses_overlap_and_recall(data: AeroEyes) -> None:
    off = oracle()
    object.__setattr__(off, "shift", 100.0)
    measured = evaluate(off, data.videos, threshold=0.5)
    assert (measured.right.st_iou, measured.right.recall) == (0.0, 0.0)


def test_one_video_alone_is_controlled_with_a_strangers_references(data: AeroEyes) -> None:
    first, second, _ = data.videos
    alone = evaluate(oracle(), [first], threshold=0.5, stranger=second)
    assert (alone.right.st_iou, alone.swapped.st_iou) == (pytest.approx(1.0), 0.0)


def test_a_video_that_always_shows_its_object_has_no_false_alarm_rate(data: AeroEyes) -> None:
    video = data.videos[0]
    video.boxes = {f: np.array([[1.0, 1, 9, 9]], np.float32) for f in range(video.frame_count)}
    measured = evaluate(oracle(), [video], threshold=0.5, stranger=data.videos[1])
    assert np.isnan(measured.right.false_alarms)


def test_boxes_come_back_in_the_pixels_of_the_frame(
    data: AeroEyes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def middle(prediction: Any) -> tuple[torch.Tensor, torch.Tensor]:
        batch, _, count = prediction.logits.shape
        box = torch.tensor([32.0, 32.0, 96.0, 200.0])  # of 128: reaches below the frame
        return box.expand(batch, count, 4), torch.full((batch, count), 0.7)

    monkeypatch.setattr("surefoot.recipes.refdet.validate.best_boxes", middle)
    detector = Detector(
        model=RefDet(RefDetConfig.pocket()),
        device=torch.device("cpu"),
        image_size=128,
        support_size=32,
        batch_size=3,
    )
    video, other, _ = data.videos
    found = detector.predict(video, [0, 2, 5, 7], detector.references([video, other]))
    assert [list(one) for one in found] == [[0, 2, 5, 7]] * 2
    box, score = found[1][7]
    assert box.tolist() == [16.0, 16.0, 48.0, 64.0]  # frames are 64 px
    assert score == pytest.approx(0.7)


def test_measuring_changes_nothing_in_the_model(data: AeroEyes) -> None:
    model = RefDet(RefDetConfig.pocket()).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    detector = Detector(model=model, device=torch.device("cpu"), image_size=64, support_size=32)
    evaluate(detector, data.videos[:2], threshold=0.5, frames=2)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_frames_are_spread_evenly_over_the_video(data: AeroEyes) -> None:
    video = data.videos[0]
    assert frames_of(video, 0) == list(range(8))
    assert frames_of(video, 99) == list(range(8))
    assert frames_of(video, 4) == [1, 3, 5, 7]


def test_overlap_with_several_true_boxes_is_the_largest() -> None:
    box = np.array([0.0, 0.0, 10.0, 10.0])
    assert overlap(box, np.array([[20.0, 20, 30, 30], [0, 0, 10, 20]])) == 0.5
    assert overlap(box, np.zeros((0, 4))) == 0.0
    assert overlap(np.zeros(4), np.zeros((1, 4))) == 0.0
