"""The interval covers what it says, and says so when it cannot."""

from __future__ import annotations

import numpy as np
import pytest

from surefoot.errors import ConfigError, UsageError
from surefoot.metrics import bootstrap_interval


def test_the_interval_of_many_values_is_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    interval = bootstrap_interval(values, seed=1)
    spread = values.std() / np.sqrt(len(values))
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - 1.96 * spread, abs=0.05 * spread * 4)
    assert interval.high == pytest.approx(values.mean() + 1.96 * spread, abs=0.05 * spread * 4)
    assert (interval.level, interval.count) == (0.95, 400)


def test_it_covers_the_true_mean_about_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        interval = bootstrap_interval(draws.normal(size=10), seed=seed)
        held += interval.low <= 0.0 <= interval.high
    assert 0.84 <= held / 200 <= 0.95


def test_less_confidence_is_a_narrower_interval() -> None:
    values = np.random.default_rng(0).random(14)
    wide, narrow = (bootstrap_interval(values, seed=0, level=level) for level in (0.99, 0.8))
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_the_seed_decides_and_nothing_else_does() -> None:
    values = np.random.default_rng(0).random(14)
    np.random.seed(5)
    first = bootstrap_interval(values, seed=3)
    assert np.random.rand() == np.random.RandomState(5).rand()
    assert bootstrap_interval(values, seed=3) == first
    assert bootstrap_interval(values, seed=4) != first


def test_equal_values_leave_no_doubt() -> None:
    interval = bootstrap_interval([0.5] * 8, seed=0)
    assert (interval.low, interval.mean, interval.high) == (0.5, 0.5, 0.5)


def test_one_value_has_a_mean_and_no_bounds() -> None:
    interval = bootstrap_interval([0.4], seed=0)
    assert interval.mean == 0.4
    assert np.isnan(interval.low)
    assert np.isnan(interval.high)


def test_many_values_are_resampled_in_parts() -> None:
    values = np.random.default_rng(0).random(3001)  # no divisor of anything
    interval = bootstrap_interval(values, seed=0)
    assert interval.low < values.mean() < interval.high
    assert interval.high - interval.low == pytest.approx(3.92 * values.std() / 3001**0.5, rel=0.1)


def test_what_has_no_interval_is_refused() -> None:
    with pytest.raises(UsageError, match="no values"):
        bootstrap_interval([], seed=0)
    with pytest.raises(UsageError, match="value 1 is nan; leave out"):
        bootstrap_interval([0.5, np.nan], seed=0)
    for level in (0.0, 1.0, 95.0):
        with pytest.raises(ConfigError, match=f"level={level}; expected a share"):
            bootstrap_interval([0.5, 0.6], seed=0, level=level)
