"""Darknet, which names its numbers behind them.

51: 1204.110000, 1205.203400 avg loss, 0.000013 rate, 3.002938 seconds, 3264 images
"""

from __future__ import annotations

import re

from surefoot.journal.foreign.dialect import Dialect, Hint
from surefoot.journal.foreign.grammar import Field, Reading
from surefoot.journal.foreign.numbers import Unit
from surefoot.journal.series import Role

__all__ = ["DARKNET"]

_N = r"[-+]?(?:\d+\.\d+|nan|inf)"
_LINE = re.compile(
    rf"^\s*(?P<step>\d+): (?P<loss>{_N}), (?P<average>{_N}) avg(?: loss)?, (?P<lr>{_N}) rate, "
    rf"(?P<time>{_N}) seconds, (?P<images>\d+) images"
)


def _read(text: str) -> Reading | None:
    found = _LINE.match(text)
    if found is None:
        return None
    fields = (
        Field(*found.span("step"), "iteration", "step"),
        Field(*found.span("loss"), "loss"),
        Field(*found.span("average"), "avg loss"),
        Field(*found.span("lr"), "rate"),
        Field(*found.span("time"), "seconds", unit=Unit("seconds")),
    )
    return Reading(text, fields)


DARKNET = Dialect(
    name="darknet",
    sign=_LINE,
    read=_read,
    hints={
        "loss": Hint(role=Role.LOSS, why="the loss of the batch"),
        "avg loss": Hint(role=Role.OTHER, why="a running average of the loss"),
        "rate": Hint(role=Role.LEARNING_RATE, why="the learning rate"),
    },
)
