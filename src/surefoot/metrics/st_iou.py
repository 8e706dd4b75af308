r"""Spatio-temporal IoU of whole videos, as the AeroEyes challenge (Zalo AI 2025) defines it.

    ST-IoU = sum over frames in G \cap P of IoU(truth, prediction) / |G \cup P|

G are the frames with a truth box, P those with a predicted one. A box in a frame without the object
costs exactly as much as a missed frame. The score of a set of videos is the mean over videos.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from surefoot.errors import ConfigError, UsageError
from surefoot.metrics.arrays import iou_aligned, stack_boxes, stack_scores

__all__ = ["SpatioTemporalIoU", "StIoU", "quiet_from"]

Vector = NDArray[np.float64]
_ROUNDING = 1e-12


@dataclass(frozen=True, kw_only=True)
class StIoU:
    """Spatio-temporal IoU at one threshold, 0 to 1."""

    mean: float
    """Mean over videos."""
    per_video: Mapping[str, float]
    """Each video's own."""
    without_truth: tuple[str, ...]
    """Videos in which the object never shows: 0 by definition, whatever was predicted."""


@dataclass(frozen=True)
class _Curve:
    """A video, by ascending score of its predicted frames."""

    scores: Vector
    """P, ascending."""
    overlaps: Vector
    """P + 1: sum of IoU over the predictions from this place on."""
    extra: Vector
    """P + 1: predictions from this place on in frames without truth."""
    truth: int
    """Frames with truth."""

    def at(self, thresholds: Vector) -> Vector:
        """ST-IoU at each threshold."""
        place = np.searchsorted(self.scores, thresholds, side="left")
        union = self.truth + self.extra[place]
        return np.divide(
            self.overlaps[place], union, out=np.zeros(len(thresholds)), where=union > 0
        )


class SpatioTemporalIoU:
    """Collects videos, then scores them at any threshold.

    A video in which the object never shows and nothing is predicted has an empty union; the
    challenge counts it 0, and so does this. It is 0 with predictions as well: such a video says
    nothing about a detector and pulls every mean down by the same amount. It stays in the mean, for
    the number to be comparable, and ``StIoU.without_truth`` names it. Measure false alarms on such
    videos by counting them.

    >>> score = SpatioTemporalIoU()
    >>> score.add(
    ...     "Boat_0",
    ...     truth={0: [[0, 0, 10, 10]], 1: [[0, 0, 10, 10]]},
    ...     predicted={1: ([0, 0, 10, 5], 0.9), 2: ([0, 0, 10, 10], 0.4)},
    ... )
    >>> round(score.result().mean, 4), score.result(threshold=0.5).mean
    (0.1667, 0.25)
    >>> score.best_threshold()
    0.9
    """

    def __init__(self) -> None:
        self._videos: dict[str, _Curve] = {}

    def add(
        self,
        video_id: str,
        truth: Mapping[int, ArrayLike],
        predicted: Mapping[int, tuple[ArrayLike, ArrayLike]],
    ) -> None:
        """Add a video.

        Args:
            video_id: its name; each video comes once.
            truth: frame to boxes, n 4, x1 y1 x2 y2 in pixels of the frame. A frame of two boxes
                counts as one frame, and the box that fits the prediction best counts. A frame of
                no box is a frame without the object.
            predicted: frame to box (4) and score, in the same pixels. Of several boxes (n 4) and
                scores (n) the top score counts, the first of equal ones. Frames without a
                prediction are left out.

        Raises:
            UsageError: a video that is there already, a score that is NaN, a box that is not
                finite, or a truth box that is inverted or empty.
        """
        if video_id in self._videos:
            raise UsageError(f"ST-IoU: video {video_id!r} was added already; each comes once.")
        what = f"ST-IoU, video {video_id!r}"
        frames, boxes = stack_boxes(truth, f"{what}, truth")
        if flat := np.flatnonzero((boxes[:, 2:] <= boxes[:, :2]).any(axis=1)).tolist():
            raise UsageError(
                f"{what}: the truth box {boxes[flat[0]].tolist()} in frame {frames[flat[0]]} has "
                "no area; expected x1 < x2 and y1 < y2."
            )
        at, found, scores = _top(predicted, f"{what}, prediction")
        overlaps, false = _against(at, found, frames, boxes)
        order = np.argsort(scores, kind="stable")
        self._videos[video_id] = _Curve(
            scores[order],
            _sums_from(overlaps[order]),
            _sums_from(false[order]),
            len(np.unique(frames)),
        )

    def result(self, threshold: float = 0.0) -> StIoU:
        """Score with the predictions of at least ``threshold``.

        Args:
            threshold: lowest score that counts; ``-inf`` for every prediction.

        Raises:
            UsageError: no video was added, or the threshold is NaN.
        """
        self._need_videos()
        if np.isnan(threshold):
            raise UsageError("ST-IoU: the threshold is NaN; expected a score.")
        at = np.array([threshold], dtype=np.float64)
        per_video = {name: float(curve.at(at)[0]) for name, curve in self._videos.items()}
        return StIoU(
            mean=float(np.mean(list(per_video.values()))),
            per_video=per_video,
            without_truth=tuple(n for n, curve in self._videos.items() if not curve.truth),
        )

    def best_threshold(self, *, at_least: float = -math.inf) -> float:
        """The score threshold with the best mean ST-IoU; call it on calibration videos.

        Every score that occurs is tried. Of thresholds that do equally well the highest is taken,
        the one that gives the fewest boxes. Without a single prediction it is ``inf``.

        Args:
            at_least: the lowest that may be chosen, as :func:`quiet_from` gives it.

        Raises:
            UsageError: no video was added.
        """
        self._need_videos()
        tried = np.unique(np.concatenate([curve.scores for curve in self._videos.values()]))
        if not len(tried):
            return float("inf")
        if at_least > -math.inf:
            tried = np.unique(np.append(tried[tried >= at_least], at_least))
        total = np.zeros(len(tried))
        for curve in self._videos.values():
            total += curve.at(tried)
        equal = np.flatnonzero(total >= total.max() - _ROUNDING * len(self._videos))
        return float(tried[equal[-1]])

    def _need_videos(self) -> None:
        if not self._videos:
            raise UsageError("ST-IoU: no video was added; there is nothing to score.")


def quiet_from(scores: ArrayLike, share: float) -> float:
    """The lowest threshold that at most this share of the scores reaches.

    Of the best scores of frames in which the object cannot be, as with the references of another
    one, it is the threshold from which on a detector is quiet there.

    Args:
        scores: of frames.
        share: 0 to 1; with 1 every threshold will do, and it is ``-inf``.

    Raises:
        ConfigError: a share that is none.

    >>> quiet_from([0.1, 0.2, 0.3, 0.9], 0.25) > 0.3
    True
    """
    if not 0 <= share <= 1:
        raise ConfigError(f"quiet_from: share {share}; expected 0 to 1.")
    ordered = np.sort(np.asarray(scores, dtype=np.float64).reshape(-1))
    allowed = int(share * len(ordered) + 1e-9)
    if allowed >= len(ordered):
        return -math.inf
    return float(np.nextafter(ordered[len(ordered) - allowed - 1], math.inf))


def _top(
    predicted: Mapping[int, tuple[ArrayLike, ArrayLike]], what: str
) -> tuple[NDArray[np.int64], Vector, Vector]:
    """Frames, ascending, and the box and the score that stand for each."""
    frames, boxes = stack_boxes({f: box for f, (box, _) in predicted.items()}, what)
    scores = stack_scores({f: score for f, (_, score) in predicted.items()}, frames, what)
    order = np.lexsort((-scores, frames))  # stable: of equal scores the first stays first
    present, first = np.unique(frames[order], return_index=True)
    top = order[first]
    return present, boxes[top], scores[top]


def _against(
    at: NDArray[np.int64], found: Vector, frames: NDArray[np.int64], boxes: Vector
) -> tuple[Vector, NDArray[np.bool_]]:
    """Of each prediction: overlap with the best truth box of its frame, and whether it has none.

    ``at`` is ascending and has each frame once; ``frames`` may repeat.
    """
    overlaps, false = np.zeros(len(at)), ~np.isin(at, frames)
    hit = np.isin(frames, at)
    partner = np.searchsorted(at, frames[hit])
    np.maximum.at(overlaps, partner, iou_aligned(found[partner], boxes[hit]))
    return overlaps, false


def _sums_from(values: NDArray[Any]) -> Vector:
    """Sum of the values from each place to the end; one longer than ``values``."""
    return np.append(np.cumsum(values[::-1], dtype=np.float64)[::-1], 0.0)
