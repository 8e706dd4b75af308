"""Memory that grows: told in time, with what grows and in which process, and only when it does."""

from __future__ import annotations

import gc
import json
import math
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from surefoot.errors import ConfigError
from surefoot.guard.census import Census
from surefoot.guard.memory import MemoryReading, MemoryWatch, read_memory, theil_sen

MB = 2.0**20


@dataclass
class Machine:
    """Made-up memory by step and a clock; a step takes ``pace`` seconds."""

    curve: Callable[[int], float]
    where: str = "host"
    free: float = 4096 * MB
    pace: float = 1.0
    price: float = 0.0
    """Seconds that a reading takes."""
    step: int = 0
    spent: float = 0.0
    read_at: deque[int] = field(default_factory=lambda: deque(maxlen=2000))

    def read(self) -> MemoryReading:
        self.read_at.append(self.step)
        self.spent += self.price
        used = self.curve(self.step)
        host, device = (used, 0.0) if self.where == "host" else (0.0, used)
        return MemoryReading(host, self.free - host, device, self.free - device)

    def clock(self) -> float:
        return self.pace * self.step + self.spent

    def run(self, steps: int, **settings):
        """Warnings with their steps."""
        watch = MemoryWatch(**{"every": 1} | settings, read=self.read, clock=self.clock)
        found = []
        for self.step in range(1, steps + 1):
            if growth := watch.step():
                found.append((self.step, growth))
        return found


@pytest.mark.parametrize("where", ["host", "device"])
def test_a_leak_of_two_megabytes_a_step_is_told_once_with_the_time_left(where):
    random = np.random.default_rng(0)
    leak = Machine(lambda s: (500 + 2 * s + random.normal(0, 3)) * MB, where=where)
    ((step, growth),) = leak.run(300)
    assert step < 80
    assert growth.where == where
    assert growth.per_step == pytest.approx(2 * MB, rel=0.15)
    assert growth.steps_left == pytest.approx((4096 - 500 - 2 * step) / 2, rel=0.2)
    assert growth.seconds_left == pytest.approx(growth.steps_left)
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
        lambda s: (3000 - 5 * s) * MB,
    ],
)
def test_what_is_no_leak_is_not_told(curve):
    assert Machine(curve).run(400, horizon=1200.0) == []


def test_a_leak_that_lasts_longer_than_the_horizon_is_not_told_yet():
    ((step, _),) = Machine(lambda s: (500 + 2 * s) * MB).run(1790, horizon=600.0, every=10)
    assert 1190 < step < 1250


def test_a_cache_of_known_size_may_fill_slowly_and_a_leak_beyond_it_is_told():
    filling = lambda s: (300 + 2 * s) * MB  # noqa: E731
    assert Machine(lambda s: min(filling(s), 800 * MB)).run(600, allowance=512 * MB, every=4) == []
    ((step, _),) = Machine(filling).run(600, allowance=512 * MB, every=4)
    assert 256 < step < 320


def test_long_steps_are_sampled_by_the_clock_and_told_in_time():
    slow = Machine(lambda s: (500 + 40 * s) * MB, pace=30.0)
    ((step, _),) = slow.run(90, every=20)
    assert step < 40
    assert list(slow.read_at)[:4] == [20, 21, 22, 23]


def test_a_reading_that_takes_long_is_made_seldom(monkeypatch):
    busy = Machine(lambda s: 900 * MB, pace=0.1, price=0.05)
    monkeypatch.setattr("time.thread_time", busy.clock)
    busy.run(1000, every=1)
    assert 18 <= len(busy.read_at) <= 22  # 0.05 s in every 5 s


def test_a_leak_that_starts_late_is_described_as_well():
    kept: list[torch.Tensor] = []

    def curve(step: int) -> float:
        if step > 200:
            kept.append(torch.zeros(5, 3))
        return (500 + 30 * max(0, step - 200)) * MB

    ((step, growth),) = Machine(curve).run(300)
    assert 208 < step < 260
    assert any(line.endswith("more of float32 5x3") for line in growth.became_more)


def test_kept_losses_are_named_by_kind_and_by_the_list_that_holds_them():
    model, losses = nn.Linear(4, 4), []
    here = "test_kept_losses_are_named_by_kind_and_by_the_list_that_holds_them"

    def curve(step: int) -> float:
        losses.extend(model(torch.ones(2, 4)).sum() for _ in range(2))
        return (500 + 20 * step) * MB

    ((_, growth),) = Machine(curve).run(60)
    (tensors,) = [line for line in growth.became_more if "scalar, with its graph" in line]
    assert int(tensors.removesuffix(" more of float32 scalar, with its graph")) >= 8
    assert any(
        line.endswith(f"more Tensor in the list losses of {here}") for line in growth.became_more
    )
    assert "; what became more: " in str(growth)


def test_a_growing_list_of_arrays_is_named_though_no_tensor_became_more():
    class Keeper:
        def __init__(self) -> None:
            self.seen = [np.zeros(3) for _ in range(16)]

    keeper = Keeper()

    def curve(step: int) -> float:
        keeper.seen += [np.zeros(3), np.zeros(3)]
        return (500 + 20 * step) * MB

    ((_, growth),) = Machine(curve).run(60)
    assert any(line.endswith("more ndarray in the list Keeper.seen") for line in growth.became_more)


def test_where_nothing_that_is_counted_became_more_that_is_said():
    joined = np.zeros(4)

    def curve(step: int) -> float:
        nonlocal joined
        joined = np.append(joined, np.zeros(4))
        return (500 + 20 * step) * MB

    gc.collect()
    ((_, growth),) = Machine(curve).run(60)
    assert growth.became_more == ()
    assert "no kind of tensor and no container became more: look at arrays" in str(growth)


def test_the_worker_that_grows_is_named():
    def read_at(step: int) -> MemoryReading:
        children = {71: 100 * MB, 72: (100 + 9 * step) * MB}
        if step > 4:
            children[73] = 50 * MB
        host = (500 + step) * MB + sum(children.values())
        return MemoryReading(host, 8192 * MB - host, children=children)

    steps, seconds = count(1), count(1)
    watch = MemoryWatch(every=1, read=lambda: read_at(next(steps)), clock=lambda: next(seconds))
    (growth,) = [g for _ in range(60) if (g := watch.step())]
    assert growth.children == {72: pytest.approx(0.9, abs=0.02)}
    assert growth.became_more == ()
    assert "90 % of it in the child processes 72: look at what the data set keeps" in str(growth)
    assert json.loads(json.dumps(growth.to_dict()))["children"] == {"72": growth.children[72]}


SHARES_THEN_WRITES = """
import os, sys
block = bytearray(b"x" * 40_000_000)
told, tell = os.pipe()
worker = os.fork()
if worker == 0:
    os.read(told, 1)
    for i in range(0, len(block), 4096):
        block[i] = 1
    print("written", flush=True)
    sys.stdin.readline()
    os._exit(0)
print(worker, flush=True)
sys.stdin.readline()
os.write(tell, b"1")
os.waitpid(worker, 0)
"""


@contextmanager
def a_process(code: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    try:
        yield process
    finally:
        process.stdin.close()
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.skipif(sys.platform != "linux", reason="what a child shares is told on Linux")
def test_pages_that_a_worker_shared_count_once_it_has_copied_them():
    with a_process(SHARES_THEN_WRITES) as parent:
        worker = int(parent.stdout.readline())
        before = read_memory()
        assert before.children[worker] < 20 * MB
        parent.stdin.write("go\n")
        assert parent.stdout.readline() == "written\n"
        after = read_memory()
        assert after.children[worker] > 38 * MB
        assert after.host - sum(after.children.values()) > 10 * MB
        parent.stdin.write("end\n")


def test_the_reading_of_this_process_is_plausible():
    reading = read_memory()
    assert 10 * MB < reading.host < 1e12
    assert reading.host_free > 0


def test_a_census_keeps_nothing_alive():
    tensors = [torch.zeros(7, 7) for _ in range(40)]
    census = Census()
    before = sys.getrefcount(tensors[0])
    more = [torch.zeros(7, 7) for _ in range(20)]
    assert "20 more of float32 7x7" in census.became_more()
    after = sys.getrefcount(tensors[0])
    assert after == before
    del more
    assert not any("7x7" in line for line in census.became_more())


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


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"every": 0}, "every=0 at least 1"),
        ({"horizon": math.nan}, "horizon=nan"),
        ({"seconds": 0.0}, "seconds=0.0"),
        ({"allowance": -1.0}, "allowance=-1.0 at least 0"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, said):
    with pytest.raises(ConfigError, match=said):
        MemoryWatch(**settings)
