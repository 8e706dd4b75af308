"""ST-IoU against its definition, spelt out frame by frame, and against cases done by hand."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.errors import ConfigError, UsageError
from surefoot.metrics import SpatioTemporalIoU, quiet_from

BOX = [0, 0, 10, 10]
HALF = [0, 0, 10, 5]
FAR = [50, 50, 60, 60]

Truth = dict[int, Any]
Predicted = dict[int, tuple[Any, Any]]


def one(truth: Truth, predicted: Predicted, threshold: float = 0.0) -> float:
    score = SpatioTemporalIoU()
    score.add("v", truth, predicted)
    return score.result(threshold).mean


def iou(a: list[float], b: list[float]) -> float:
    wide = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = [max(0, x[2] - x[0]) * max(0, x[3] - x[1]) for x in (a, b)]
    inter = wide * high if min(areas) > 0 else 0
    return inter / (sum(areas) - inter) if inter else 0.0


def by_definition(truth: Truth, predicted: Predicted, threshold: float) -> float:
    """The challenge's definition, one frame after the other."""
    kept = {f: box for f, (box, score) in predicted.items() if score >= threshold}
    union = {f for f in truth if len(truth[f])} | set(kept)
    if not union:
        return 0.0
    shared = [
        max(iou(box, t) for t in truth[f]) for f, box in kept.items() if len(truth.get(f, []))
    ]
    return sum(shared) / len(union)


corner = st.integers(0, 6)
side = st.integers(1, 4)
true_box = st.tuples(corner, corner, side, side).map(
    lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]]
)
any_box = st.lists(st.integers(0, 6), min_size=4, max_size=4)  # inverted ones too
scores = st.sampled_from([0.0, 0.25, 0.5, 0.5, 0.75, 1.0])
frames = st.integers(0, 6)
truths = st.dictionaries(frames, st.lists(true_box, max_size=2), max_size=6)
predictions = st.dictionaries(frames, st.tuples(any_box, scores), max_size=6)
videos = st.lists(st.tuples(truths, predictions), min_size=1, max_size=4)


@given(videos, st.sampled_from([0.0, 0.3, 0.5, 0.75, 2.0]))
def test_the_score_is_the_definitions(
    many: list[tuple[Truth, Predicted]], threshold: float
) -> None:
    score = SpatioTemporalIoU()
    for name, (truth, predicted) in enumerate(many):
        score.add(f"{name}", truth, predicted)
    result = score.result(threshold)
    expected = [by_definition(truth, predicted, threshold) for truth, predicted in many]
    assert list(result.per_video.values()) == pytest.approx(expected, abs=1e-12)
    assert result.mean == pytest.approx(np.mean(expected), abs=1e-12)


@given(videos)
def test_no_threshold_does_better_than_the_best_one(many: list[tuple[Truth, Predicted]]) -> None:
    score = SpatioTemporalIoU()
    for name, (truth, predicted) in enumerate(many):
        score.add(f"{name}", truth, predicted)
    best = score.best_threshold()
    reached = score.result(best).mean
    for tried in (0.0, 0.25, 0.5, 0.75, 1.0, np.inf):
        mean = score.result(tried).mean
        assert mean <= reached + 1e-9
        # Of equal ones the highest that occurs.
        if tried > best and np.isfinite(tried) and mean > reached - 1e-9:
            assert not any(p[1] == tried for _, predicted in many for p in predicted.values())


def test_a_perfect_video_scores_one() -> None:
    assert one({3: [BOX], 4: [FAR]}, {3: (BOX, 0.9), 4: (FAR, 0.8)}) == 1.0


def test_a_missed_frame_and_a_false_one_cost_the_same() -> None:
    truth = {1: [BOX], 2: [BOX]}
    missed = one(truth, {1: (BOX, 0.9)})
    false = one({1: [BOX]}, {1: (BOX, 0.9), 2: (BOX, 0.9)})
    assert missed == false == 0.5


def test_a_box_beside_the_object_is_no_worse_than_none() -> None:
    truth = {1: [BOX], 2: [BOX]}
    assert one(truth, {1: (BOX, 0.9), 2: (FAR, 0.9)}) == one(truth, {1: (BOX, 0.9)})


def test_of_two_truth_boxes_the_better_one_counts_and_the_frame_counts_once() -> None:
    truth = {1: [FAR, HALF, BOX], 2: [BOX]}
    assert one(truth, {1: (BOX, 0.9), 2: (BOX, 0.9)}) == 1.0
    assert one(truth, {1: (HALF, 0.9)}) == 0.5


def test_of_several_boxes_of_a_frame_the_top_score_counts() -> None:
    truth = {1: [BOX]}
    assert one(truth, {1: ([FAR, BOX, HALF], [0.2, 0.9, 0.5])}) == 1.0
    assert one(truth, {1: ([HALF, BOX], [0.9, 0.9])}) == 0.5  # the first of equal ones
    assert one(truth, {1: (np.zeros((0, 4)), np.zeros(0))}) == 0.0
    assert one(truth, {1: ([HALF, BOX], [0.1, 0.6])}, threshold=0.5) == 1.0


def test_a_score_at_the_threshold_counts() -> None:
    truth, predicted = {1: [BOX]}, {1: (BOX, np.float32(0.3))}
    assert one(truth, predicted, threshold=float(np.float32(0.3))) == 1.0
    assert one(truth, predicted, threshold=0.31) == 0.0


def test_negative_scores_count_below_a_negative_threshold() -> None:
    truth, predicted = {1: [BOX]}, {1: (BOX, -3.0)}
    assert one(truth, predicted) == 0.0
    assert one(truth, predicted, threshold=-np.inf) == 1.0


@pytest.mark.parametrize("box", [[10, 10, 0, 0], [5, 0, 5, 10], [0, 0, 0, 0]])
def test_a_predicted_box_without_area_overlaps_nothing(box: list[float]) -> None:
    assert one({1: [BOX]}, {1: (box, 0.9)}) == 0.0


def test_an_empty_union_is_zero_and_its_video_is_named() -> None:
    score = SpatioTemporalIoU()
    score.add("seen", {1: [BOX]}, {1: (BOX, 0.9)})
    score.add("silent", {}, {})
    score.add("alarmed", {4: np.zeros((0, 4))}, {1: (BOX, 0.9)})
    result = score.result()
    assert result.per_video == {"seen": 1.0, "silent": 0.0, "alarmed": 0.0}
    assert result.mean == pytest.approx(1 / 3)
    assert result.without_truth == ("silent", "alarmed")


def test_the_threshold_is_chosen_for_the_mean_over_videos() -> None:
    score = SpatioTemporalIoU()
    score.add("long", {f: [BOX] for f in range(10)}, dict.fromkeys(range(10), (BOX, 0.2)))
    for name in "ab":
        score.add(name, {0: [BOX]}, {0: (BOX, 0.9)} | dict.fromkeys(range(1, 10), (BOX, 0.5)))
    assert score.best_threshold() == 0.9
    assert score.result(0.9).mean == pytest.approx(2 / 3)


def test_equal_scores_are_kept_or_dropped_together() -> None:
    score = SpatioTemporalIoU()
    score.add("v", {0: [BOX]}, {0: (BOX, 0.5), 1: (BOX, 0.5), 2: (BOX, 0.1)})
    assert score.best_threshold() == 0.5
    assert score.result(0.5).mean == 0.5


def test_without_predictions_the_best_threshold_is_to_give_none() -> None:
    score = SpatioTemporalIoU()
    score.add("v", {0: [BOX]}, {})
    assert score.best_threshold() == np.inf
    assert score.result(np.inf).mean == 0.0


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        ({1: [BOX]}, {7: (BOX, np.nan)}, "video 'v', prediction, frame 7: a score is NaN"),
        ({1: [BOX]}, {7: ([BOX, BOX], [0.5, np.nan])}, "frame 7: a score is NaN"),
        ({1: [BOX]}, {7: ([0, 0, np.nan, 1], 0.5)}, "frame 7: a box coordinate is NaN or Inf"),
        ({1: [BOX]}, {7: ([BOX, BOX], 0.5)}, "frame 7: 1 scores for 2 boxes"),
        ({1: [BOX]}, {7: ([0, 0, 1], 0.5)}, r"frame 7: boxes of shape \(3,\); expected M 4"),
        ({1: [BOX]}, {7: ([BOX * 2], 0.5)}, r"frame 7: boxes of shape \(1, 8\); expected M 4"),
        ({3: [[0, 0, np.inf, 1]]}, {}, "truth, frame 3: a box coordinate is NaN or Inf"),
        ({3: [BOX], 4: [[9, 9, 1, 1]]}, {}, r"truth box \[9.0, 9.0, 1.0, 1.0\] in frame 4 has no"),
    ],
)
def test_what_has_no_place_in_an_order_is_refused_by_video_and_frame(
    truth: Truth, predicted: Predicted, message: str
) -> None:
    score = SpatioTemporalIoU()
    with pytest.raises(UsageError, match=message):
        score.add("v", truth, predicted)
    score.add("v", {1: [BOX]}, {})  # nothing was added


def test_calls_that_cannot_be_right_are_refused() -> None:
    score = SpatioTemporalIoU()
    with pytest.raises(UsageError, match="no video was added"):
        score.result()
    with pytest.raises(UsageError, match="no video was added"):
        score.best_threshold()
    score.add("v", {}, {})
    with pytest.raises(UsageError, match="video 'v' was added already"):
        score.add("v", {}, {})
    with pytest.raises(UsageError, match="the threshold is NaN"):
        score.result(np.nan)


def test_a_long_video_is_scored_in_a_moment() -> None:
    box = np.array(BOX, dtype=np.float64)
    truth = dict.fromkeys(range(0, 30000, 3), box[None])
    predicted = {f: (box, f / 30_000) for f in range(30_000)}
    started = time.perf_counter()
    score = SpatioTemporalIoU()
    score.add("v", truth, predicted)
    assert score.best_threshold() == 0.0
    assert score.result().mean == pytest.approx(1 / 3)
    assert time.perf_counter() - started < 5.0  # about 0.1 s; a quadratic way takes minutes


@pytest.mark.parametrize("share", [0.0, 0.1, 0.34, 0.5, 1.0])
def test_quiet_from_is_the_lowest_threshold_that_so_few_scores_reach(share):
    scores = np.random.default_rng(0).random(50)
    level = quiet_from(scores, share)
    assert np.mean(scores >= level) <= share
    lower = scores[scores < level]
    if len(lower):
        assert np.mean(scores >= lower.max()) > share
    assert quiet_from([], 0.1) == -math.inf
    with pytest.raises(ConfigError, match=r"quiet_from: share 1\.5; expected 0 to 1"):
        quiet_from(scores, 1.5)


def test_the_best_threshold_is_no_lower_than_asked():
    score = SpatioTemporalIoU()
    box = [0.0, 0.0, 10.0, 10.0]
    score.add("a", {0: [box], 1: [box]}, {0: (box, 0.2), 1: (box, 0.8)})
    assert score.best_threshold() == 0.2
    assert score.best_threshold(at_least=0.5) == 0.8
    assert score.best_threshold(at_least=0.9) == 0.9
    assert score.result(0.9).mean == 0.0
