"""What became of a save that must not end the run, and when to try again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["BackOff", "SaveOutcome"]

_FIRST, _LONGEST = 10.0, 600.0


@dataclass(frozen=True, kw_only=True)
class SaveOutcome:
    """A checkpoint, or the reason why there is none."""

    step: int
    """Optimizer step it is of."""
    path: Path | None
    """Folder of the checkpoint; None where it could not be saved."""
    problem: str = ""
    """What was in the way, what stands, and what to do."""
    failures: int = 0
    """Saves in a row that failed, this one included."""
    retry_in: float = math.inf
    """Seconds after which trying again is worth it."""
    seconds: float = 0.0
    """That the save took."""

    @property
    def saved(self) -> bool:
        """Whether it is safely on the disk."""
        return self.path is not None

    def __str__(self) -> str:
        if self.path is not None:
            return f"checkpoint of step {self.step} saved in {self.path}"
        row = f", {self.failures} times in a row" if self.failures > 1 else ""
        return (
            f"{self.problem} The run goes on without it{row}; the next try is due in "
            f"{self.retry_in:.0f} s, or with the next save."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as for ``journal.event("checkpoint", **outcome.to_dict())``."""
        return asdict(self) | {"path": None if self.path is None else str(self.path)}


class BackOff:
    """Says when to try again: 10 s after the first failure, then twice as long, 10 minutes at most.

    >>> now = 0.0
    >>> back_off = BackOff(lambda: now)
    >>> back_off.failed(), back_off.failed(), back_off.due
    (10.0, 20.0, False)
    >>> now = 21.0
    >>> back_off.due
    True
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.failures = 0
        self._at = math.inf

    @property
    def due(self) -> bool:
        """Whether something failed, and the pause after it is over."""
        return self._clock() >= self._at

    def failed(self) -> float:
        """Count a failure; gives the pause in seconds."""
        self.failures += 1
        pause = min(_LONGEST, _FIRST * 2.0 ** min(self.failures - 1, 10))
        self._at = self._clock() + pause
        return pause

    def succeeded(self) -> None:
        """Forget the failures."""
        self.failures, self._at = 0, math.inf
