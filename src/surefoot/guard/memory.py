"""Memory that grows step by step, told before it runs out.

A sample is the resident memory of this process, what its children have for themselves (a worker's
copies of pages that it shared at first are new memory, though its resident size stays the same),
and, on a GPU, what torch has allocated there. The slope is Theil and Sen's (the median of the
slopes of all pairs), which a validation pass does not bend; Kendall's tau says how steady the
growth is, and the newer half of the samples has to grow as well, which a cache that is full does
not (one that still fills looks like a leak; give its size as ``allowance``). Everything is bounded:
64 samples, a hundredth of the time, and a census of live objects only once growth is suspected.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from numpy.typing import NDArray

from surefoot.errors import ConfigError
from surefoot.guard.census import Census

__all__ = ["Growth", "MemoryReading", "MemoryWatch", "read_memory", "theil_sen"]

_MB = 2.0**20
_STEADY = 0.7
"""Kendall's tau from which growth is called steady; 1 is every sample above the one before."""
_NONE: Mapping[int, float] = MappingProxyType({})
_SPARING = 100.0
"""A reading that took a second of the processor is followed by so many without one."""
_FEWEST, _FEWEST_TO_WARN = 8, 16
_CALM = 16
"""Samples without suspicion after which a census is thrown away."""


class MemoryReading(NamedTuple):
    """Bytes in use and bytes still to be had, of the host and of the device."""

    host: float
    """This process and its children."""
    host_free: float
    device: float = 0.0
    device_free: float = math.inf
    children: Mapping[int, float] = _NONE
    """Part of ``host``: what each child process has for itself, by its number."""


@dataclass(frozen=True, slots=True)
class Growth:
    """A warning: which memory grows, how fast, how long it lasts, and what became more."""

    where: str
    """``host`` or ``device``."""
    per_step: float
    """Bytes."""
    steps_left: float
    """Steps until it is exhausted at this pace."""
    seconds_left: float
    """The same by the clock."""
    children: Mapping[int, float] = field(default_factory=dict[int, float])
    """Share of the growth that lies in each child process, where most of it does."""
    became_more: tuple[str, ...] = ()
    """Kinds of live tensors and of containers' elements that became more since growth was first
    suspected; of this process alone."""

    def __str__(self) -> str:
        return (
            f"{self.where} memory grows by {self.per_step / _MB:.2f} MB a step and is exhausted in "
            f"about {self.steps_left:.0f} steps ({_span(self.seconds_left)}); {self._what()}"
        )

    def _what(self) -> str:
        if self.children:
            named = " and ".join(map(str, sorted(self.children)))
            return (
                f"{100 * sum(self.children.values()):.0f} % of it in the child processes {named}: "
                "look at what the data set keeps, or changes, in its DataLoader workers (each of "
                "them copies a list of Python objects bit by bit just by reading it; an array is "
                "not copied)"
            )
        if self.became_more:
            return f"what became more: {', '.join(self.became_more)}"
        return (
            "no kind of tensor and no container became more: look at arrays and strings that are "
            "joined to longer ones, and at what libraries keep by themselves"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a journal."""
        children = {str(number): share for number, share in self.children.items()}
        fields = ("where", "per_step", "steps_left", "seconds_left", "became_more")
        return {name: getattr(self, name) for name in fields} | {"children": children}


class MemoryWatch:
    """Asked once a step; warns once for each kind of memory.

    Args:
        every: steps between two samples...
        seconds: ...or so much time, where steps are long.
        horizon: warn when memory would be exhausted within so many seconds.
        least: bytes that it has to have grown by over the samples.
        allowance: bytes that it may grow by from the first sample on: caches that still fill.
        read: gives a reading; the process's own by default.
        clock: seconds, for tests.

    >>> watch = MemoryWatch(every=1, read=lambda: MemoryReading(1e9, 8e9))
    >>> any(watch.step() for _ in range(100))
    False
    """

    def __init__(
        self,
        *,
        every: int = 20,
        seconds: float = 10.0,
        horizon: float = 6 * 3600.0,
        least: float = 64 * _MB,
        allowance: float = 0.0,
        read: Callable[[], MemoryReading] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        settings = (seconds, horizon, least)
        if every < 1 or not all(value > 0.0 for value in settings) or not allowance >= 0.0:
            raise ConfigError(
                f"MemoryWatch: every={every} at least 1, seconds={seconds}, horizon={horizon} and "
                f"least={least} above 0, allowance={allowance} at least 0."
            )
        self._every, self._seconds, self._horizon = every, seconds, horizon
        self._least, self._allowance = least, allowance
        self._read, self._clock = read or read_memory, clock
        self._samples: deque[_Sample] = deque(maxlen=64)
        self._first: MemoryReading | None = None
        self._step, self._not_before = 0, -math.inf
        self._census: Census | None = None
        self._counted = self._taken = self._suspected = 0
        self._warned: set[str] = set()

    def step(self) -> Growth | None:
        """One training step is over; a warning the first time that one is due."""
        self._step += 1
        now = self._clock()
        if not self._due(now):
            return None
        started = time.thread_time()
        reading = self._read()
        self._not_before = now + _SPARING * (time.thread_time() - started)
        self._samples.append(_Sample(self._step, now, reading))
        self._taken += 1
        self._first = self._first or reading
        for where in ("host", "device"):
            if where not in self._warned and (growth := self._look(where)) is not None:
                self._warned.add(where)
                return growth
        if self._taken - self._suspected > _CALM:
            self._census = None
        return None

    def _due(self, now: float) -> bool:
        late = bool(self._samples) and now - self._samples[-1].time >= self._seconds
        return (self._step % self._every == 0 or late) and now >= self._not_before

    def _look(self, where: str) -> Growth | None:
        if len(self._samples) < _FEWEST or self._first is None:
            return None
        first, last = self._samples[0], self._samples[-1]
        grown = getattr(last.reading, where) - getattr(self._first, where)
        slope = _steady_slope(self._steps(), self._used(where), self._least)
        if slope is None or grown < self._allowance:
            return None
        self._suspected = self._taken
        if self._census is None:
            self._census, self._counted = Census(), self._taken  # compared with at the warning
        left = max(getattr(last.reading, f"{where}_free"), 0.0) / slope
        seconds = left * (last.time - first.time) / max(last.step - first.step, 1)
        enough = len(self._samples) >= _FEWEST_TO_WARN
        if seconds > self._horizon or not enough or self._taken - self._counted < _FEWEST:
            return None
        children = self._children(slope) if where == "host" else _NONE
        more = () if children else self._census.became_more()
        return Growth(where, slope, left, seconds, children, more)

    def _steps(self) -> NDArray[np.float64]:
        return np.array([sample.step for sample in self._samples], dtype=float)

    def _used(self, where: str) -> NDArray[np.float64]:
        return np.array([getattr(sample.reading, where) for sample in self._samples])

    def _children(self, slope: float) -> Mapping[int, float]:
        """Share of each child process in the growth, where it is more than half together."""
        steps, shares = self._steps(), dict[int, float]()
        for number in self._samples[-1].reading.children:
            used = [sample.reading.children.get(number, math.nan) for sample in self._samples]
            there = np.isfinite(used)
            if there.sum() >= _FEWEST:
                share = theil_sen(steps[there], np.array(used)[there])[0] / slope
                shares[number] = round(share, 3)
        shares = {number: share for number, share in shares.items() if share > 0.05}
        return shares if sum(shares.values()) > 0.5 else _NONE


class _Sample(NamedTuple):
    step: int
    time: float
    reading: MemoryReading


def _steady_slope(
    steps: NDArray[np.float64], used: NDArray[np.float64], least: float
) -> float | None:
    """Bytes a step, where it is a steady growth by at least so many bytes that has not slowed."""
    slope, tau = theil_sen(steps, used)
    if slope <= 0.0 or tau < _STEADY or slope * (steps[-1] - steps[0]) < least:
        return None
    half = len(steps) // 2
    slowed = theil_sen(steps[half:], used[half:])[0] < slope / 2  # a cache that is full by now
    return None if slowed else slope


def theil_sen(x: NDArray[np.float64], y: NDArray[np.float64]) -> tuple[float, float]:
    """Median slope of all pairs (Sen 1968), and Kendall's tau of y over x.

    >>> slope, tau = theil_sen(np.arange(5.0), np.array([0.0, 1.0, 2.0, 90.0, 4.0]))
    >>> slope, round(tau, 1)
    (1.0, 0.8)
    """
    i, j = np.triu_indices(len(x), k=1)
    slopes = (y[j] - y[i]) / (x[j] - x[i])
    return float(np.median(slopes)), float(np.sign(slopes).mean())


def read_memory() -> MemoryReading:
    """Of this process, its children, and the current CUDA device where CUDA is in use."""
    process = psutil.Process()
    children: dict[int, float] = {}
    for child in process.children(recursive=True):
        own = _own_memory(child)
        if own is not None:
            children[child.pid] = own
    host = float(process.memory_info().rss) + sum(children.values())
    free = float(psutil.virtual_memory().available)
    if not torch.cuda.is_initialized():
        return MemoryReading(host, free, children=children)
    device_free, _ = torch.cuda.mem_get_info()
    reserved, allocated = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    spare = float(device_free + reserved - allocated)
    return MemoryReading(host, free, float(allocated), spare, children)


def _own_memory(child: psutil.Process) -> float | None:
    """Bytes that a child shares with nobody; its resident size where that is not told."""
    try:
        try:
            return float(child.memory_full_info().uss)
        except psutil.AccessDenied:
            return float(child.memory_info().rss)
    except psutil.NoSuchProcess:  # it ended between being listed and being asked
        return None


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
