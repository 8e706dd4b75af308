"""How far a mean could have come out otherwise, had other videos been drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from surefoot.errors import ConfigError, UsageError

__all__ = ["Interval", "bootstrap_interval"]

_RESAMPLES = 10_000
_AT_ONCE = 4_000_000


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and the bounds it lies between with the stated confidence."""

    mean: float
    low: float
    high: float
    level: float
    """Confidence, between 0 and 1."""
    count: int
    """Values the mean was taken of."""

    def __str__(self) -> str:
        bounds = f"{self.low:.3f} to {self.high:.3f}"
        return f"{self.mean:.3f} ({self.level:.0%}: {bounds}, n={self.count})"


def bootstrap_interval(values: ArrayLike, *, seed: int, level: float = 0.95) -> Interval:
    """Percentile bootstrap of a mean (Efron 1979), with 10,000 resamples.

    The values must be independent of each other: take one number per video, not per frame. With
    few of them the interval is somewhat too narrow (at n = 10 a nominal 95 % covers about 90 %).

    Args:
        values: n of them, finite.
        seed: of the resampling; the same seed gives the same bounds.
        level: confidence, between 0 and 1.

    Returns:
        The mean and its bounds; of a single value, which says nothing of a spread, NaN bounds.

    Raises:
        ConfigError: ``level`` is not between 0 and 1.
        UsageError: no values, or one that is not finite.

    >>> print(bootstrap_interval([0.4, 0.5, 0.6, 0.5], seed=0))
    0.500 (95%: 0.425 to 0.575, n=4)
    """
    if not 0.0 < level < 1.0:
        raise ConfigError(f"bootstrap_interval: level={level}; expected a share such as 0.95.")
    sample = np.asarray(values, dtype=np.float64).reshape(-1)
    if not len(sample):
        raise UsageError("bootstrap_interval: no values; there is no mean to be sure of.")
    if bad := np.flatnonzero(~np.isfinite(sample)).tolist():
        raise UsageError(
            f"bootstrap_interval: value {bad[0]} is {sample[bad[0]]}; leave out what was not "
            "measured, and say how many that were."
        )
    low = high = np.nan
    if len(sample) > 1:
        edges = [(1.0 - level) / 2.0, (1.0 + level) / 2.0]
        low, high = np.quantile(_resampled_means(sample, seed), edges)
    return Interval(
        mean=float(sample.mean()),
        low=float(low),
        high=float(high),
        level=level,
        count=len(sample),
    )


def _resampled_means(sample: np.ndarray, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    rows = max(1, _AT_ONCE // len(sample))  # bounds the memory, whatever the number of values
    means = [
        sample[generator.integers(len(sample), size=(count, len(sample)))].mean(axis=1)
        for start in range(0, _RESAMPLES, rows)
        if (count := min(rows, _RESAMPLES - start))
    ]
    return np.concatenate(means)
