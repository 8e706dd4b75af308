"""Whatever the guard remembers it remembers a bounded number of, however long a run is."""

from __future__ import annotations

import gc
import math
from collections import Counter, deque
from types import FunctionType, MethodType, ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import surefoot
from guard.conftest import batch, loss_of, net
from surefoot.guard import Guard, MemoryReading, MemoryWatch, PercentileClip, Policy
from surefoot.testing import bad_gradient

PERIOD = 8
"""Of the fault script; the policy's numbers divide by it, so that equal moments are compared."""


def policy() -> Policy:
    return Policy(
        window_size=32,
        window_warmup=8,
        snapshot_interval=16,
        snapshot_survives=4,
        max_rollbacks=1_000,
        spike="refuse",
        term_gradients_every=16,
    )


def held(root: Any) -> Counter[str]:
    """How many elements are in every container that the guard's own objects lead to."""
    seen, waiting, found = {id(root)}, [root], Counter[str]()
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, list | dict | set | frozenset | tuple | deque):
            found[type(thing).__name__] += len(thing)
        for inner in gc.get_referents(thing):
            ours = type(inner).__module__.startswith("surefoot")
            container = isinstance(inner, list | dict | set | frozenset | tuple | deque)
            code = isinstance(inner, type | ModuleType | FunctionType | MethodType | nn.Module)
            if (ours or container) and not code and id(inner) not in seen:
                seen.add(id(inner))
                waiting.append(inner)
    return found


class Training:
    """Good steps, a NaN batch, an infinite gradient and a spike, over and over."""

    def __init__(self, way: str) -> None:
        self.model = net()
        make = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self.optimizer, self.way, self.step_number = make, way, 0
        clip = PercentileClip(history=32, warmup=4)
        if way == "attached":
            self.root = surefoot.attach(self.optimizer, self.model, clip=clip, policy=policy())
        else:
            amp = "fp16" if way == "fp16" else None
            self.root = Guard(self.model, self.optimizer, clip=clip, amp=amp, policy=policy())

    def run(self, steps: int) -> None:
        for _ in range(steps):
            moment, self.step_number = self.step_number % PERIOD, self.step_number + 1
            images, labels = batch(moment)
            if moment == 2:
                images = images * math.nan
            loss = loss_of(self.model, images, labels) * (50.0 if moment == 4 else 1.0)
            spoilt = bad_gradient(self.model[0].weight, math.inf)
            if moment == 6:
                spoilt.__enter__()
            self.step(loss)
            if moment == 6:
                spoilt.__exit__(None, None, None)

    def step(self, loss: torch.Tensor) -> None:
        ids = [f"sample {self.step_number} {i}" for i in range(8)]
        if isinstance(self.root, Guard):
            self.root.step(loss, sample_ids=ids)
        else:
            self.root.observe(loss, sample_ids=ids)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()


@pytest.mark.parametrize("way", ["own", "fp16", "attached"])
def test_a_guard_holds_no_more_after_six_hundred_steps_than_after_three_hundred(way: str) -> None:
    training = Training(way)
    training.run(320)
    then = held(training.root)
    training.run(320)
    now = held(training.root)
    assert sum(then.values()) > 300  # windows and snapshots were found
    more = sum(now.values()) - sum(then.values())
    assert more <= 0.1 * sum(then.values()), (then, now)


def test_a_memory_watch_holds_sixty_four_samples() -> None:
    watch = MemoryWatch(every=1, read=lambda: MemoryReading(1e9, 1e9), clock=lambda: 0.0)
    sizes: list[int] = []
    for _ in range(3):
        for _ in range(200):
            watch._not_before = -math.inf
            watch.step()
        sizes.append(sum(held(watch).values()))
    assert sizes[1] == sizes[2]
    assert len(watch._samples) == 64
