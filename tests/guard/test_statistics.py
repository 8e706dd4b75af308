"""BatchNorm's running statistics: what a batch may do to them, and what was done by others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from guard.conftest import batch, loss_of, net
from surefoot.guard import Guard
from surefoot.records import Event

both = pytest.mark.parametrize("decide", ["host", "device"])


def warmed_up(decide: str) -> tuple[nn.Sequential, Guard]:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    guard = Guard(model, optimizer, decide=decide, clip=1.0)
    for step in range(25):
        guard.step(loss_of(model, *batch(step)))
    return model, guard


@both
def test_a_batch_like_no_other_teaches_and_stays_out_of_the_statistics(decide):
    model, guard = warmed_up(decide)
    before = model[1].running_var.clone()
    images, labels = batch(25)
    record = guard.step(loss_of(model, images * 1e6, labels))
    assert record.applied
    assert Event.BATCH_OUTLYING in record.events
    assert torch.equal(model[1].running_var, before)


@both
def test_statistics_that_somebody_spoils_after_the_forward_pass_are_no_fault_of_the_batch(decide):
    model, guard = warmed_up(decide)
    before = model[1].running_var.clone()
    loss = loss_of(model, *batch(25))
    model[1].running_var.data[2] = float("nan")
    record = guard.step(loss)
    assert record.applied
    assert Event.BUFFERS_MENDED in record.events
    assert Event.BATCH_OUTLYING not in record.events
    assert record.culprits[0].name == "1.running_var"
    assert torch.equal(model[1].running_var, before)
    following = guard.step(loss_of(model, *batch(26)))
    assert not {Event.BUFFERS_MENDED, Event.BATCH_OUTLYING} & set(following.events)
