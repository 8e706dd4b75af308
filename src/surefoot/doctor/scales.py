"""What the loss scale of fp16 training did, told from a column of it and from overflow lines."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Self

import numpy as np

from surefoot.doctor.spot import Spot
from surefoot.journal.series import Column, LoggedRun, Message, Role

__all__ = ["ScaleHistory"]

_AFTER = re.compile(r"new|after|to\b|reduc", re.I)
_BEFORE = re.compile(r"attempt|before|from|old", re.I)
_ATTEMPTED = re.compile(r"(attempted|previous|old)[ _]?(loss[ _]?)?scale", re.I)
_NUMBER = r"([\d.]+(?:e[-+]?\d+)?)"
_REDUCED = re.compile(rf"reduc\w*(?: loss scale)? (?:it )?(?:from \S+ )?to {_NUMBER}", re.I)
_SET = re.compile(rf"(?:loss |gradient )?scale(?:r)?(?: is)?(?: now)?(?: to)?[:= ]+{_NUMBER}", re.I)
_HELD = re.compile(r"hysteresis", re.I)
_TINY = 2.0**-30
"""Below it a scale counts as 0, which is how some logs round it."""


@dataclass(frozen=True)
class ScaleHistory:
    """The scales in the order of the log's lines, repeated values included."""

    scales: np.ndarray
    lines: np.ndarray
    steps: np.ndarray
    overflows: int
    """Overflow lines."""
    overflow_lines: np.ndarray
    overflow_steps: np.ndarray

    @classmethod
    def of(cls, run: LoggedRun) -> Self:
        """Gather it from the columns of role ``LOSS_SCALE`` and from the messages."""
        columns = [c for c in run.of(Role.LOSS_SCALE) if c.values.size]
        before = next((c for c in columns if _BEFORE.search(c.name)), None) or _attempted(run)
        rest = [c for c in columns if c is not before] or columns
        chosen = next((c for c in rest if _AFTER.search(c.name)), None) or _longest(rest)
        told = {m.line: m.step for m in run.messages if m.kind == "overflow"}
        rows = [] if chosen is None else [_rows(chosen)]
        if before is not None and before is not chosen:
            # A table of scales before and after is a table of overflows.
            rows.append(_rows(before)[:1] - [[1.0, 0.0, 0.0]])
            told |= dict(zip(map(int, before.lines), map(float, before.steps), strict=True))
        rows.append(_said(run, set() if chosen is None else set(map(int, chosen.lines))))
        table = np.concatenate(rows)
        table = table[np.isfinite(table[:, 1])]
        table = table[np.argsort(table[:, 0], kind="stable")]
        return cls(
            scales=table[:, 1],
            lines=table[:, 0].astype(int),
            steps=table[:, 2],
            overflows=len(told),
            overflow_lines=np.array(sorted(told), dtype=int),
            overflow_steps=np.array([told[line] for line in sorted(told)], dtype=float),
        )

    def spot(self, index: int) -> Spot:
        """The place of a scale."""
        return {"step": float(self.steps[index]), "first_line": int(self.lines[index])}

    @property
    def moves(self) -> np.ndarray:
        """Logarithms, to base 2, of what each scale is of the one before; 0 within rounding."""
        moves = np.diff(np.log2(np.maximum(self.scales, _TINY)))
        return np.where(np.abs(moves) > 0.4, moves, 0.0)

    @property
    def halvings(self) -> int:
        """How often the scale went down."""
        return int(np.sum(self.moves < 0))

    @property
    def growths(self) -> int:
        """How often it went up."""
        return int(np.sum(self.moves > 0))


def _attempted(run: LoggedRun) -> Column | None:
    """The scales that overflowed, where a log has those beside the new ones."""
    others = (c for c in run.of(Role.OTHER) if c.values.size)
    return next((c for c in others if _ATTEMPTED.search(c.name)), None)


def _rows(column: Column) -> np.ndarray:
    return np.column_stack([column.lines.astype(float), column.values, column.steps])


def _said(run: LoggedRun, known: set[int]) -> np.ndarray:
    """Line, scale and step of each overflow line that no column has."""
    rows: list[tuple[float, float, float]] = []
    for message in run.messages:
        if message.kind != "overflow" or message.line in known:
            continue
        if not rows and "attempted" in message.values:
            rows.append((message.line - 1, message.values["attempted"], message.step))
        rows.append((message.line, _scale_after(message), message.step))
    return np.array(rows, dtype=float).reshape(-1, 3)


def _longest(columns: list[Column]) -> Column | None:
    return max(columns, key=lambda column: column.values.size, default=None)


def _scale_after(message: Message) -> float:
    """The scale after an overflow; NaN where the line does not tell."""
    for name in ("new_scale", "to", "scale_after", "reduced_to", "scale"):
        if name in message.values:
            return message.values[name]
    text = message.text
    found = _REDUCED.search(text) or (_SET.search(text) if not _HELD.search(text) else None)
    try:
        return float(found[1]) if found else math.nan
    except ValueError:
        return math.nan
