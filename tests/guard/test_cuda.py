"""What only a GPU can show: a healthy step makes the host wait for nothing."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager

import pytest
import torch

import surefoot
from guard.conftest import batch, loss_of, net
from surefoot.guard import Guard
from surefoot.testing import State

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@contextmanager
def no_waiting() -> Generator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_gpu(step: int, factor: float = 1.0):
    images, labels = batch(step)
    return images.cuda() * factor, labels.cuda()


@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_healthy_step_of_the_own_loop_never_waits(amp, clip):
    model = net().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    guard = Guard(model, optimizer, amp=amp, clip=clip)
    batches = [on_gpu(step) for step in range(6)]
    for x, y in batches[:3]:  # snapshots and lazy initialisation
        with guard.autocast():
            loss = loss_of(model, x, y)
        guard.step(loss)
    for x, y in batches[3:]:
        with no_waiting(), guard.autocast():
            loss = loss_of(model, x, y)
        torch.cuda.synchronize()  # so that the record of the step before is there
        with no_waiting():
            guard.step(loss)


def test_a_healthy_attached_step_never_waits():
    model = net().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    surefoot.attach(optimizer, model, clip=1.0)
    batches = [on_gpu(step) for step in range(6)]
    for number, (x, y) in enumerate(batches):
        torch.cuda.synchronize()
        if number < 3:
            loss_of(model, x, y).backward()
            optimizer.step()
        else:
            with no_waiting():
                loss_of(model, x, y).backward()
                optimizer.step()
        optimizer.zero_grad()


def test_a_refused_step_on_the_gpu_leaves_no_trace():
    model = net().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    guard = Guard(model, optimizer)
    guard.step(loss_of(model, *on_gpu(0)))
    guard.flush()
    before = State.of(model, optimizer)
    assert guard.step(loss_of(model, *on_gpu(1, math.nan))).refused
    guard.flush()
    assert State.of(model, optimizer).differences(before) == []
