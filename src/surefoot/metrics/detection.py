"""COCO's mean average precision of boxes, over images and classes."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from surefoot.errors import ConfigError, UsageError
from surefoot.metrics.arrays import as_boxes, as_scores

__all__ = ["DetectionMap", "MapResult"]

_IOU_50, _IOU_75 = 0, 5  # places in COCO's thresholds 0.50, 0.55, ... 0.95


@dataclass(frozen=True, kw_only=True)
class MapResult:
    """Mean average precision, 0 to 1; NaN where there was no truth box at all."""

    map50: float
    """At an overlap of 0.50."""
    map75: float
    """At an overlap of 0.75."""
    map: float
    """Mean over the overlaps 0.50, 0.55, ... 0.95."""


@dataclass(frozen=True)
class _Rows:
    """Boxes of one image: M rows of x y width height, and what goes with each."""

    image: int
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    scores: NDArray[np.float64] | None = None


class DetectionMap:
    """Collects images, then gives COCO's mAP through faster-coco-eval.

    As COCO defines it: predictions of all images in one order by score, each matched to the best
    free truth box of its image and label; precision interpolated at 101 recalls; the mean over the
    labels that have a truth box. A prediction in an image without truth is a false positive. A
    label that is only predicted, and in no image true, is in no mean: with one label per object,
    give the predictions of frames without the object that object's label.

    Args:
        max_detections: boxes per image and label that count, the highest scores first (COCO: 100).

    Raises:
        ConfigError: ``max_detections`` below 1.

    >>> score = DetectionMap()
    >>> score.add("a", [[0, 0, 10, 10]], [0.9], [1], gt_boxes=[[0, 0, 10, 10]], gt_labels=[1])
    >>> score.add("b", [], [], [], gt_boxes=[[0, 0, 10, 10]], gt_labels=[1])
    >>> round(score.result().map50, 3)
    0.505
    """

    def __init__(self, *, max_detections: int = 100) -> None:
        if max_detections < 1:
            raise ConfigError(f"max_detections={max_detections}: at least 1.")
        self._max_detections = max_detections
        self._images: dict[Hashable, int] = {}
        self._predicted: list[_Rows] = []
        self._truth: list[_Rows] = []

    def add(
        self,
        image_id: Hashable,
        boxes: ArrayLike,
        scores: ArrayLike,
        labels: ArrayLike,
        gt_boxes: ArrayLike,
        gt_labels: ArrayLike,
    ) -> None:
        """Add an image; any of its arrays may be empty.

        Args:
            image_id: its name; each image comes once.
            boxes: M 4, x1 y1 x2 y2 in pixels.
            scores: M.
            labels: M, integers.
            gt_boxes: n 4, in the same pixels.
            gt_labels: n, integers.

        Raises:
            UsageError: an image that is there already, numbers that do not fit each other, a score
                that is NaN, a box that is not finite, or a truth box without area.
        """
        what = f"mAP, image {image_id!r}"
        if image_id in self._images:
            raise UsageError(f"{what}: was added already; each image comes once.")
        found, truth = as_boxes(boxes, what), as_boxes(gt_boxes, f"{what}, truth")
        if (truth[:, 2:] <= truth[:, :2]).any():
            raise UsageError(f"{what}: a truth box has no area; expected x1 < x2 and y1 < y2.")
        number = len(self._images)
        predicted = _Rows(
            number,
            _xywh(found),
            _as_labels(labels, len(found), what),
            as_scores(scores, len(found), what),
        )
        true = _Rows(number, _xywh(truth), _as_labels(gt_labels, len(truth), f"{what}, truth"))
        self._images[image_id] = number
        self._predicted.append(predicted)
        self._truth.append(true)

    def result(self) -> MapResult:
        """The mean average precision over everything added.

        Raises:
            ConfigError: faster-coco-eval is not installed.
            UsageError: no image was added.
        """
        if not self._images:
            raise UsageError("mAP: no image was added; there is nothing to score.")
        if not any(len(rows.boxes) for rows in self._truth):
            return MapResult(map50=np.nan, map75=np.nan, map=np.nan)
        precision = self._precision()
        return MapResult(
            map50=_mean(precision[_IOU_50]),
            map75=_mean(precision[_IOU_75]),
            map=_mean(precision),
        )

    def _precision(self) -> NDArray[np.float64]:
        """COCO's table: overlap, recall, label; -1 where a label has no truth."""
        coco = _coco()
        images = [{"id": number} for number in self._images.values()]
        labels = np.unique(np.concatenate([r.labels for r in (*self._truth, *self._predicted)]))
        base = {
            "images": images,
            "categories": [{"id": i, "name": str(i)} for i in labels.tolist()],
        }
        truth = coco.COCO(base | {"annotations": _annotations(self._truth)})
        found = coco.COCO(base | {"annotations": _annotations(self._predicted)})
        evaluation = coco.COCOeval_faster(truth, found, "bbox", print_function=_silence)
        evaluation.params.maxDets = [self._max_detections]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, np.inf]], ["all"]
        evaluation.evaluate()
        evaluation.accumulate()
        return np.asarray(evaluation.eval["precision"])[:, :, :, 0, 0]


def _coco() -> Any:
    try:
        return import_module("faster_coco_eval")
    except ModuleNotFoundError as missing:
        raise ConfigError(
            "mAP needs faster-coco-eval, which is not installed: pip install 'surefoot[vision]'."
        ) from missing


def _silence(*_: object) -> None:
    pass


def _mean(precision: NDArray[np.float64]) -> float:
    return float(precision[precision > -1].mean())


def _xywh(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """An inverted box becomes one of no width: it overlaps nothing, and counts as false."""
    return np.concatenate([boxes[:, :2], np.clip(boxes[:, 2:] - boxes[:, :2], 0, None)], axis=1)


def _as_labels(values: ArrayLike, count: int, what: str) -> NDArray[np.int64]:
    labels = np.asarray(values).reshape(-1)
    if len(labels) != count:
        raise UsageError(f"{what}: {len(labels)} labels for {count} boxes; expected one each.")
    if count and not np.issubdtype(labels.dtype, np.integer):
        raise UsageError(f"{what}: labels of {labels.dtype}; expected integers.")
    return labels.astype(np.int64)


def _annotations(rows: list[_Rows]) -> list[dict[str, Any]]:
    """COCO's records, numbered from 1: 0 means "matched to nothing" there."""
    found: list[dict[str, Any]] = []
    for one in rows:
        scores = [0.0] * len(one.boxes) if one.scores is None else one.scores.tolist()
        for box, label, score in zip(one.boxes.tolist(), one.labels.tolist(), scores, strict=True):
            found.append(
                {
                    "id": len(found) + 1,
                    "image_id": one.image,
                    "category_id": label,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "score": score,
                }
            )
    return found
