"""Statistics that a handful of wild values cannot fool, on finite values in a log's order."""

from __future__ import annotations

import numpy as np

__all__ = [
    "condense",
    "constant_since",
    "last_level",
    "level",
    "noise",
    "running_median",
    "slope",
    "trend_share",
]

_GAUSS = 1.4826
"""Of a normal distribution: standard deviation over median absolute deviation."""


def level(values: np.ndarray) -> float:
    """The median; NaN of nothing."""
    return float(np.median(values)) if values.size else float("nan")


def last_level(values: np.ndarray, share: float = 0.1, least: int = 3) -> float:
    """The median of the last ``share`` of the values, of ``least`` at least."""
    return level(values[-max(least, round(values.size * share)) :])


def noise(values: np.ndarray) -> float:
    """Standard deviation of a value around the trend, from first or second differences.

    A trend that is slow against the steps of the log does not enter, nor one that bends; a few
    jumps hardly do.

    >>> noise(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    0.0
    """
    if values.size < 3:
        return 0.0
    steps, bends = np.diff(values), np.diff(values, 2)
    first = np.median(np.abs(steps - np.median(steps))) / np.sqrt(2)
    second = np.median(np.abs(bends - np.median(bends))) / np.sqrt(6) if bends.size > 2 else first
    return float(_GAUSS * min(first, second))


def running_median(values: np.ndarray, width: int) -> np.ndarray:
    """N medians of ``width`` neighbours, fewer at both ends."""
    half = max(0, (width - 1) // 2)
    if half == 0 or values.size < 3:
        return values
    half = min(half, (values.size - 1) // 2)
    inner = np.median(np.lib.stride_tricks.sliding_window_view(values, 2 * half + 1), axis=-1)
    head = [np.median(values[: i + half + 1]) for i in range(half)]
    tail = [np.median(values[i - half :]) for i in range(values.size - half, values.size)]
    return np.concatenate([head, inner, tail])


def condense(values: np.ndarray, bins: int = 2000) -> np.ndarray:
    """At most ``bins`` medians of equal stretches: a long run in the size of a short one."""
    if values.size <= bins:
        return values
    return np.array([np.median(part) for part in np.array_split(values, bins)])


def slope(x: np.ndarray, y: np.ndarray, points: int = 250) -> float:
    """Theil and Sen's slope: the median over all pairs of (at most ``points``) values.

    >>> slope(np.arange(5.0), np.array([0.0, 2.0, 4.0, 99.0, 8.0]))
    2.0
    """
    kept = np.unique(np.linspace(0, x.size - 1, min(points, x.size)).round().astype(int))
    x, y = x[kept], y[kept]
    left, right = np.triu_indices(x.size, k=1)
    run = x[right] - x[left]
    far = run != 0
    return float(np.median((y[right] - y[left])[far] / run[far])) if far.any() else 0.0


def trend_share(values: np.ndarray, points: int = 250) -> float:
    """Kendall's tau against time, in [-1, 1]: 1 if it only rises, 0 without a trend."""
    values = condense(values, points)
    if values.size < 2:
        return 0.0
    left, right = np.triu_indices(values.size, k=1)
    return float(np.mean(np.sign(values[right] - values[left])))


def constant_since(values: np.ndarray) -> tuple[float | None, int]:
    """The value that the series ends on without ever changing again, and from which index."""
    last = values[-1]
    differ = np.flatnonzero(np.abs(values - last) > 1e-9 * max(1.0, abs(last)))
    since = int(differ[-1]) + 1 if differ.size else 0
    return float(last), since
