"""A bar for work without steps of training: frames that are looked at, frames that are drawn."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TextIO, TypeVar

from surefoot.recipes.progress import clock

__all__ = ["WorkBar"]

_TTY_SECONDS, _PIPE_SECONDS = 0.1, 60.0
_BAR_WIDTH = 20

T = TypeVar("T")


@dataclass(kw_only=True)
class WorkBar:
    """``Looking: 100% 301/301 [00:12<00:00, 24.6 frames/s]``.

    On a terminal the line is redrawn in place, with a bar; elsewhere it is printed once a minute
    and at the end, as :class:`~surefoot.recipes.progress.EpochBar` does it.

    >>> list(WorkBar(title="Looking", total=2, stream=None).over("ab"))
    ['a', 'b']
    """

    title: str
    total: int
    unit: str = "frames"
    stream: TextIO | None = field(default_factory=lambda: sys.stdout)
    """Where it is written; None: nowhere."""
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._started = self._shown = self.now()
        self._done = 0
        self._live = self.stream is not None and self.stream.isatty()

    def over(self, things: Iterable[T]) -> Iterator[T]:
        """Hand on what is worked through, and count it."""
        for thing in things:
            yield thing
            self._done += 1
            pause = _TTY_SECONDS if self._live else _PIPE_SECONDS
            if self._done < self.total and self.now() - self._shown >= pause:
                self._show("" if self._live else "\n")
        self._show("\n")

    def _show(self, end: str) -> None:
        self._shown = self.now()
        if self.stream is not None:
            self.stream.write(("\r\x1b[2K" if self._live else "") + str(self) + end)
            self.stream.flush()

    def __str__(self) -> str:
        share = self._done / self.total if self.total else 1.0
        spent = self.now() - self._started
        left = spent * (1 - share) / share if share else math.nan
        full = round(_BAR_WIDTH * share)
        bar = f"|{'█' * full}{' ' * (_BAR_WIDTH - full)}| " if self._live else ""
        rate = self._done / spent if spent > 0 else math.nan
        return (
            f"{self.title}: {int(100 * share):3d}% {bar}{self._done}/{self.total} "
            f"[{clock(spent)}<{clock(left) if math.isfinite(left) else '?'}, "
            f"{rate:.1f} {self.unit}/s]"
        )
