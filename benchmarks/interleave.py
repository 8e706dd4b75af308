"""Time several ways of doing one thing in turn, so that a busy machine slows all of them alike."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

__all__ = [
    "Row",
    "Way",
    "add_options",
    "clocked",
    "interleave",
    "machine",
    "print_table",
    "save_rows",
]

Way: TypeAlias = tuple[Callable[[], object], Callable[[], object]]
"""What prepares a round, outside the clock, and what is timed."""


@dataclass(frozen=True)
class Row:
    """One way's times, and their ratio to the rival's of the same round."""

    name: str
    milliseconds: np.ndarray
    ratios: np.ndarray


def add_options(parser: argparse.ArgumentParser) -> None:
    """What every comparison can be told."""
    parser.add_argument("--rounds", type=int, default=None, help="how often each way is timed")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--json", type=Path, default=None, help="append every time to this file")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="seconds of the processor, not of the clock: for a machine that others use, with "
        "OMP_NUM_THREADS=1",
    )


def clocked(options: argparse.Namespace) -> dict[str, Any]:
    """What :func:`add_options` parsed, as arguments of :func:`interleave`."""
    return {"rounds": options.rounds, "device": options.device, "cpu_time": options.cpu_time}


def interleave(
    ways: Mapping[str, Way],
    *,
    rival: str,
    rounds: int,
    warmup: int = 5,
    device: str = "cpu",
    cpu_time: bool = False,
) -> list[Row]:
    """Run every way once a round in random order; ratios are taken within a round.

    Args:
        ways: by name.
        rival: what the others are divided by.
        rounds: how often.
        warmup: rounds before them that do not count.
        device: what is waited for.
        cpu_time: take the processor's time and not the clock's.
    """
    clock = time.process_time if cpu_time else time.perf_counter
    shuffle = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warmup + rounds):
        for name in shuffle.sample(list(ways), len(ways)):
            prepare, run = ways[name]
            prepare()
            _wait(device)
            start = clock()
            run()
            _wait(device)
            if number >= warmup:
                times[name].append(1e3 * (clock() - start))
    base = np.array(times[rival])
    return [Row(name, np.array(t), np.array(t) / base) for name, t in times.items()]


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def machine(device: str = "cpu") -> str:
    """Device, threads, versions, and how busy it is: a figure means nothing without them."""
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name()
    else:
        load = os.getloadavg()[0]
        name = f"{_processor()}, {torch.get_num_threads()} threads, load average {load:.1f}"
    return f"{name}; torch {torch.__version__}, Python {platform.python_version()}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        return names[0] if names else platform.processor()
    except OSError:
        return platform.processor()


def print_table(
    title: str, rows: Sequence[Row], *, rival: str, missing: Mapping[str, str] | None = None
) -> None:
    """Median, ratio of the round with its quartiles, and ratio of the means, one row a way.

    The ratio of the means counts what is done now and then (a snapshot); the median does not.
    """
    base = next(row for row in rows if row.name == rival)
    print(f"\n{title}  (n={len(base.milliseconds)}, ratio to: {rival})")
    print(f"{'':46}{'ms median':>10}{'ms min':>9}{'ratio':>8}{'quartiles':>14}{'of means':>10}")
    for row in rows:
        low, middle, high = np.percentile(row.ratios, [25, 50, 75])
        ms, mean = row.milliseconds, row.milliseconds.mean() / base.milliseconds.mean()
        print(
            f"{row.name:46}{np.median(ms):10.2f}{ms.min():9.2f}{middle:8.3f}"
            f"{f'{low:.3f}-{high:.3f}':>14}{mean:10.3f}"
        )
    for name, why in (missing or {}).items():
        print(f"{name:46}  {why}")


def save_rows(path: Path | None, title: str, rows: Sequence[Row]) -> None:
    """Append a table to a file of JSON lines; nothing where there is no file."""
    if path is None:
        return
    ways = {row.name: np.round(row.milliseconds, 4).tolist() for row in rows}
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"title": title, "machine": machine(), "ms": ways}) + "\n")
