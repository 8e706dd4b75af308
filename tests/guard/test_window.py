"""Robust windows: against NumPy, against each other, and against spikes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.errors import ConfigError
from surefoot.guard.window import DeviceWindow, HostWindow

CPU = torch.device("cpu")
values = st.floats(1e-6, 1e6) | st.sampled_from([0.0, -1.0, math.nan, math.inf])


def oracle(seen: list[float], size: int, value: float) -> float:
    logs = np.log([v for v in seen if 0 < v < math.inf][-size:])
    middle = np.sort(logs)[(len(logs) - 1) // 2]
    distances = np.sort(np.abs(logs - middle))
    width = max(1.4826 * distances[(len(logs) - 1) // 2], 0.05)
    return (math.log(value) - middle) / width


@settings(max_examples=60)
@given(st.lists(values, max_size=40), st.integers(2, 12), st.floats(1e-6, 1e6))
def test_both_windows_are_the_plain_formula(seen, size, value):
    host = HostWindow(size=size, warmup=2)
    device = DeviceWindow(1, size=size, warmup=2, device=CPU)
    for x in seen:
        host.accept(x)
        device.accept(torch.tensor([x], dtype=torch.float64), torch.tensor(True))
    usable = sum(0 < x < math.inf for x in seen)
    wanted = oracle(seen, size, value) if usable >= 2 else 0.0
    assert host.deviation(value) == pytest.approx(wanted, rel=1e-6, abs=1e-6)
    got = device.deviation(torch.tensor([value], dtype=torch.float64))
    assert float(got) == pytest.approx(wanted, rel=1e-3, abs=2e-3)
    restored = DeviceWindow(1, size=size, warmup=2, device=CPU)
    restored.load_state_dict([host.state_dict()])
    (ours,), (theirs,) = restored.state_dict(), device.state_dict()
    assert ours["logs"] == pytest.approx(theirs["logs"], rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("kind", ["host", "device"])
def test_a_third_of_the_window_may_be_spikes(kind):
    window = (
        HostWindow(size=30, warmup=5)
        if kind == "host"
        else DeviceWindow(1, size=30, warmup=5, device=CPU)
    )
    for step in range(60):
        value = 1e5 if step % 3 == 2 else 1.0 + 0.1 * (step % 5)
        if isinstance(window, HostWindow):
            window.accept(value)
        else:
            window.accept(torch.tensor([value]), torch.tensor(True))
    ask = (lambda v: v) if kind == "host" else (lambda v: torch.tensor([v]))
    assert float(window.deviation(ask(1e5))) > 20
    assert float(window.deviation(ask(1.5))) < 4


def test_a_refused_value_never_enters_the_device_window():
    window = DeviceWindow(1, size=8, warmup=2, device=CPU)
    for value, good in ((1.0, True), (math.nan, False), (1e9, False), (2.0, True)):
        window.accept(torch.tensor([value]), torch.tensor(good))
    assert window.state_dict()[0]["logs"] == pytest.approx([0.0, math.log(2.0)])


def test_a_constant_quantity_is_no_reason_to_call_a_small_change_a_spike():
    window = HostWindow(size=16, warmup=2)
    for _ in range(16):
        window.accept(0.6931)
    assert window.deviation(0.70) < 1
    assert window.median() == pytest.approx(0.6931)


def test_a_window_that_can_never_warm_up_is_refused():
    with pytest.raises(ConfigError, match="not warmup=9 and size=8"):
        HostWindow(size=8, warmup=9)
