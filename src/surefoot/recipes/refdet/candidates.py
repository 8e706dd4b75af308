"""The few best boxes of an object in a picture, in NumPy: for scores of torch and of ONNX alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_candidates", "overlaps"]

Array = NDArray[np.float64]


def best_candidates(
    boxes: NDArray[Any], scores: NDArray[Any], *, limit: int, iou_threshold: float = 0.5
) -> tuple[Array, Array]:
    """The best ``limit`` of many boxes, without those that overlap a better one.

    Args:
        boxes: ... K 4, x1 y1 x2 y2.
        scores: ... K, 0 to 1, in any order.
        limit: boxes to give, at least 1.
        iou_threshold: overlap from which the weaker of two goes.

    Returns:
        Boxes ... limit 4 and scores ... limit, best first. Where fewer are left, the best box is
        repeated with a score of 0.

    >>> boxes = np.array([[0.0, 0, 4, 4], [0, 0, 4, 3], [8, 8, 9, 9]])
    >>> kept, scores = best_candidates(boxes, np.array([0.8, 0.9, 0.3]), limit=3)
    >>> kept.tolist(), scores.tolist()
    ([[0.0, 0.0, 4.0, 3.0], [8.0, 8.0, 9.0, 9.0], [0.0, 0.0, 4.0, 3.0]], [0.9, 0.3, 0.0])
    """
    scores, boxes = np.asarray(scores, np.float64), np.asarray(boxes, np.float64)
    order = np.argsort(-scores, axis=-1, kind="stable")
    scores = np.take_along_axis(scores, order, -1)
    boxes = np.take_along_axis(boxes, order[..., None], -2)
    count = scores.shape[-1]
    covers = overlaps(boxes, boxes) >= iou_threshold
    kept = np.ones(scores.shape, dtype=bool)
    for rank in range(1, count):
        kept[..., rank] = ~(kept[..., :rank] & covers[..., rank, :rank]).any(-1)
    first = np.argsort(~kept, axis=-1, kind="stable")[..., : min(limit, count)]
    there = np.take_along_axis(kept, first, -1)
    first = np.where(there, first, 0)
    given = np.where(there, np.take_along_axis(scores, first, -1), 0.0)
    found = np.take_along_axis(boxes, first[..., None], -2)
    if (missing := limit - count) > 0:
        more = [(0, 0)] * (scores.ndim - 1) + [(0, missing)]
        given = np.pad(given, more)
        found = np.concatenate([found, np.repeat(found[..., :1, :], missing, axis=-2)], axis=-2)
    return found, given


def overlaps(a: Array, b: Array) -> Array:
    """IoU of every box of ``a`` (... M 4) with every one of ``b`` (... n 4): ... M n, 0 to 1."""
    first, second = a[..., :, None, :], b[..., None, :, :]
    shared = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(
        first[..., :2], second[..., :2]
    )
    inter = np.clip(shared, 0, None).prod(-1)
    areas = [np.clip(x[..., 2:] - x[..., :2], 0, None).prod(-1) for x in (first, second)]
    union = areas[0] + areas[1] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
