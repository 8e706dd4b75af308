"""What the learning rates say about a moment: rising, at its peak, just jumped, zero, absurd."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.columns import finite
from surefoot.journal.series import Column

__all__ = ["RateAt", "main_rate", "rate_at"]


@dataclass(frozen=True)
class RateAt:
    """The learning rate at a line of the log, and how it came there."""

    value: float
    rising: bool
    """Whether it went up over the values before."""
    peak: bool
    """Whether it is within a tenth of the highest it ever was, and was not always so."""
    jumped: float
    """Factor of the last step up within the values just before; 1 for none."""


def main_rate(case: Case) -> Column | None:
    """The largest of the learning rates: that of the group which moves most."""
    columns = [finite(column) for column in case.rates]
    columns = [column for column in columns if column.values.size]
    return max(columns, key=lambda column: float(np.max(np.abs(column.values))), default=None)


def rate_at(case: Case, line: int) -> RateAt | None:
    """The learning rate that held at ``line``; None where the log has none before it."""
    column = main_rate(case)
    if column is None:
        return _configured(case)
    known = column.values[column.lines <= line]
    if not known.size:
        # Some loggers print the rate after the values it made: the first one is still the one.
        known = column.values[:1]
    now = float(known[-1])
    recent = known[-6:]
    ratios = recent[1:] / np.maximum(recent[:-1], 1e-300)
    return RateAt(
        value=now,
        rising=bool(known.size > 1 and now > 1.001 * float(recent[0])),
        peak=bool(now >= 0.9 * float(np.max(column.values)) and now > 1.5 * float(known.min())),
        jumped=float(np.max(ratios, initial=1.0)) if known.size > 2 else 1.0,
    )


def _configured(case: Case) -> RateAt | None:
    value = case.setting("lr", "learningrate", "baselr", "baselearningrate", "initiallr")
    if value is None:
        return None
    return RateAt(value, rising=False, peak=False, jumped=1.0)
