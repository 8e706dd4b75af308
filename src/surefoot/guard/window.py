"""What the last accepted steps were like, in numbers that one spike cannot move.

A window holds the logarithms of a positive quantity (the loss, the gradient norm) over the last
accepted steps. Its middle is the median and its width the median absolute deviation, times 1.4826
so that it estimates a normal distribution's standard deviation (Rousseeuw and Croux 1993): half of
the window would have to be spikes before either moves far.

There are two of a kind. On the device everything is a tensor and asking costs no synchronisation;
on the host it is a sorted list, and a step costs a few microseconds.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from typing import Any

import torch
from torch import Tensor

from surefoot.errors import ConfigError

__all__ = ["DeviceWindow", "HostWindow"]

_CONSISTENT = 1.4826
_LEAST_WIDTH = 0.05
"""Log units; a window of equal values (a constant loss) would call every change a spike."""


class HostWindow:
    """Robust statistics of a positive quantity, on the host.

    Args:
        size: accepted steps that are remembered.
        warmup: accepted steps before the window has an opinion.

    >>> window = HostWindow(size=32, warmup=4)
    >>> for value in (1.0, 1.1, 0.9, 1.0, 1.2):
    ...     window.accept(value)
    >>> window.deviation(1.3) < 6 < window.deviation(50.0)
    True
    """

    def __init__(self, *, size: int, warmup: int) -> None:
        _check(size, warmup)
        self._warmup = warmup
        self._recent: deque[float] = deque(maxlen=size)
        self._sorted: list[float] = []

    def accept(self, value: float) -> None:
        """Take in the value of an accepted step; what has no logarithm is left out."""
        if not 0.0 < value < math.inf:
            return
        log = math.log(value)
        if len(self._recent) == self._recent.maxlen:
            del self._sorted[bisect_left(self._sorted, self._recent[0])]
        self._recent.append(log)
        insort(self._sorted, log)

    def deviation(self, value: float) -> float:
        """How many robust standard deviations the value lies above the window's middle.

        0 during warm-up and for a value that has no logarithm.
        """
        if len(self._sorted) < self._warmup or not 0.0 < value < math.inf:
            return 0.0
        return (math.log(value) - self._middle()) / self._width()

    def median(self) -> float:
        """The window's middle, in the quantity's own unit; NaN while it is empty."""
        return math.exp(self._middle()) if self._sorted else math.nan

    def _middle(self) -> float:
        return self._sorted[(len(self._sorted) - 1) // 2]

    def _width(self) -> float:
        """Median distance to the middle: two sorted runs, merged from the middle outwards."""
        logs, middle = self._sorted, self._middle()
        high = (len(logs) - 1) // 2
        low, distance = high - 1, 0.0
        for _ in range((len(logs) + 1) // 2):
            below = middle - logs[low] if low >= 0 else math.inf
            above = logs[high] - middle if high < len(logs) else math.inf
            if below < above:
                distance, low = below, low - 1
            else:
                distance, high = above, high + 1
        return max(_CONSISTENT * distance, _LEAST_WIDTH)

    def state_dict(self) -> dict[str, Any]:
        """The remembered logarithms, oldest first."""
        return {"logs": list(self._recent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; of a longer window the newest values are kept."""
        self._recent = deque(state["logs"], maxlen=self._recent.maxlen)
        self._sorted = sorted(self._recent)


class DeviceWindow:
    """The same for Q quantities at once on the device: no synchronisation.

    Args:
        quantities: Q.
        size: accepted steps that are remembered.
        warmup: accepted steps before the window has an opinion.
        device: where it lives.
    """

    def __init__(self, quantities: int, *, size: int, warmup: int, device: torch.device) -> None:
        _check(size, warmup)
        self._size, self._warmup = size, warmup
        self._logs = torch.full((size, quantities), math.nan, device=device)
        self._count = torch.zeros(quantities, dtype=torch.int64, device=device)

    def accept(self, values: Tensor, good: Tensor) -> None:
        """Take in Q values where the 0-d bool ``good`` holds and they have a logarithm."""
        fits = good & (values > 0) & (values < math.inf)
        place = (self._count % self._size)[None]
        old = self._logs.gather(0, place)
        self._logs.scatter_(0, place, torch.where(fits, values.float().log(), old))
        self._count += fits

    def deviation(self, values: Tensor) -> Tensor:
        """Q; see :meth:`HostWindow.deviation`."""
        middle = self._logs.nanmedian(dim=0).values
        spread = (self._logs - middle).abs().nanmedian(dim=0).values
        width = torch.clamp(_CONSISTENT * spread, min=_LEAST_WIDTH)
        fits = (self._count >= self._warmup) & (values > 0) & (values < math.inf)
        return torch.where(fits, (values.float().log() - middle) / width, torch.zeros_like(width))

    def median(self) -> Tensor:
        """Q; NaN where the window is empty."""
        return self._logs.nanmedian(dim=0).values.exp()

    def state_dict(self) -> list[dict[str, Any]]:
        """Of each quantity what :meth:`HostWindow.state_dict` gives."""
        states: list[dict[str, Any]] = []
        for column, count in zip(self._logs.T.tolist(), self._count.tolist(), strict=True):
            oldest = count % self._size if count > self._size else 0
            states.append({"logs": (column[oldest:] + column[:oldest])[: min(count, self._size)]})
        return states

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """The inverse of :meth:`state_dict`; of a longer window the newest values are kept."""
        columns = [list(state["logs"])[-self._size :] for state in states]
        padded = [c + [math.nan] * (self._size - len(c)) for c in columns]
        device = self._logs.device
        self._logs = torch.tensor(padded, dtype=torch.float32, device=device).T.contiguous()
        self._count = torch.tensor([len(c) for c in columns], device=device)


def _check(size: int, warmup: int) -> None:
    if not 2 <= warmup <= size:
        raise ConfigError(f"window: 2 <= warmup <= size, not warmup={warmup} and size={size}.")
