"""Rollback and divergence where somebody else calls the step."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import surefoot
from guard.test_recovery import POLICY, Run, poison
from surefoot.guard import Policy
from surefoot.records import Event
from surefoot.testing import State

both = pytest.mark.parametrize("decide", ["host", "device"])
tells = pytest.mark.parametrize("tells_loss", [True, False])


class TheirRun(Run):
    """The regression of the own loop's tests in a loop that knows nothing of a guard."""

    def __init__(self, decide: str, *, tells_loss: bool = True, policy: Policy = POLICY) -> None:
        super().__init__("host")
        self.guard.detach()
        self.tells_loss = tells_loss
        self.attachment = surefoot.attach(
            self.optimizer, self.model, policy=policy, decide=decide, on_record=self.records.append
        )

    def go(self, steps: int, **settings) -> None:
        for _ in range(steps):
            loss = self.loss(self.step, **settings)
            if self.tells_loss:
                self.attachment.observe(loss)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.step += 1

    def events(self) -> list[Event]:
        _ = self.attachment.tally
        kinds = (Event.ROLLED_BACK, Event.ROLLBACK_UNDONE)
        return [e for r in self.records for e in r.events if e in kinds]

    def loss_now(self) -> float:
        with torch.no_grad():
            return sum(float(self.loss(10_000 + i)) for i in range(20)) / 20


@both
@tells
@pytest.mark.parametrize("what", ["weight NaN", "weight 1e30", "moment NaN", "buffer NaN"])
def test_a_damaged_state_is_named_and_put_back(decide, tells_loss, what):
    clean = TheirRun(decide)
    clean.go(120)
    run = TheirRun(decide, tells_loss=tells_loss)
    run.go(60)
    name = poison(run, what)
    run.go(60)
    # A buffer needs no rollback here: whatever a GradScaler's silent skip left is put back.
    how = Event.BUFFERS_MENDED if what == "buffer NaN" else Event.ROLLED_BACK
    assert run.events() == ([] if what == "buffer NaN" else [how])
    (told,) = (r for r in run.records if how in r.events)
    assert name in [c.name for c in told.culprits]
    run.attachment.detach()
    state = State.of(run.model, run.optimizer).tensors
    assert all(bool(torch.isfinite(t).all()) for t in state.values() if t.is_floating_point())
    assert run.loss_now() < 3 * clean.loss_now() + 0.02


@both
@tells
def test_a_learning_rate_a_thousand_times_too_high_costs_some_steps_not_the_run(decide, tells_loss):
    run = TheirRun(decide, tells_loss=tells_loss)
    run.go(60)
    before = run.loss_now()
    for group in run.optimizer.param_groups:
        group["lr"] *= 1000
    run.go(5)
    for group in run.optimizer.param_groups:
        group["lr"] /= 1000
    run.go(60)
    assert run.events() == [Event.ROLLED_BACK]
    assert any(Event.RATE_JUMPED in r.events for r in run.records)
    assert run.loss_now() < 2 * before
    assert run.optimizer.param_groups[0]["lr"] == 1e-2


@both
def test_a_healthy_run_is_bit_equal_to_one_without_across_many_snapshots(decide):
    run, plain = TheirRun(decide), TheirRun(decide)
    plain.attachment.detach()
    plain.tells_loss = False
    run.go(45)
    plain.go(45)
    run.attachment.detach()
    assert (
        State.of(run.model, run.optimizer).differences(State.of(plain.model, plain.optimizer)) == []
    )


def test_parameters_the_model_does_not_hold_go_back_as_well():
    torch.manual_seed(0)
    inner, extra = nn.Linear(4, 4), nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([*inner.parameters(), extra], lr=1e-2)
    attachment = surefoot.attach(optimizer, inner, policy=POLICY)
    for step in range(40):
        if step == 25:
            with torch.no_grad():
                extra[0] = math.nan
        (inner(torch.ones(2, 4)) * extra).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert attachment.tally.applied > 30
    assert torch.isfinite(extra).all()


def test_what_the_guard_has_learnt_travels_in_the_optimizers_checkpoint():
    run = TheirRun("host")
    run.go(30)
    poison(run, "weight NaN")
    run.go(10)
    saved = run.optimizer.state_dict()
    other = TheirRun("host")
    other.optimizer.load_state_dict(saved)
    assert other.attachment._stepper.recovery.rollbacks == 1
    assert (
        other.attachment._stepper.spikes.state_dict() == run.attachment._stepper.spikes.state_dict()
    )


@both
def test_an_average_that_the_loop_updates_goes_back_with_the_weights(decide):
    run = TheirRun(decide)
    averaged = torch.optim.swa_utils.AveragedModel(run.model)
    assert run.attachment.protect(averaged) is averaged
    for _ in range(60):
        run.go(1)
        averaged.update_parameters(run.model)
    with torch.no_grad():
        next(averaged.parameters()).fill_(math.nan)
    run.go(60)
    assert run.events() == [Event.ROLLED_BACK]
    (told,) = (r for r in run.records if Event.ROLLED_BACK in r.events)
    assert told.culprits[0].name.startswith("average 0 of ")
    assert all(bool(torch.isfinite(p).all()) for p in averaged.parameters())
