"""Memory that grows step by step, told before it runs out.

A sample is the resident memory of this process and its children and, on a GPU, what torch has
allocated there. The slope is Theil and Sen's (the median of the slopes of all pairs), which a
validation pass does not bend; Kendall's tau says how steady the growth is, and the newer half of
the samples has to grow as well, which a cache that is full does not (one that still fills looks
like a leak). Everything is bounded: 64 samples, and a census of live tensors only once growth is
suspected.
"""

from __future__ import annotations

import gc
import math
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import psutil
import torch
from torch import Tensor

from surefoot.errors import ConfigError

__all__ = ["Growth", "MemoryReading", "MemoryWatch", "read_memory", "theil_sen"]

_MB = 2.0**20
_STEADY = 0.7
"""Kendall's tau from which growth is called steady; 1 is every sample above the one before."""


class MemoryReading(NamedTuple):
    """Bytes in use and bytes still to be had, of the host and of the device."""

    host: float
    host_free: float
    device: float = 0.0
    device_free: float = math.inf


@dataclass(frozen=True, slots=True)
class Growth:
    """A warning: which memory grows, how fast, and how long it lasts."""

    where: str
    """``host`` or ``device``."""
    per_step: float
    """Bytes."""
    steps_left: float
    """Steps until it is exhausted at this pace."""
    seconds_left: float
    """The same by the clock."""
    tensors: tuple[str, ...]
    """Kinds of live tensors that became more since growth was first suspected."""

    def __str__(self) -> str:
        line = (
            f"{self.where} memory grows by {self.per_step / _MB:.2f} MB a step and is exhausted in "
            f"about {self.steps_left:.0f} steps ({_span(self.seconds_left)})"
        )
        if self.tensors:
            line += f"; tensors that became more: {', '.join(self.tensors)}"
        return line


class MemoryWatch:
    """Asked once a step; looks every ``every`` steps; warns once for each kind of memory.

    Args:
        every: steps between two samples.
        horizon: warn when memory would be exhausted within so many seconds.
        least: bytes that it has to have grown by over the samples.
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
        horizon: float = 6 * 3600.0,
        least: float = 64 * _MB,
        read: Callable[[], MemoryReading] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if every < 1 or not horizon > 0.0 or not least > 0.0:
            raise ConfigError(
                f"MemoryWatch: every={every} at least 1, horizon={horizon} and least={least} "
                "above 0."
            )
        self._every, self._horizon, self._least = every, horizon, least
        self._read, self._clock = read or read_memory, clock
        self._samples: deque[tuple[int, float, MemoryReading]] = deque(maxlen=64)
        self._step = 0
        self._census: Counter[str] | None = None
        self._warned: set[str] = set()

    def step(self) -> Growth | None:
        """One training step is over; a warning the first time that one is due."""
        self._step += 1
        if self._step % self._every:
            return None
        self._samples.append((self._step, self._clock(), self._read()))
        for where in ("host", "device"):
            if where not in self._warned and (growth := self._look(where)) is not None:
                self._warned.add(where)
                return growth
        return None

    def _look(self, where: str) -> Growth | None:
        if len(self._samples) < 8:
            return None
        steps = np.array([s for s, _, _ in self._samples], dtype=float)
        used = np.array([getattr(r, where) for _, _, r in self._samples])
        slope, tau = theil_sen(steps, used)
        if slope <= 0.0 or tau < _STEADY or slope * (steps[-1] - steps[0]) < self._least:
            return None
        half = len(steps) // 2
        if theil_sen(steps[half:], used[half:])[0] < slope / 2:
            return None  # it has slowed down: a cache that is full by now
        if self._census is None:
            self._census = _live_tensors()  # compared with at the warning
        (first, began, _), (last, now, reading) = self._samples[0], self._samples[-1]
        left = getattr(reading, f"{where}_free") / slope
        seconds = left * (now - began) / max(last - first, 1)
        if seconds > self._horizon or len(self._samples) < 16:
            return None
        more = _live_tensors() - self._census
        kinds = tuple(f"{n} more of {kind}" for kind, n in more.most_common(3))
        return Growth(where, slope, left, seconds, kinds)


def theil_sen(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Median slope of all pairs (Sen 1968), and Kendall's tau of y over x.

    >>> slope, tau = theil_sen(np.arange(5.0), np.array([0.0, 1.0, 2.0, 90.0, 4.0]))
    >>> slope, round(tau, 1)
    (1.0, 0.8)
    """
    i, j = np.triu_indices(len(x), k=1)
    slopes = (y[j] - y[i]) / (x[j] - x[i])
    return float(np.median(slopes)), float(np.sign(slopes).mean())


def read_memory() -> MemoryReading:
    """Of this process with its children, and of the current CUDA device."""
    process = psutil.Process()
    host = float(process.memory_info().rss)
    for child in process.children(recursive=True):
        try:
            host += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    free = float(psutil.virtual_memory().available)
    if not torch.cuda.is_available():
        return MemoryReading(host, free)
    device_free, _ = torch.cuda.mem_get_info()
    reserved, allocated = torch.cuda.memory_reserved(), torch.cuda.memory_allocated()
    return MemoryReading(host, free, float(allocated), float(device_free + reserved - allocated))


def _live_tensors() -> Counter[str]:
    """How many tensors of each dtype and shape the interpreter holds, with or without a graph."""
    kinds: Counter[str] = Counter()
    for thing in gc.get_objects():
        if type(thing) is Tensor:
            graph = ", with its graph" if thing.grad_fn is not None else ""
            shape = "x".join(map(str, thing.shape)) or "scalar"
            kinds[f"{str(thing.dtype).removeprefix('torch.')} {shape}{graph}"] += 1
    return kinds


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"
