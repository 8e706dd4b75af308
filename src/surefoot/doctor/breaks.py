"""Where a log stops being numbers: the first NaN or infinity of a column, and what it leaves."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from surefoot.doctor.case import Case
from surefoot.journal.series import Column

__all__ = ["Break", "first_break", "nonfinite_terms"]


@dataclass(frozen=True)
class Break:
    """The first value of a column that is no number."""

    column: Column
    index: int

    @property
    def step(self) -> float:
        """Step of it, as the log counts."""
        return float(self.column.steps[self.index])

    @property
    def line(self) -> int:
        """Line of it."""
        return int(self.column.lines[self.index])

    @property
    def what(self) -> str:
        """``NaN`` or ``infinite``."""
        return "NaN" if np.isnan(self.column.values[self.index]) else "infinite"

    @property
    def before(self) -> Column:
        """The column up to it."""
        return _cut(self.column, slice(0, self.index))

    @property
    def lasting(self) -> bool:
        """Whether the column stays so: its last values are no numbers either."""
        after = ~np.isfinite(self.column.values[self.index :])
        return bool(after[-min(3, after.size) :].all() and after.mean() >= 0.5)

    @property
    def lost(self) -> int:
        """How many values are no numbers."""
        return int(np.sum(~np.isfinite(self.column.values)))


def first_break(columns: Iterable[Column]) -> Break | None:
    """The break on the earliest line, of the columns that have one."""
    found: list[Break] = []
    for column in columns:
        bad = np.flatnonzero(~np.isfinite(column.values))
        if bad.size:
            found.append(Break(column, int(bad[0])))
    return min(found, key=lambda b: (b.line, not b.lasting), default=None)


def nonfinite_terms(case: Case) -> tuple[list[Column], list[Column]]:
    """The terms that end in no number, and those that stay finite on the same steps."""
    # Raw and weighted, a term stands there twice under one name.
    terms = {column.name: column for column in reversed(case.terms)}
    broken = [first_break([c]) for c in terms.values()]
    lasting = [b.column for b in broken if b is not None and b.lasting]
    fine = [c for c in terms.values() if np.isfinite(c.values).all()]
    return lasting, fine


def _cut(column: Column, part: slice) -> Column:
    return Column(
        column.name,
        column.role,
        column.values[part],
        column.steps[part],
        column.lines[part],
        per=column.per,
    )
