"""Where a finding begins, the step and the line that go into it, and how a count is put."""

from __future__ import annotations

from typing import Protocol, TypedDict

from surefoot.journal.series import Column

__all__ = ["Spot", "counted", "said_at", "spot"]


class Spot(TypedDict):
    """Two fields of a finding."""

    step: float
    first_line: int


def counted(count: int, noun: str) -> str:
    """``1 overflow``, ``2 overflows``.

    >>> counted(1, "overflow"), counted(1200, "step")
    ('1 overflow', '1,200 steps')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def spot(column: Column, index: int = 0) -> Spot:
    """The place of a value of a column."""
    return {"step": float(column.steps[index]), "first_line": int(column.lines[index])}


class Placed(Protocol):
    """A message, or a symptom: whatever has a step and a line."""

    @property
    def step(self) -> float:
        """As the log counts; NaN where no step is known."""
        ...

    @property
    def line(self) -> int:
        """From 1."""
        ...


def said_at(placed: Placed) -> Spot:
    """The place of a message or a symptom."""
    return {"step": placed.step, "first_line": placed.line}
