"""Time several ways of doing one thing in turn, so that a busy machine slows all of them alike."""

from __future__ import annotations

import platform
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["Row", "interleave", "machine", "print_table"]


@dataclass(frozen=True)
class Row:
    """One way's times, and their ratio to the rival's of the same round."""

    name: str
    milliseconds: np.ndarray
    ratios: np.ndarray


def interleave(
    ways: Mapping[str, tuple[Callable[[], object], Callable[[], object]]],
    *,
    rival: str,
    rounds: int,
    warmup: int = 5,
) -> list[Row]:
    """Run every way once a round in random order; ratios are taken within a round.

    A way is a pair: what prepares it, outside the clock, and what is timed.
    """
    shuffle = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warmup + rounds):
        for name in shuffle.sample(list(ways), len(ways)):
            prepare, run = ways[name]
            prepare()
            _wait()
            start = time.perf_counter()
            run()
            _wait()
            if number >= warmup:
                times[name].append(1e3 * (time.perf_counter() - start))
    base = np.array(times[rival])
    return [Row(name, np.array(t), np.array(t) / base) for name, t in times.items()]


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def machine() -> str:
    """Device, threads and versions: a figure means nothing without them."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"{_processor()}, {torch.get_num_threads()} threads"
    return f"{device}; torch {torch.__version__}, Python {platform.python_version()}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        return names[0] if names else platform.processor()
    except OSError:
        return platform.processor()


def print_table(title: str, rows: list[Row], *, rival: str) -> None:
    """Median, quartiles and ratio, one row a way."""
    n = len(rows[0].milliseconds)
    print(f"\n{title}  (n={n}, ratio to: {rival})")
    print(f"{'':42}{'ms median':>10}{'ms min':>9}{'ratio':>8}{'quartiles':>15}")
    for row in rows:
        low, middle, high = np.percentile(row.ratios, [25, 50, 75])
        ms = row.milliseconds
        print(
            f"{row.name:42}{np.median(ms):10.2f}{ms.min():9.2f}{middle:8.3f}"
            f"{f'{low:.3f}-{high:.3f}':>15}"
        )
