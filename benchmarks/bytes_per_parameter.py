"""What a step reads and writes for each parameter, and what that is worth in time here.

    python -m benchmarks.bytes_per_parameter

Fused AdamW in float32 reads weight, gradient and two moments and writes three of them: 28 bytes.
Whatever looks at the gradient first adds 4, whatever changes it in a pass of its own 8, and a
kernel that divides it by the way 4. The last two columns hold this against the clock: how long so
many bytes take at the speed of a large copy, and how long the step takes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.interleave import Way, machine
from benchmarks.step_ways import Setting, attached, limit, ours, plain, scaler
from benchmarks.traffic import TrafficMeter

NEVER, ALWAYS, SCALE = 1e9, 1e-4, 65536.0


def ways(total: int) -> dict[str, tuple[int, Callable[[], Way]]]:
    """Bytes by the arithmetic, and the step."""
    free, clipped = Setting(total, clip=NEVER), Setting(total, clip=ALWAYS)
    scaled = Setting(total, clip=ALWAYS, scale=SCALE)
    return {
        "fused AdamW alone": (28, lambda: plain(Setting(total, clip=None))),
        "norm pass + fused AdamW": (32, lambda: limit(free)),
        "surefoot, nothing to divide": (32, lambda: ours(free)),
        "surefoot, attached, nothing to divide": (32, lambda: attached(free)),
        "surefoot, clipped": (36, lambda: ours(clipped)),
        "surefoot, clipped, on the device": (36, lambda: ours(clipped, decide="device")),
        "surefoot, fp16 scale and clipped": (36, lambda: ours(scaled)),
        "clip_grad_norm_ + fused AdamW": (40, lambda: plain(clipped)),
        "unscale_ + clip + scaler.step": (48, lambda: scaler(scaled)),
    }


def count(way: Way) -> TrafficMeter:
    """The traffic of a step that is not the first one."""
    prepare, step = way
    for _ in range(2):
        prepare()
        step()
    prepare()
    with TrafficMeter() as meter:
        step()
    return meter


def milliseconds(way: Way, rounds: int) -> float:
    prepare, step = way
    times: list[float] = []
    for _ in range(rounds):
        prepare()
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


def copy_speed(rounds: int) -> float:
    """Bytes a millisecond of a copy far larger than the caches; a byte copied is two moved."""
    source = torch.ones(64_000_000)
    target = torch.empty_like(source)
    way = (lambda: None, lambda: target.copy_(source))
    return 2 * source.numel() * 4 / milliseconds(way, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--millions", type=float, default=16.0)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    total = int(options.millions * 1e6)
    print(machine())
    speed = copy_speed(options.rounds)
    print(f"a large copy moves {speed / 1e6:.1f} GB a second")
    print(f"{'':40}{'expected':>9}{'counted':>9}{'at that speed':>15}{'measured':>10}")
    for name, (expected, make) in ways(total).items():
        way = make()
        counted = count(way).total / total
        at_speed = f"{counted * total / speed:.1f} ms"
        measured = f"{milliseconds(way, options.rounds):.1f} ms"
        print(f"{name:40}{expected:7} B{counted:7.1f} B{at_speed:>15}{measured:>10}")


if __name__ == "__main__":
    main()
