"""One object through a whole video: the likeliest path over the boxes that every frame offers.

A frame is in one of several states: one of its candidate boxes, a box between those of its
neighbours (for the single frame in which the detector saw nothing), or "the object is not there".
A path is worth the sum of what its states say for themselves, less what its changes cost:

    candidate i of frame t    logit(score) - logit(threshold)
    absent                    0
    from box a to box b       jump (1 - IoU) (1 - exp(-(d / reach)^2 - r^2)) / gap
    absent <-> there          switch / gap

with d the distance of the centres in units of the mean side, r = |log| of the ratio of the sides,
and gap the number of frames from one to the next. The best path is found exactly (Viterbi 1967,
"Error bounds for convolutional codes"), forwards and backwards, so that every frame also has its
margin: the worth of the best path that has a box there, less that of the best path that has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from surefoot.errors import ConfigError, UsageError

__all__ = ["Smoothing", "Tracks", "likely_tracks"]

Array = NDArray[np.float64]
_SURE = 1e-6


@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """What the changes of a path cost, in nats: 1 is a factor 2.7 in the odds of a score."""

    switch: float = 2.0
    """To appear, and to vanish. A box in one frame alone has to be worth twice that; an object is
    held through a frame in which its absence is worth less."""
    jump: float = 3.0
    """To be elsewhere at once; a box that moves by less costs less."""
    reach: float = 3.0
    """How far an object moves from frame to frame without that being a surprise, in its sides."""
    unseen: float = 1.0
    """To be between the boxes of the frames before and after, without a candidate there."""

    def __post_init__(self) -> None:
        if not 0 < self.reach < np.inf:
            raise ConfigError(f"Smoothing: reach {self.reach}; has to be finite and above 0.")
        for name in ("switch", "jump", "unseen"):
            value = getattr(self, name)
            if not 0 <= value < np.inf:
                raise ConfigError(f"Smoothing: {name} {value}; has to be finite and 0 or more.")


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """The box of every frame and how sure it is, once for each threshold."""

    boxes: Array
    """M T 4."""
    scores: Array
    """M T, 0 to 1: at least the threshold where the best path has a box, below it elsewhere."""


def likely_tracks(
    boxes: Array,
    scores: Array,
    thresholds: Array,
    *,
    frames: NDArray[np.int64] | None = None,
    smoothing: Smoothing | None = None,
) -> Tracks:
    """The likeliest path over the candidates of one object, for each of M thresholds.

    Args:
        boxes: T K 4, x1 y1 x2 y2 in pixels.
        scores: T K, 0 to 1; 0 where a frame has fewer candidates.
        thresholds: M scores at which "there" and "absent" are equally likely.
        frames: T, ascending: which frames of the video these are; consecutive ones where it is not
            given.
        smoothing: what changes cost.

    Raises:
        UsageError: shapes that do not fit each other, NaN, or frames that do not ascend.

    >>> seen = np.array([0.9, 0.9, 0.1, 0.9, 0.9, 0.1, 0.1, 0.1, 0.8, 0.1, 0.1])
    >>> box = np.tile([10.0, 10, 20, 20], (11, 1, 1))
    >>> track = likely_tracks(box, seen[:, None], np.array([0.5]))
    >>> (track.scores[0] >= 0.5).astype(int).tolist()  # the gap is filled, the flicker is gone
    [1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    """
    how = smoothing or Smoothing()
    boxes, scores = np.asarray(boxes, np.float64), np.asarray(scores, np.float64)
    at = np.arange(len(boxes)) if frames is None else np.asarray(frames)
    limits = np.asarray(thresholds, np.float64).reshape(-1)
    _check(boxes, scores, at, limits)
    count = len(boxes)
    if not count:
        return Tracks(boxes=np.zeros((len(limits), 0, 4)), scores=np.zeros((len(limits), 0)))
    boxes = np.concatenate([boxes, _between(boxes[:, 0], at)[:, None]], axis=1)
    worth = _worths(scores, limits, how)
    cost = _costs(boxes, np.diff(at), how)
    best = _forwards(worth, cost) + _backwards(worth, cost)  # M T S: best path through a state
    choice = best[..., :-1].argmax(-1)
    margin = np.take_along_axis(best, choice[..., None], -1)[..., 0] - best[..., -1]
    level = _logit(limits)[:, None]
    chance = 1 / (1 + np.exp(-np.clip(level + margin, -700, 700)))
    limit, below = limits[:, None], np.nextafter(limits, -np.inf)[:, None]
    return Tracks(
        boxes=boxes[np.arange(count), choice],
        scores=np.where(margin >= 0, np.maximum(chance, limit), np.minimum(chance, below)),
    )


def _check(boxes: Array, scores: Array, at: NDArray[np.int64], limits: Array) -> None:
    if boxes.ndim != 3 or boxes.shape[2] != 4 or not boxes.shape[1]:
        raise UsageError(f"tracks: boxes are {boxes.shape}; expected T K 4, with K at least 1.")
    if scores.shape != boxes.shape[:2] or at.shape != boxes.shape[:1]:
        raise UsageError(
            f"tracks: {boxes.shape[0]} frames of {boxes.shape[1]} boxes, but scores of "
            f"{scores.shape} and frames of {at.shape}; expected T K and T."
        )
    if np.isnan(scores).any() or np.isnan(limits).any() or not np.isfinite(boxes).all():
        raise UsageError("tracks: a score or a threshold is NaN, or a box is not finite.")
    if len(at) > 1 and (np.diff(at) <= 0).any():
        raise UsageError("tracks: the frames do not ascend; give them in their order, each once.")


def _logit(scores: Array) -> Array:
    sure = np.clip(scores, _SURE, 1 - _SURE)
    return np.log(sure) - np.log1p(-sure)


def _between(first: Array, at: NDArray[np.int64]) -> Array:
    """T 4: where the best boxes of the frames before and after let one expect a box."""
    if len(first) < 3:
        return first.copy()
    share = ((at[1:-1] - at[:-2]) / (at[2:] - at[:-2]))[:, None]
    middle = first[:-2] * (1 - share) + first[2:] * share
    return np.concatenate([first[:1], middle, first[-1:]])


def _worths(scores: Array, limits: Array, how: Smoothing) -> Array:
    """M T S: candidates, the box between, absent."""
    worth = np.zeros((len(limits), len(scores), scores.shape[1] + 2))
    odds = np.where(scores > 0, _logit(scores), -np.inf)
    worth[..., :-2] = odds - _logit(limits)[:, None, None]
    worth[..., -2] = -how.unseen
    worth[:, [0, -1], -2] = -np.inf
    return worth


def _costs(boxes: Array, gaps: NDArray[np.int64], how: Smoothing) -> Array:
    """T-1 S S: from every state of a frame to every state of the next."""
    before, after = boxes[:-1, :, None], boxes[1:, None, :]
    count = boxes.shape[1] + 1
    cost = np.full((len(gaps), count, count), how.switch)
    cost[:, :-1, :-1] = how.jump * _unlikeness(before, after, how.reach)
    cost[:, -1, -1] = 0.0
    cost = cost / gaps[:, None, None]
    cost[:, -2, -2] = np.inf  # a box between two that were not seen either says nothing
    return cost


def _unlikeness(a: Array, b: Array, reach: float) -> Array:
    """0 for the same box, towards 1 for one that is elsewhere or of another size."""
    sides_a, sides_b = (np.clip(x[..., 2:] - x[..., :2], 1e-3, None) for x in (a, b))
    shared = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    inter = np.clip(shared, 0, None).prod(-1)
    area_a, area_b = sides_a.prod(-1), sides_b.prod(-1)
    overlap = inter / (area_a + area_b - inter)
    apart = np.linalg.norm((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2, axis=-1)
    mean = (np.sqrt(area_a) + np.sqrt(area_b)) / 2
    growth = np.abs(np.log(area_a / area_b)) / 2
    return (1 - np.clip(overlap, 0, 1)) * -np.expm1(-((apart / mean / reach) ** 2) - growth**2)


def _forwards(worth: Array, cost: Array) -> Array:
    """M T S: worth of the best path that ends in a state, that state included."""
    total = worth.copy()
    for t in range(1, worth.shape[1]):
        total[:, t] += (total[:, t - 1, :, None] - cost[t - 1]).max(1)
    return total


def _backwards(worth: Array, cost: Array) -> Array:
    """M T S: worth of the best path that begins after a state, that state left out."""
    total = np.zeros_like(worth)
    for t in range(worth.shape[1] - 2, -1, -1):
        after = worth[:, t + 1] + total[:, t + 1]
        total[:, t] = (after[:, None, :] - cost[t]).max(2)
    return total
