"""The course of a loss: how far it fell, whether it left its valley, its spikes and noise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from surefoot.doctor.columns import finite, from_the_start
from surefoot.doctor.robust import level, noise, running_median, trend_share
from surefoot.journal.series import Column

__all__ = ["Course", "Hump"]

_LOUD = 8.0
"""Standard deviations of noise from which a deviation is one; a batch of one has heavy tails."""
_LONGEST = 20_000
"""Values of a course; a longer log is told in medians of equal stretches."""


@dataclass(frozen=True)
class Hump:
    """Values far above those before them."""

    first: int
    """Index of the first value above; they go on to ``last``."""
    last: int
    peak: float
    base: float
    """Level before it."""
    over: bool
    """Whether the values came back."""

    @property
    def length(self) -> int:
        """How many values it lasts."""
        return self.last - self.first + 1


class Course:
    """The finite values of a column, smoothed by a running median as wide as the log allows."""

    def __init__(self, column: Column) -> None:
        self.column = _shortened(finite(column))
        self.values = self.column.values
        self.size = self.values.size
        width = int(min(51, max(1, self.size // 12) | 1))
        self.smooth = running_median(self.values, width)
        self.width = width

    @cached_property
    def sigma(self) -> float:
        """Noise of one value around the trend."""
        return noise(self.values)

    @cached_property
    def smooth_sigma(self) -> float:
        """Noise of the smoothed values."""
        return 1.25 * self.sigma / np.sqrt(self.width)

    @property
    def start(self) -> float:
        """The first value: that of the untrained model, in a log from the start."""
        return float(self.smooth[0]) if self.width > 1 else float(self.values[0])

    @cached_property
    def best_at(self) -> int:
        """Index of the lowest smoothed value."""
        return int(np.argmin(self.smooth))

    @property
    def best(self) -> float:
        """The lowest smoothed value."""
        return float(self.smooth[self.best_at])

    @cached_property
    def end(self) -> float:
        """Level of the last values."""
        return level(self.values[-max(min(3, self.size), self.size // 20) :])

    @cached_property
    def tau(self) -> float:
        """Kendall's tau against time: -1 if the values only fall."""
        return trend_share(self.values)

    @property
    def fell(self) -> bool:
        """Whether the end is lower than the start by more than noise."""
        return self.start - self.end > max(3 * self.smooth_sigma, 0.02 * abs(self.start))

    @property
    def gain(self) -> float:
        """How far it got below its start at best."""
        return self.start - self.best

    @property
    def climb(self) -> float:
        """How far the end lies above the best."""
        return self.end - self.best

    @property
    def left_its_valley(self) -> bool:
        """Whether it ended far above its best, for good.

        Half of what it had gained is lost again, or a fifth if it has doubled; and the values
        after the turn stand above those before it, not among them.
        """
        if self.explodes:
            return True
        if self.size < 5 or self.climb <= 0.15 * abs(self.best):
            return False
        share = self.climb / max(self.gain, 1e-12)
        doubled = share > 0.2 and self.climb > abs(self.best)
        return bool((share > 0.5 or doubled) and self._parted())

    def _parted(self) -> bool:
        """Whether the values part in two: those up to a turn, and higher ones after it.

        What a log from the first step has before its loss had fallen halfway does not count.
        """
        above = np.flatnonzero(self.smooth[self.best_at :] > self.best + 0.5 * self.climb)
        if not above.size:
            return False
        turn = self.best_at + int(above[0])
        fell = from_the_start(self.column) and self.gain > 3 * self.smooth_sigma
        settled = int(np.argmax(self.smooth <= self.best + 0.5 * self.gain)) if fell else 0
        low, high = self.smooth[settled:turn], self.smooth[turn:]
        if low.size < 3:
            rises = self.size >= 5 and trend_share(self.values[self.best_at :]) > 0.8
            return bool(rises or (high.size >= 3 and high.min() > 3 * np.max(low, initial=0.0)))
        least = max(3, min(2 * self.width, self.size // 8))
        return bool(high.size >= least and np.quantile(high, 0.1) > np.quantile(low, 0.95))

    @property
    def explodes(self) -> bool:
        """Whether it grows from value to value, ten times and more, above all that was before."""
        tail = self.values[self.best_at :] if self.width == 1 else self.smooth[self.best_at :]
        if tail.size < 3 or self.best <= 0 or tail[-1] < 10 * self.best:
            return False
        if tail[-1] < 2 * float(np.max(self.values[: self.best_at + 1])):
            return False
        return bool(np.mean(np.diff(tail) > 0) > 0.7)

    @property
    def erratic(self) -> bool:
        """Whether it swings by more than half its level and goes nowhere."""
        if self.size < 4:
            return False
        swing = float(np.ptp(self.values)) / max(abs(level(self.values)), 1e-12)
        return swing > 0.5 and self.tau > -0.4 and not self.fell

    @property
    def rose_at_the_end(self) -> bool:
        """Whether the last values climb out of the lowest ones, even a little."""
        if self.size < 3 or self.best_at >= self.size - 1:
            return False
        rise = float(np.max(self.smooth[self.best_at :])) - self.best
        # From a handful of values the noise is known badly, and what trend there is enters it.
        if self.size < 6:
            return rise > 0.1 * abs(self.best)
        sure = 4.0 if self.size >= 12 else 2.0
        return rise > max(sure * self.smooth_sigma, 0.04 * abs(self.best))

    @cached_property
    def humps(self) -> tuple[Hump, ...]:
        """Stretches that stand out of what was before them by far, in their order."""
        found: list[Hump] = []
        if self.size < 3:
            return ()
        for at in np.flatnonzero(self._loud):
            if at and (not found or at > found[-1].last):
                found.append(self._hump_at(int(at)))
        return tuple(found)

    @property
    def arch(self) -> Hump | None:
        """The highest stretch of a short log that climbs and comes down again over many values.

        Too slow for :attr:`humps`, whose base follows it up.
        """
        if not 6 <= self.size <= 60:
            return None
        top = int(np.argmax(self.smooth))
        if top in (0, self.size - 1):
            return None
        left, right = float(self.smooth[:top].min()), float(self.smooth[top:].min())
        base, peak = max(left, right), float(self.smooth[top])
        if peak - base <= max(6 * self.smooth_sigma, 0.25 * abs(base)) or peak <= self.start:
            return None
        high = np.flatnonzero(self.smooth > base + 0.35 * (peak - base))
        return Hump(int(high[0]), int(high[-1]), peak, left, over=bool(high[-1] < self.size - 1))

    @cached_property
    def _base(self) -> np.ndarray:
        """At each index the median of up to 25 values before it."""
        wide = min(25, max(1, self.size // 4))
        padded = np.concatenate([np.full(wide, self.values[0]), self.values[:-1]])
        windows = np.lib.stride_tricks.sliding_window_view(padded, wide)
        return np.median(windows, axis=-1)

    @cached_property
    def _threshold(self) -> np.ndarray:
        beyond = np.maximum(_LOUD * self.sigma, 0.3 * np.abs(self._base))
        if self.size >= 40:
            # Of heavy tails a tenth of the values tells the size; a spike is rarer than that.
            beyond = np.maximum(beyond, 4.0 * np.quantile(self.values - self._base, 0.9))
        return self._base + beyond

    @cached_property
    def _loud(self) -> np.ndarray:
        return self.values > self._threshold

    def _hump_at(self, at: int) -> Hump:
        base = float(self._base[at])
        peak_so_far = float(self.values[at])
        last = at
        quiet = 0
        for index in range(at + 1, self.size):
            value = float(self.values[index])
            peak_so_far = max(peak_so_far, value)
            if value > base + 0.35 * (peak_so_far - base):
                last, quiet = index, 0
            else:
                quiet += 1
                if quiet >= 3:
                    break
        return Hump(at, last, peak_so_far, base, over=last < self.size - 1)


def _shortened(column: Column) -> Column:
    size = column.values.size
    if size <= _LONGEST:
        return column
    width = -(-size // _LONGEST)
    whole = size // width
    medians = np.median(column.values[: whole * width].reshape(whole, width), axis=1)
    first = np.arange(whole) * width
    return replace(column, values=medians, steps=column.steps[first], lines=column.lines[first])
