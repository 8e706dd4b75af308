"""Columns without what is no number, where they begin, and terms that add up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from surefoot.journal.series import Column, Role

__all__ = ["finite", "from_the_start", "summed"]

_BEYOND = 1e100
"""As good as infinite; squares and differences of it are still numbers."""


def finite(column: Column) -> Column:
    """The column without the rows whose value is not finite, none of them beyond 1e100."""
    kept = np.isfinite(column.values)
    values = np.clip(column.values[kept], -_BEYOND, _BEYOND)
    return replace(column, values=values, steps=column.steps[kept], lines=column.lines[kept])


def from_the_start(column: Column) -> bool:
    """Whether its first value is one of the first of the training, as far as its steps tell."""
    if not column.steps.size:
        return False
    first, last = column.steps[0], column.steps[-1]
    interval = float(np.median(np.diff(column.steps))) if column.steps.size > 1 else 1.0
    return bool(first <= max(1.0, 2 * interval, 0.02 * last))


def summed(terms: tuple[Column, ...]) -> Column | None:
    """The sum of terms that stand side by side; None where they do not."""
    """The sum of terms that stand side by side; None where they do not."""
    if len(terms) < 2:
        return terms[0] if terms else None
    first = terms[0]
    if any(not np.array_equal(term.steps, first.steps) for term in terms):
        return None
    total = np.sum([term.values for term in terms], axis=0)
    return replace(first, name=f"the sum of {len(terms)} terms", values=total, role=Role.TERM)
