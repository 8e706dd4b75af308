"""A loop that stands still: one report of what every thread is in, and nothing killed.

A loader whose worker hangs, a rank that waits for another, a disk that has gone away: the loop says
nothing, and hours later nobody knows since when. A watch in a thread of its own looks at the time
of the last step now and then. A step costs the loop one look at the clock. What holds the
interpreter's lock for ever in C code stops the watch, too; then nothing is said.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from types import TracebackType
from typing import Self

from surefoot.errors import ConfigError
from surefoot.guard.waiting import Waiting, stacks, waits_in

__all__ = ["Stall", "StallWatch"]

_REMEMBERED = 64
"""Lengths of the last steps."""
_MANY = 20.0
"""So many usual steps without one are a stall, however long a step takes."""
_NAME = "surefoot stall watch"
_GIVE_UP = 10.0
"""Seconds; a report that goes to a disk that has gone away must not hold up the end as well."""


@dataclass(frozen=True, slots=True)
class Stall:
    """What stood still, for how long, and where everything was."""

    seconds: float
    """Since the last step, or since the watch began."""
    usual: float
    """Median length of a step, seconds; NaN where there were not two steps yet."""
    waiting: Waiting
    """What the loop's own thread is in."""
    stacks: str
    """Of all threads, innermost call last."""

    def __str__(self) -> str:
        usual = "" if math.isnan(self.usual) else f"; one usually takes {_span(self.usual)}"
        return f"no step for {_span(self.seconds)}{usual}. The loop waits in {self.waiting}"

    def to_dict(self) -> dict[str, float | str | None]:
        """Plain values for a journal; a usual length that is not known is None."""
        return {
            "seconds": self.seconds,
            "usual": None if math.isnan(self.usual) else self.usual,
            "waits_in": str(self.waiting),
            "stacks": self.stacks,
        }

    def report(self) -> str:
        """The sentence, and the stacks under it."""
        return f"surefoot: {self}\n\n{self.stacks}"


class StallWatch:
    """Reports once when no step came for long, again only after twice the time; never kills.

    Args:
        timeout: seconds without a step, at least; 20 usual steps where that is longer.
        on_stall: is given the report, in the watch's own thread; by default it goes to stderr.
        clock: seconds, for tests.

    Raises:
        ConfigError: a timeout that is not above 0.

    >>> with StallWatch(timeout=600) as watch:
    ...     for batch in range(3):
    ...         watch.step()
    >>> watch.running
    False
    """

    def __init__(
        self,
        *,
        timeout: float = 300.0,
        on_stall: Callable[[Stall], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not timeout > 0.0:
            raise ConfigError(f"StallWatch: timeout={timeout}: seconds, above 0.")
        self._timeout, self._clock = timeout, clock
        self._on_stall = on_stall or _to_stderr
        self._lengths: deque[float] = deque(maxlen=_REMEMBERED)
        self._last: float | None = None
        self._began, self._due = clock(), 0.0
        self._looked_at: float | None = None
        self._paused = 0
        self._loop = threading.get_ident()
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def step(self) -> None:
        """One step of the loop is over."""
        now, last = self._clock(), self._last
        if last is not None:
            self._lengths.append(now - last)
        self._last = now

    @contextmanager
    def paused(self) -> Generator[None]:
        """Around what may take long by design, as a validation: nothing is reported."""
        self._paused += 1
        try:
            yield
        finally:
            self._last, self._began = None, self._clock()  # no step took that long
            self._paused -= 1

    def look(self) -> Stall | None:
        """What the watch's thread does now and then: a report, where one is due."""
        last = self._began if self._last is None else self._last
        lengths = list(self._lengths)
        usual = median(lengths) if lengths else math.nan
        if last != self._looked_at:
            self._looked_at = last
            self._due = max(self._timeout, _MANY * usual) if lengths else self._timeout
        stood = self._clock() - last
        if self._paused or stood < self._due:
            return None
        self._due = 2.0 * stood
        frames = sys._current_frames()
        return Stall(stood, usual, waits_in(frames.get(self._loop)), stacks(frames))

    def start(self) -> Self:
        """Look from now on; the thread that calls this is taken for the loop's."""
        if self._thread is None:
            self._loop, self._began = threading.get_ident(), self._clock()
            self._end.clear()
            self._thread = threading.Thread(target=self._watch, name=_NAME, daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """Look no longer; the thread is gone when this returns, if ``on_stall`` returns."""
        if self._thread is not None:
            self._end.set()
            self._thread.join(_GIVE_UP)
            self._thread = None

    @property
    def running(self) -> bool:
        """Whether the thread is there."""
        return self._thread is not None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _watch(self) -> None:
        while not self._end.wait(min(self._timeout / 8.0, 10.0)):
            stall = self.look()
            if stall is not None:
                self._on_stall(stall)


def _to_stderr(stall: Stall) -> None:
    sys.stderr.write(stall.report())
    sys.stderr.flush()


def _span(seconds: float) -> str:
    if seconds < 1.0:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120.0:
        return f"{seconds:.3g} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200.0 else f"{seconds / 3600:.1f} hours"
