"""Boxes and scores as they come in: brought to one form, or refused by name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from surefoot.errors import UsageError

__all__ = ["as_boxes", "as_scores", "iou_aligned", "stack_boxes", "stack_scores"]

Boxes = NDArray[np.float64]


_WHY = (
    "there is no telling where it stands, and a number made of it would be made up. Look at the "
    "model that gave it."
)


def as_boxes(values: ArrayLike, what: str) -> Boxes:
    """M 4, float64, x1 y1 x2 y2; one box may come without its axis, none as an empty array.

    Raises:
        UsageError: another shape, or a coordinate that is not finite.
    """
    boxes = _shaped(values, what)
    if not np.isfinite(boxes).all():
        raise UsageError(f"{what}: a box coordinate is NaN or Inf; {_WHY}")
    return boxes


def as_scores(values: ArrayLike, count: int, what: str) -> NDArray[np.float64]:
    """M, float64, one for each of ``count`` boxes; infinite ones are in order.

    Raises:
        UsageError: another number of them, or a NaN.
    """
    scores = np.asarray(values, dtype=np.float64).reshape(-1)
    if len(scores) != count:
        raise UsageError(f"{what}: {len(scores)} scores for {count} boxes; expected one each.")
    if np.isnan(scores).any():
        raise UsageError(f"{what}: a score is NaN; {_WHY}")
    return scores


def stack_boxes(by_frame: Mapping[int, ArrayLike], what: str) -> tuple[NDArray[np.int64], Boxes]:
    """The boxes of all frames in one array, and the frame of each.

    Raises:
        UsageError: as :func:`as_boxes`, with the frame.
    """
    each = [_shaped(boxes, f"{what}, frame {frame}") for frame, boxes in by_frame.items()]
    frames = np.repeat(np.array([*by_frame], dtype=np.int64), [len(boxes) for boxes in each])
    boxes = np.concatenate([np.zeros((0, 4)), *each])
    if bad := np.flatnonzero(~np.isfinite(boxes).all(axis=1)).tolist():
        as_boxes(boxes[bad[0]], f"{what}, frame {frames[bad[0]]}")
    return frames, boxes


def stack_scores(
    by_frame: Mapping[int, ArrayLike], frames: NDArray[np.int64], what: str
) -> NDArray[np.float64]:
    """The scores of all frames in one array, beside the ``frames`` of :func:`stack_boxes`.

    Raises:
        UsageError: as :func:`as_scores`, with the frame.
    """
    each = [np.asarray(scores, dtype=np.float64).reshape(-1) for scores in by_frame.values()]
    scores = np.concatenate([np.zeros(0), *each])
    given = np.repeat(np.array([*by_frame], dtype=np.int64), [len(one) for one in each])
    if not np.array_equal(given, frames) or np.isnan(scores).any():
        for frame, one in by_frame.items():
            as_scores(one, int((frames == frame).sum()), f"{what}, frame {frame}")
    return scores


def _shaped(values: ArrayLike, what: str) -> Boxes:
    boxes = np.asarray(values, dtype=np.float64)
    if boxes.size == 0:
        return np.zeros((0, 4))
    if boxes.ndim not in (1, 2) or boxes.shape[-1] != 4:
        raise UsageError(f"{what}: boxes of shape {boxes.shape}; expected M 4 (x1 y1 x2 y2).")
    return boxes.reshape(-1, 4)


def iou_aligned(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """Overlap of each box with its partner: M, 0 to 1; 0 where one has no area or is inverted.

    >>> iou_aligned(np.array([[0, 0, 2, 2.0]]), np.array([[0, 0, 2, 1.0]])).tolist()
    [0.5]
    """
    shared = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    inter = np.clip(shared, 0.0, None).prod(axis=1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0.0, None).prod(axis=1) for boxes in (a, b)]
    union = areas[0] + areas[1] - inter
    return np.divide(inter, union, out=np.zeros_like(inter), where=union > 0)
