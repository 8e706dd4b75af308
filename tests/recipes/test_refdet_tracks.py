"""The likeliest path: clean tracks stay, flickers go, single gaps are filled."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.errors import ConfigError, UsageError
from surefoot.metrics import SpatioTemporalIoU
from surefoot.recipes.refdet.candidates import best_candidates, overlaps
from surefoot.recipes.refdet.tracks import Smoothing, _costs, _worths, likely_tracks

HALF = np.array([0.5])


def moving(count: int, speed: float = 4.0, side: float = 20.0) -> np.ndarray:
    """T 1 4: a box that moves to the right and grows a little."""
    at = 10 + speed * np.arange(count)
    size = side * 1.01 ** np.arange(count)
    return np.stack([at, np.full(count, 50.0), at + size, 50 + size], axis=1)[:, None]


def shown(scores: np.ndarray, boxes: np.ndarray | None = None) -> list[int]:
    boxes = moving(len(scores)) if boxes is None else boxes
    track = likely_tracks(boxes, scores.reshape(len(scores), -1), HALF)
    return np.flatnonzero(track.scores[0] >= 0.5).tolist()


@given(
    st.lists(st.tuples(st.integers(3, 8), st.integers(3, 8)), min_size=1, max_size=4),
    st.floats(-15, 15),
    st.integers(0, 1000),
)
def test_a_clean_track_keeps_its_boxes_and_its_score(
    runs: list[tuple[int, int]], speed: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    there = np.concatenate([[True] * a + [False] * b for a, b in runs])
    boxes = np.tile(moving(len(there), speed), (1, 3, 1))
    boxes[:, 1:] += random.uniform(60, 300, (len(there), 2, 1))  # clutter beside it
    scores = random.uniform(0.01, 0.05, (len(there), 3))
    scores[there, 0] = random.uniform(0.8, 0.99, there.sum())
    for row in np.flatnonzero(~there):  # the best of an empty frame is clutter, anywhere
        boxes[row] = boxes[row, ::-1]
    order = np.argsort(-scores, axis=1)
    boxes = np.take_along_axis(boxes, order[..., None], 1)
    scores = np.take_along_axis(scores, order, 1)
    track = likely_tracks(boxes, scores, HALF)
    np.testing.assert_array_equal(track.scores[0] >= 0.5, there)
    np.testing.assert_array_equal(track.boxes[0][there], boxes[there, 0])
    truth = {f: boxes[f, 0] for f in np.flatnonzero(there).tolist()}
    score = SpatioTemporalIoU()
    score.add("v", truth, dict(enumerate(zip(track.boxes[0], track.scores[0], strict=True))))
    assert score.result(0.5).mean == pytest.approx(1.0)


@given(st.integers(1, 18), st.floats(0.5, 0.97))
def test_what_shows_in_one_frame_alone_is_dropped(at: int, score: float) -> None:
    scores = np.full(20, 0.02)
    scores[at] = score
    assert shown(scores) == []


@given(st.integers(3, 16), st.floats(0.0, 0.49))
def test_a_single_missing_frame_is_filled_where_the_object_must_be(at: int, score: float) -> None:
    boxes, scores = moving(20), np.full(20, 0.9)
    truth, scores[at] = boxes[at, 0].copy(), score
    boxes[at] = [300.0, 300, 310, 310]  # the detector looked elsewhere
    track = likely_tracks(boxes, scores[:, None], HALF)
    assert (track.scores[0] >= 0.5).all()
    assert overlaps(track.boxes[0][at][None], truth[None])[0, 0] > 0.95


def test_a_surer_box_elsewhere_for_one_frame_does_not_carry_the_track_away() -> None:
    boxes, scores = np.tile(moving(12), (1, 2, 1)), np.tile([0.8, 0.01], (12, 1))
    boxes[6, 0] = [400.0, 400, 420, 420]
    scores[6] = [0.95, 0.6]
    track = likely_tracks(boxes, scores, HALF)
    np.testing.assert_array_equal(track.boxes[0][6], boxes[6, 1])


def test_a_threshold_of_its_own_for_each_path_gives_what_each_alone_gives() -> None:
    random = np.random.default_rng(0)
    boxes = random.uniform(0, 50, (15, 3, 2)).repeat(2, axis=2)
    boxes[..., 2:] += 20
    scores = np.sort(random.uniform(0, 1, (15, 3)))[:, ::-1]
    levels = np.array([0.2, 0.5, 0.8])
    both = likely_tracks(boxes, scores, levels)
    for row, level in enumerate(levels):
        alone = likely_tracks(boxes, scores, levels[row : row + 1])
        np.testing.assert_array_equal(both.boxes[row], alone.boxes[0])
        np.testing.assert_array_equal(both.scores[row], alone.scores[0])
        assert ((alone.scores[0] >= level) | (alone.scores[0] < level)).all()
    given = [(both.scores[i] >= level).sum() for i, level in enumerate(levels)]
    assert given == sorted(given, reverse=True)


@given(st.integers(0, 10_000))
def test_the_path_is_the_best_of_all_paths(seed: int) -> None:
    """Against every path there is, counted out."""
    random = np.random.default_rng(seed)
    boxes = random.uniform(0, 60, (4, 2, 2)).repeat(2, axis=2)
    boxes[..., 2:] = boxes[..., :2] + random.uniform(5, 30, (4, 2, 2))
    scores, how = np.sort(random.uniform(0, 1, (4, 2)))[:, ::-1], Smoothing()
    frames = np.array([0, 1, 3, 4])
    track = likely_tracks(boxes, scores, HALF, frames=frames)
    first = boxes[:, 0]
    between = np.stack(
        [first[0], (first[0] * 2 + first[2]) / 3, (first[1] + first[3] * 2) / 3, first[3]]
    )
    every = np.concatenate([boxes, between[:, None]], axis=1)
    worth, cost = _worths(scores, HALF, how)[0], _costs(every, np.diff(frames), how)

    def value(path: tuple[int, ...]) -> float:
        changes = sum(cost[t, a, b] for t, (a, b) in enumerate(itertools.pairwise(path)))
        return sum(worth[t, state] for t, state in enumerate(path)) - changes

    best = max(itertools.product(range(4), repeat=4), key=value)
    assert [state < 3 for state in best] == (track.scores[0] >= 0.5).tolist()
    for t, state in enumerate(best):
        if state < 3:
            np.testing.assert_allclose(track.boxes[0][t], every[t, state])


def test_frames_far_from_each_other_are_judged_by_themselves() -> None:
    scores = np.array([0.1, 0.7, 0.1, 0.7, 0.1])
    boxes = moving(5)
    apart = likely_tracks(boxes, scores[:, None], HALF, frames=np.arange(5) * 100)
    assert np.flatnonzero(apart.scores[0] >= 0.5).tolist() == [1, 3]
    assert shown(scores) == []


def test_no_frames_and_few_frames_are_in_order() -> None:
    assert likely_tracks(np.zeros((0, 1, 4)), np.zeros((0, 1)), HALF).scores.shape == (1, 0)
    assert shown(np.array([0.9])) == [0]
    assert shown(np.array([0.9, 0.8])) == [0, 1]
    assert shown(np.zeros(3)) == []


def test_what_cannot_be_a_track_is_refused() -> None:
    boxes, scores = moving(3), np.full((3, 1), 0.5)
    with pytest.raises(UsageError, match=r"boxes are \(3, 4\); expected T K 4"):
        likely_tracks(boxes[:, 0], scores, HALF)
    with pytest.raises(UsageError, match=r"scores of \(2, 1\) and frames of \(3,\)"):
        likely_tracks(boxes, scores[:2], HALF)
    with pytest.raises(UsageError, match="a score or a threshold is NaN"):
        likely_tracks(boxes, scores * np.nan, HALF)
    with pytest.raises(UsageError, match="the frames do not ascend"):
        likely_tracks(boxes, scores, HALF, frames=np.array([0, 2, 1]))
    with pytest.raises(ConfigError, match=r"switch -1; has to be finite and 0 or more"):
        Smoothing(switch=-1)
    with pytest.raises(ConfigError, match=r"reach 0; has to be finite and above 0"):
        Smoothing(reach=0)


@given(st.integers(0, 10_000), st.integers(1, 7))
def test_suppression_keeps_what_torchvision_keeps(seed: int, limit: int) -> None:
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    random = np.random.default_rng(seed)
    boxes = random.uniform(0, 20, (2, 9, 4))
    boxes[..., 2:] = boxes[..., :2] + random.uniform(5, 15, (2, 9, 2))
    scores = random.permuted(np.linspace(0.1, 0.9, 18)).reshape(2, 9)
    found, given = best_candidates(boxes, scores, limit=limit, iou_threshold=0.4)
    for row in range(2):
        kept = ops.nms(torch.from_numpy(boxes[row]), torch.from_numpy(scores[row]), 0.4)[:limit]
        count = len(kept)
        np.testing.assert_array_equal(found[row, :count], boxes[row][kept.numpy()])
        np.testing.assert_array_equal(given[row, :count], scores[row][kept.numpy()])
        assert (given[row, count:] == 0).all()
