"""Steps that nothing is learnt from: no gradient, no rate, a parameter that is left out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import surefoot
from guard.conftest import batch, loss_of, net
from surefoot.errors import TrainingDiverged, UsageError
from surefoot.guard import Guard, Policy
from surefoot.records import Cause, Event, StepRecord
from surefoot.shapes import LossTerms
from surefoot.testing import State

both = pytest.mark.parametrize("decide", ["host", "device"])


def start(decide: str, **settings) -> tuple[nn.Module, torch.optim.Optimizer, Guard]:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    return model, optimizer, Guard(model, optimizer, decide=decide, **settings)


def go(guard: Guard, model: nn.Module, steps: range) -> list[StepRecord]:
    return [guard.step(loss_of(model, *batch(step))) for step in steps]


@both
def test_a_loss_without_gradient_is_refused_once_training_is_under_way(decide):
    model, optimizer, guard = start(decide)
    with pytest.raises(UsageError, match="carries no gradient"):
        guard.step(torch.tensor(1.0))
    go(guard, model, range(3))
    before = State.of(model, optimizer)
    record = guard.step(torch.tensor(1.0))
    assert record.refused
    assert record.cause is Cause.NO_GRADIENT
    assert record.loss == 1.0
    assert str(record) == (
        "step 3: the step was refused; everything is as it was before it: "
        "the loss depends on none of the optimizer's parameters"
    )
    assert "empty selection" in " ".join(record.explain().split())
    assert State.of(model, optimizer).differences(before) == []
    assert go(guard, model, range(4, 5))[0].applied


@both
def test_a_loss_that_reaches_other_tensors_only_is_refused(decide):
    model, _, guard = start(decide)
    go(guard, model, range(3))
    other = torch.ones((), requires_grad=True)
    record = guard.step(other * 2.0)
    assert record.cause is Cause.NO_GRADIENT
    assert record.loss == 2.0


def test_a_micro_batch_without_gradient_counts_as_one_of_gradient_zero():
    model, _, guard = start("host", accumulate=2)
    halves, _, whole = start("host")
    halves.load_state_dict(model.state_dict())
    for step in range(4):
        guard.step(loss_of(model, *batch(step)))
        record = guard.step(
            loss_of(model, *batch(step)).detach() if step == 2 else loss_of(model, *batch(step))
        )
        whole.step(loss_of(halves, *batch(step)) * (0.5 if step == 2 else 1.0))
        assert record.applied
    for ours, theirs in zip(model.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_too_many_batches_without_gradient_end_the_run_and_say_so():
    model, _, guard = start("host", policy=Policy(max_consecutive_refusals=3))
    go(guard, model, range(3))
    guard.step(torch.tensor(1.0))
    guard.step(torch.tensor(1.0))
    with pytest.raises(TrainingDiverged) as stopped:
        guard.step(torch.tensor(1.0))
    assert "3 because the loss depends on none" in " ".join(stopped.value.diagnosis)
    assert "how the loss of these batches is made" in " ".join(stopped.value.diagnosis)


@both
@pytest.mark.parametrize("way", ["guard", "attach"])
def test_a_layer_frozen_by_mistake_is_named_once(decide, way):
    model, optimizer, guard = start(decide)
    records: list[StepRecord] = []
    if way == "attach":
        guard.detach()
        surefoot.attach(optimizer, model, decide=decide, on_record=records.append)
    for step in range(200):
        if step == 30:
            next(model.parameters()).requires_grad_(False)
        loss = loss_of(model, *batch(step))
        if way == "guard":
            records.append(guard.step(loss))
        else:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    told = [r for r in records if Event.SILENT_PARAMETER in r.events]
    assert [r.step for r in told] == [79]
    name = next(iter(dict(model.named_parameters())))
    assert told[0].silent == (name,)
    assert told[0].culprits[0].kind == "none"
    assert str(told[0]) == f"step 79: the optimizer stepped; no gradient for many steps in {name}"
    assert StepRecord.from_dict(told[0].to_dict()) == told[0]


@pytest.mark.parametrize("how", ["frozen", "unused"])
def test_what_was_frozen_from_the_start_was_meant_and_what_is_unused_was_not(how):
    model = net()
    extra = nn.Parameter(torch.ones(2), requires_grad=how == "unused")
    model.register_parameter("extra", extra)
    guard = Guard(model, torch.optim.AdamW(model.parameters(), lr=0.01, fused=True))
    told = [r.silent for r in go(guard, model, range(60)) if Event.SILENT_PARAMETER in r.events]
    assert told == ([("extra",)] if how == "unused" else [])


def test_parameters_that_take_turns_are_not_silent():
    model, _, guard = start("host")
    first, *_, last = model.parameters()
    for step in range(150):
        resting = (first, last)[step // 20 % 2]
        resting.requires_grad_(False)
        record = guard.step(loss_of(model, *batch(step)))
        resting.requires_grad_(True)
        assert Event.SILENT_PARAMETER not in record.events


@both
def test_a_rate_of_zero_is_told_but_not_that_of_a_warm_ups_first_step(decide):
    model, optimizer, guard = start(decide)
    rates = [0.0, 0.01, 0.01, 0.0, 0.01]
    told = []
    for step, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        told.append(Event.ZERO_RATE in guard.step(loss_of(model, *batch(step))).events)
    assert told == [False, False, False, True, False]


@both
def test_a_term_that_teaches_nothing_is_named_at_the_tenth_step(decide):
    model, _, guard = start(decide)
    told: list[StepRecord] = []
    for step in range(20):
        loss = loss_of(model, *batch(step))
        terms = LossTerms(
            {
                "main": loss,
                "detached": loss.detach() * 2,
                "off": loss.detach(),
                "late": loss * float(step >= 4),
            },
            {"off": 0.0},
        )
        told.append(guard.step(terms))
    where = [record for record in told if Event.SILENT_TERM in record.events]
    assert [record.step for record in where] == [9]
    assert where[0].silent_terms == ("detached",)
    assert str(where[0]) == "step 9: the optimizer stepped; no gradient so far from detached"
    assert StepRecord.from_dict(where[0].to_dict()).silent_terms == ("detached",)


@both
def test_terms_that_all_have_a_gradient_are_looked_at_once(decide):
    model, _, guard = start(decide)
    looked = []
    for step in range(15):
        loss = loss_of(model, *batch(step))
        record = guard.step(LossTerms({"a": loss, "b": loss.square()}, {}))
        looked.append(not math.isnan(record.terms[0].grad_norm))
        assert Event.SILENT_TERM not in record.events
    # On a device the first answer is there when the second step has begun.
    assert looked[0]
    assert sum(looked) <= 2
