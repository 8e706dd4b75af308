"""A number in a line, with what it is called and what it may count."""

from __future__ import annotations

from dataclasses import dataclass

from surefoot.journal.foreign.numbers import NO_UNIT, Unit
from surefoot.journal.foreign.words import BATCH, EPOCH, STEP, bag, side, tokens

__all__ = ["COUNTERS", "Field", "counter_of"]

COUNTERS = ("epoch", "step", "batch", "lead")
"""What a field may count; ``lead`` is a bare number at the beginning of a line."""
_PLAIN_WORDS = bag("num global current cur no n number index i of opt optimizer count")


@dataclass(frozen=True)
class Field:
    """A number in a line."""

    start: int
    end: int
    name: str
    what: str = "value"
    """``value``, a member of :data:`COUNTERS`, or ``total`` of the counter before it."""
    side: str = ""
    """``validation`` or nothing."""
    unit: Unit = NO_UNIT
    comma: bool = False
    """Whether it is written with commas in it."""
    section: str = ""
    """The heading that it stands below."""


def counter_of(name: str) -> str:
    """What a name counts, or nothing.

    >>> counter_of("Epoch(train)"), counter_of("global_step"), counter_of("step_time")
    ('epoch', 'step', '')
    """
    words = set(tokens(name))
    words -= {w for w in words if side((w,))} | _PLAIN_WORDS
    if not words:
        return ""
    if words == {"total", "timesteps"}:
        return "step"
    for what, known in (("epoch", EPOCH), ("step", STEP), ("batch", BATCH)):
        if words <= known or (words <= STEP | BATCH and words & known and what == "batch"):
            return what
    return ""
