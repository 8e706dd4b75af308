"""The table that camouflage papers print, and what one row is better by than another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from surefoot.errors import ConfigError, UsageError
from surefoot.metrics.segmentation import SegmentationScores, SegmentationSummary

__all__ = ["Difference", "difference", "score_table"]

_COLUMNS = {
    "S": "s_measure",
    "E adp": "e_adaptive",
    "E mean": "e_mean",
    "E max": "e_max",
    "wF": "weighted_f",
    "MAE": "mae",
    "IoU": "iou",
    "Dice": "dice",
}
_EMPTY = {"FP area": "false_positive_area"}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A score of ours less the same of another, image by image."""

    mean: float
    standard_error: float
    """Of the mean; NaN for a single image."""
    count: int
    """Images that both have."""

    def __str__(self) -> str:
        return f"{self.mean:+.3f} (standard error {self.standard_error:.3f}, n={self.count})"


def difference(ours: SegmentationScores, other: SegmentationScores, score: str) -> Difference:
    """The mean over images of ``ours - other``, and how sure it is.

    Pairing image by image takes out what is hard about each image; images count as independent.

    Args:
        ours: the scores that are to be better.
        other: those of a baseline on the same images.
        score: the name of a score, such as ``"s_measure"``.

    Raises:
        ConfigError: no such score.
        UsageError: there is no image that both have scored.
    """
    if score not in (*_COLUMNS.values(), *_EMPTY.values()):
        able = ", ".join((*_COLUMNS.values(), *_EMPTY.values()))
        raise ConfigError(f"difference of {score!r}: expected one of {able}.")
    theirs = {row.index: getattr(row, score) for row in other.per_image}
    pairs = [(getattr(row, score), theirs.get(row.index)) for row in ours.per_image]
    steps = np.array([a - b for a, b in pairs if a is not None and b is not None])
    if not len(steps):
        raise UsageError(f"difference of {score!r}: no image has it in both; nothing to compare.")
    spread = float(steps.std(ddof=1)) if len(steps) > 1 else np.nan
    error = spread / float(np.sqrt(len(steps)))
    return Difference(mean=float(steps.mean()), standard_error=error, count=len(steps))


def score_table(rows: Mapping[str, SegmentationSummary]) -> str:
    """Rows beside each other, by name, in the order given; a dash where there is no value.

    >>> half = SegmentationSummary(
    ...     images=3, images_without_object=0, s_measure=0.5, e_adaptive=0.6, e_mean=0.6, e_max=0.7,
    ...     weighted_f=0.25, mae=0.125, iou=0.4, dice=0.5, false_positive_area=None)
    >>> print(score_table({"mean mask": half}))
               n      S  E adp  E mean  E max     wF    MAE    IoU   Dice
    mean mask  3  0.500  0.600   0.600  0.700  0.250  0.125  0.400  0.500
    """
    columns = dict(_COLUMNS)
    if any(summary.images_without_object for summary in rows.values()):
        columns |= _EMPTY
    lines = [["", "n", *columns]]
    for name, summary in rows.items():
        values = [getattr(summary, column) for column in columns.values()]
        shown = ["-" if value is None else f"{value:.3f}" for value in values]
        lines.append([name, str(summary.images), *shown])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )
