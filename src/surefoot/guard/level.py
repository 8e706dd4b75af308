"""Where the loss stands, told apart from where it jumps: the slow way out of a valley.

A spike is judged against the last accepted steps, so a loss that creeps upwards takes its own
measure along. The level is held against the best that the run has seen.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import median
from typing import Any

__all__ = ["Level"]

_EVERY = 10
"""Applied steps between two looks."""
_TWICE = 2
"""Looks in a row that have to agree."""
_IN_VALLEY = 3.0
"""Up to so many times the best the run counts as being where it should be."""


class Level:
    """Median of the last 32 values against the lowest such median of the run.

    Args:
        ratio: so many times the best is a drift.

    >>> level = Level(ratio=10.0)
    >>> any(level.add(1.0) for _ in range(100)), any(level.add(11.0) for _ in range(100))
    (False, True)
    """

    def __init__(self, *, ratio: float) -> None:
        self._ratio = ratio
        self._recent: deque[float] = deque(maxlen=32)
        self._best = math.inf
        self._count = self._high_looks = 0

    def add(self, value: float, *, drifts: bool = True) -> bool:
        """Take in the value of an applied step; True when the run has drifted away.

        Args:
            value: above 0; any other says nothing about a ratio and is left out.
            drifts: False for a quantity that may rise in a healthy run.
        """
        if not 0.0 < value < math.inf:
            return False
        self._recent.append(value)
        self._count += drifts
        if not drifts or len(self._recent) < 32 or self._count % _EVERY:
            return False
        self._best = min(self._best, self.now())
        # The last ten as well, or a run that has come back by itself would be sent back.
        away = min(self.now(), self.now(_EVERY)) > self._ratio * self._best
        self._high_looks = self._high_looks + 1 if away else 0
        return self._high_looks >= _TWICE

    def now(self, last: int = 32) -> float:
        """Median of the last values; NaN where there are none."""
        return median(list(self._recent)[-last:]) if self._recent else math.nan

    @property
    def in_valley(self) -> bool:
        """Whether the level is near the best, so that the state is one to go back to."""
        return not self._count or not self.now() > _IN_VALLEY * self._best

    def forget(self, *, best: bool) -> None:
        """The state was put back: what came before says nothing of what comes now.

        Args:
            best: forget the best as well; it was the data that changed.
        """
        self._recent.clear()
        self._high_looks = 0
        if best:
            self._best = math.inf

    def state_dict(self) -> dict[str, Any]:
        """The last values, the best level, and when it is looked at next."""
        return {
            "recent": list(self._recent),
            "best": self._best,
            "count": self._count,
            "high_looks": self._high_looks,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._recent.clear()
        self._recent.extend(state["recent"])
        self._best = state["best"]
        # States of old have no count; their looks begin anew.
        self._count = state.get("count", self._count)
        self._high_looks = state.get("high_looks", 0)
