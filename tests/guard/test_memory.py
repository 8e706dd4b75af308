"""Memory that grows: told in time, named, and only when it really does."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surefoot.errors import ConfigError
from surefoot.guard.memory import MemoryReading, MemoryWatch, read_memory, theil_sen

MB = 2.0**20


def watch(curve, *, where="host", free=4096 * MB, **settings):
    """A watch over a made-up curve of bytes by step; a step takes one second."""
    now = iter(range(1, 10**6))
    state = {"step": 0}

    def read() -> MemoryReading:
        state["step"] += 1
        used = curve(state["step"])
        host, device = (used, 0.0) if where == "host" else (0.0, used)
        return MemoryReading(host, free - host, device, free - device)

    return MemoryWatch(every=1, read=read, clock=lambda: float(next(now)), **settings)


@pytest.mark.parametrize("where", ["host", "device"])
def test_a_leak_of_two_megabytes_a_step_is_told_once_with_the_time_left(where):
    random = np.random.default_rng(0)
    leak = watch(lambda s: (500 + 2 * s + random.normal(0, 3)) * MB, where=where)
    warnings = [(step, g) for step in range(1, 300) if (g := leak.step())]
    ((step, growth),) = warnings
    assert step < 80
    assert growth.where == where
    assert growth.per_step == pytest.approx(2 * MB, rel=0.15)
    assert growth.steps_left == pytest.approx((4096 - 500 - 2 * step) / 2, rel=0.2)
    assert str(growth).startswith(f"{where} memory grows by ")
    assert "MB a step and is exhausted in about" in str(growth)


@pytest.mark.parametrize(
    "curve",
    [
        lambda s: 900 * MB,
        lambda s: min(300 + 120 * s, 1500) * MB,  # a cache that fills in ten samples
        lambda s: (700 + 300 * (s % 20 == 0)) * MB,  # validation now and then
        lambda s: (700 + 200 * math.sin(s / 3)) * MB,
        lambda s: (700 + 0.01 * s) * MB,  # too slow to matter
    ],
)
def test_what_is_no_leak_is_not_told(curve):
    quiet = watch(curve, horizon=1200.0)
    assert [g for _ in range(400) if (g := quiet.step())] == []


def test_a_leak_that_lasts_longer_than_the_horizon_is_not_told_yet():
    slow = watch(lambda s: (500 + 2 * s) * MB, horizon=600.0)
    steps = [s for s in range(1, 1790) if slow.step()]
    assert len(steps) == 1
    assert 1190 < steps[0] < 1210


def test_the_tensors_that_became_more_are_named():
    kept: list[torch.Tensor] = []

    def curve(step: int) -> float:
        kept.append(torch.zeros(3, 7, requires_grad=True) * 2)
        return (500 + 20 * step) * MB

    (growth,) = [g for w in [watch(curve)] for _ in range(60) if (g := w.step())]
    assert any(t.endswith("more of float32 3x7, with its graph") for t in growth.tensors)


@given(
    st.floats(-5, 5),
    st.floats(-100, 100),
    st.lists(st.integers(0, 30), max_size=8, unique=True),
)
def test_the_slope_is_that_of_the_line_whatever_a_quarter_of_the_samples_says(slope, base, wild):
    x = np.arange(31.0)
    y = base + slope * x
    y[wild[:4]] += 1e4
    assert theil_sen(x, y)[0] == pytest.approx(slope, abs=0.75 + 0.3 * abs(slope))
    assert theil_sen(x, base + slope * x)[0] == pytest.approx(slope, abs=1e-9)


def test_the_reading_of_this_process_is_plausible():
    reading = read_memory()
    assert 10 * MB < reading.host < 1e12
    assert reading.host_free > 0


def test_settings_that_cannot_work_are_named():
    with pytest.raises(ConfigError, match="every=0 at least 1"):
        MemoryWatch(every=0)
