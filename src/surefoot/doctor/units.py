"""Predictions and targets that a log describes side by side, and the overlap of boxes."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.columns import finite
from surefoot.journal.series import Column, Role

__all__ = ["Mismatch", "mismatch", "overlap_of_nothing"]

_PREDICTED = re.compile(r"(?<![a-z])(pred|output|decoded)", re.I)
_WANTED = re.compile(r"(?<![a-z])(target|ground.?truth|gt(?![a-z])|label|truth)", re.I)
_RANGE = re.compile(r"range|min|max|mean|(?<![a-z])[xy]\d?(?![a-z])|box|coord|value", re.I)
_OVERLAP = re.compile(r"(?<![a-z])[gdc]?iou(?![a-z])|overlap", re.I)


@dataclass(frozen=True)
class Mismatch:
    """Two columns that should be of one size and are not."""

    predicted: Column
    wanted: Column
    ratio: float
    """Largest predicted size over largest wanted one."""


def mismatch(case: Case) -> Mismatch | None:
    """Predictions that reach less than a twentieth of the targets' size, or twenty times it."""
    predicted, wanted = _sized(case, _PREDICTED), _sized(case, _WANTED)
    if predicted is None or wanted is None:
        return None
    ratio = _top(predicted) / max(_top(wanted), 1e-300)
    return Mismatch(predicted, wanted, ratio) if not 0.05 <= ratio <= 20.0 else None


_OVER_VIDEOS = re.compile(r"\bst[_ -]?iou|spatio", re.I)


def overlap_of_nothing(case: Case) -> Column | None:
    """A mean IoU that is exactly 0 each time it is logged, if any is; not a score over videos,
    which is 0 as long as a detector does not dare to speak.
    """
    for column in case.columns:
        where = f"{column.name} {column.section}"
        if _OVER_VIDEOS.search(where):
            continue
        typical = column.role is Role.METRIC or re.search(r"mean|median|max|avg", column.name, re.I)
        if column.values.size >= 2 and typical and _OVERLAP.search(where):
            values = finite(column).values
            if values.size >= 2 and np.all(values == 0.0):
                return column
    return None


def _sized(case: Case, about: re.Pattern[str]) -> Column | None:
    """Of the columns that give a range of what ``about`` names, the one that reaches furthest."""
    found = [
        column
        for column in case.columns
        if column.role is Role.OTHER
        and about.search(f"{column.section} {column.name}")
        and _RANGE.search(column.name)
        and not re.search(r"valid|%|>|<", column.name)
        and finite(column).values.size
    ]
    return max(found, key=_top, default=None)


def _top(column: Column) -> float:
    return float(np.max(np.abs(finite(column).values)))
