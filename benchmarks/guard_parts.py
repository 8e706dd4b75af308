"""Where a guarded step's time goes, part by part, the rare parts spread over all steps.

    python -m benchmarks.guard_parts                 # ResNet-18, batch 8, 64 pixels
    python -m benchmarks.guard_parts --model mlp

Every part is timed where it is called, in one healthy run with the default policy: two named loss
terms, a snapshot in 50 steps, the terms' gradients sampled as often as the policy says. Parts lie
beside each other, but for "all of guard.step", which holds them and the backward pass.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.interleave import machine
from benchmarks.whole_step import Task, mlp, resnet18
from surefoot.guard import Guard
from surefoot.shapes import LossTerms

PARTS = {
    "norms of the gradients": ["measure.ParameterTable.measure"],
    "the optimizer's own kernel": ["apply.OwnStep.apply"],
    "buffers kept": [
        "buffers.BufferKeeper.capture",
        "buffers.BufferKeeper.window_closed",
        "buffers.BufferKeeper.restore",
    ],
    "spikes judged": ["spike.HostSpikes.judge", "spike.HostSpikes.accept"],
    "inputs kept for a look at a refusal": [
        "kept.ForwardKeeper._on_model",
        "kept.ForwardKeeper._on_part",
        "kept.ForwardKeeper.begin",
        "kept.ForwardKeeper.end",
        "kept.ForwardKeeper.window_closed",
    ],
    "gradients of the terms sampled": ["inspector.Inspector.sample"],
    "state looked through": ["snapshot.Snapshot.faults"],
    "snapshots copied": ["snapshot.Snapshot.take"],
    "all of guard.step": ["guard.Guard.step"],
}
"""Label -> functions of surefoot.guard, by module."""


_WARM = 160
"""Steps until the third snapshot has been taken: memory is slow when it is first written."""


@dataclass
class Spent:
    """On one part."""

    seconds: float = 0.0
    calls: int = 0
    inside: int = 0


def watch(stack: ExitStack, where: str, spent: Spent, clock: Callable[[], float]) -> bool:
    """Time a function from here on; False where it is no longer there."""
    module, *path, name = where.split(".")
    owner: Any = import_module(f"surefoot.guard.{module}")
    for part in path:
        owner = getattr(owner, part, None)
    function = getattr(owner, name, None)
    if function is None:
        return False

    @wraps(function)
    def timed(*arguments: Any, **named: Any) -> Any:
        started, spent.inside = clock(), spent.inside + 1
        try:
            return function(*arguments, **named)
        finally:
            spent.inside -= 1
            if not spent.inside:  # else it is part of one that is timed already
                spent.seconds += clock() - started
                spent.calls += 1

    stack.enter_context(patch.object(owner, name, timed))
    return True


def run(task: Task, steps: int, clock: Callable[[], float]) -> tuple[dict[str, Spent], float]:
    """Seconds by part, and of everything, over so many steps once every snapshot has its memory."""
    spent = {label: Spent() for label in PARTS}
    with ExitStack() as stack:
        for label, places in PARTS.items():
            gone = [p for p in places if not watch(stack, p, spent[label], clock)]
            if gone:
                print(f"not found, not counted: {', '.join(gone)}")
        model, optimizer, _ = task.build()
        guard = Guard(model, optimizer, clip=1.0)
        step = _step(task, model, guard)
        for _ in range(_WARM):
            step()
        for part in spent.values():
            part.seconds, part.calls = 0.0, 0
        started = clock()
        for _ in range(steps):
            step()
        return spent, clock() - started


def _step(task: Task, model: nn.Module, guard: Guard) -> Callable[[], None]:
    def step() -> None:
        with guard.autocast():
            logits = model(task.inputs).float()
            loss = nn.functional.cross_entropy(logits, task.labels)
            terms = LossTerms({"class": loss, "size": logits.square().mean()}, {"size": 1e-3})
        guard.step(terms)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=["resnet18", "mlp"], default="resnet18")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image", type=int, default=64, help="side in pixels")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--cpu-time", action="store_true", help="with OMP_NUM_THREADS=1")
    options = parser.parse_args()
    print(machine())
    if options.model == "mlp":
        task = mlp(options.batch, "cpu", None)
    else:
        task = resnet18(options.batch, options.image, "cpu", None)
    clock = time.process_time if options.cpu_time else time.perf_counter
    spent, total = run(task, options.steps, clock)
    print(f"{options.model}, {options.steps} steps of {1e3 * total / options.steps:.2f} ms")
    print(f"{'':40}{'ms a step':>10}{'share':>9}{'calls':>8}")
    for label, part in spent.items():
        share = 100 * part.seconds / total
        each = 1e3 * part.seconds / options.steps
        print(f"{label:40}{each:10.3f}{share:8.2f}%{part.calls:8}")


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
