"""A GradScaler that is driven in the wrong order is told which line to move."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import nn

import surefoot
from guard.conftest import batch, loss_of, net
from surefoot.errors import UsageError
from surefoot.records import Cause, Event


class Loop:
    """Their loop, one call at a time."""

    def __init__(self, *, fused: bool = False, enabled: bool = True) -> None:
        self.model = net()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2, fused=fused)
        self.scaler = torch.amp.GradScaler("cpu", enabled=enabled)
        self.said = []
        self.attachment = surefoot.attach(
            self.optimizer, self.model, scaler=self.scaler, on_record=self.said.append
        )

    def backward(self, step: int, *, scaled: bool = True, factor: float = 1.0) -> None:
        images, labels = batch(step)
        loss = loss_of(self.model, images * factor, labels)
        (self.scaler.scale(loss) if scaled else loss).backward()

    def finish(self) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()


@pytest.mark.parametrize("fused", [True, False])
def test_the_right_order_is_left_alone_and_a_skipped_step_is_recorded_with_its_parameters(fused):
    loop = Loop(fused=fused)
    for step in range(5):
        loop.backward(step, factor=math.nan if step == 2 else 1.0)
        loop.scaler.unscale_(loop.optimizer)
        nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)
        loop.finish()
    assert [r.verdict.value for r in loop.said] == ["applied"] * 2 + ["refused"] + ["applied"] * 2
    assert loop.said[2].cause is Cause.OVERFLOW
    assert loop.said[2].culprits[0].name == "0.weight"
    assert [r.loss_scale for r in loop.said] == [65536.0] * 3 + [32768.0] * 2
    assert Event.BUFFERS_RESTORED in loop.said[2].events
    assert loop.scaler.get_scale() == 32768.0
    assert all(bool(torch.isfinite(b).all()) for b in loop.model.buffers())


def test_unscaling_every_micro_batch():
    loop = Loop()
    loop.backward(0)
    loop.scaler.unscale_(loop.optimizer)
    loop.backward(1)
    with pytest.raises(UsageError, match=r"once per optimizer step, right before scaler\.step"):
        loop.scaler.unscale_(loop.optimizer)


def test_stepping_twice_without_update():
    loop = Loop()
    loop.backward(0)
    loop.scaler.step(loop.optimizer)
    loop.backward(1)
    with pytest.raises(UsageError, match=r"Add scaler\.update\(\) right after"):
        loop.scaler.step(loop.optimizer)


def test_unscaling_after_the_step():
    loop = Loop()
    loop.backward(0)
    loop.scaler.step(loop.optimizer)
    with pytest.raises(UsageError, match=r"behind it, before scaler\.step"):
        loop.scaler.unscale_(loop.optimizer)


def test_updating_without_a_step():
    loop = Loop()
    loop.backward(0)
    with pytest.raises(UsageError, match=r"Move it behind scaler\.step"):
        loop.scaler.update()


def test_a_loss_that_was_never_scaled():
    loop = Loop()
    loop.backward(0)
    loop.finish()
    loop.backward(1, scaled=False)
    with pytest.warns(UserWarning, match=r"Replace loss.backward\(\) by scaler.scale\(loss\)"):
        loop.finish()


@pytest.mark.parametrize("fused", [True, False])
def test_clipping_before_unscaling_is_seen_by_the_norm_that_never_changes(fused):
    loop = Loop(fused=fused)

    def clip_too_early() -> None:
        for step in range(6):
            loop.backward(step)
            nn.utils.clip_grad_norm_(loop.model.parameters(), 1.0)
            loop.finish()

    with pytest.warns(UserWarning, match="in front of the clipping") as told:
        clip_too_early()
    assert len(told) == 1
    assert "the true threshold is 1.5e-05" in str(told[0].message)


def test_two_optimizers_share_a_scaler_and_each_is_watched():
    one, two = net(0), net(1)
    optimizers = [torch.optim.AdamW(m.parameters()) for m in (one, two)]
    scaler = torch.amp.GradScaler("cpu")
    attachments = [
        surefoot.attach(o, m, scaler=scaler) for o, m in zip(optimizers, (one, two), strict=True)
    ]
    for step in range(3):
        for optimizer, model in zip(optimizers, (one, two), strict=True):
            scaler.scale(loss_of(model, *batch(step))).backward()
            scaler.step(optimizer)
            optimizer.zero_grad()
        scaler.update()
    assert [a.tally.applied for a in attachments] == [3, 3]
    scaler.scale(loss_of(one, *batch(0))).backward()
    scaler.unscale_(optimizers[0])
    with pytest.raises(UsageError, match="second time"):
        scaler.unscale_(optimizers[0])


def test_detached_the_scaler_is_as_it_was_and_a_disabled_one_is_never_touched():
    loop = Loop()
    assert "step" in loop.scaler.__dict__
    loop.attachment.detach()
    assert "step" not in loop.scaler.__dict__
    pickle.loads(pickle.dumps(loop.scaler))
    disabled = Loop(enabled=False)
    assert "step" not in disabled.scaler.__dict__
    disabled.backward(0)
    disabled.finish()
    assert disabled.said[0].applied
