"""One line in somebody else's loop."""

from __future__ import annotations

import copy
import math
import pickle
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import surefoot
from guard.conftest import ALL, FOLDED, OptimizerMaker, batch, loss_of, net, plain_run
from surefoot.errors import TrainingDiverged, UsageError
from surefoot.guard import Policy
from surefoot.records import Cause, Event
from surefoot.shapes import LossTerms
from surefoot.testing import State, bad_gradient


def their_loop(model, optimizer, steps, *, scaler=None, bad=(), clip=None) -> None:
    """A loop as people write it, which knows nothing of any guard."""
    for step in steps:
        loss = loss_of(model, *batch(step))
        with bad_gradient(model[4].weight, math.nan) if step in bad else nullcontext():
            (loss if scaler is None else scaler.scale(loss)).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", ALL)
def test_bad_steps_of_any_optimizer_leave_no_trace(name):
    make: OptimizerMaker = ALL[name]
    model = net()
    optimizer = make(list(model.parameters()))
    attachment = surefoot.attach(optimizer, model)
    their_loop(model, optimizer, range(6), bad=(0, 2, 3))
    assert (attachment.tally.applied, attachment.tally.refused) == (3, 3)
    attachment.detach()
    expected = plain_run(make, [[1], [4], [5]])
    assert State.of(model, optimizer).differences(State.of(*expected)) == []


def test_the_record_names_the_parameter_once_and_the_loop_still_sees_its_gradients():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    said = []
    surefoot.attach(optimizer, model, on_record=said.append)
    with bad_gradient(model[4].weight, math.inf):
        loss_of(model, *batch(0)).backward()
    optimizer.step()
    assert [str(r) for r in said] == [
        "step 0: the step was refused; everything is as it was before it: a gradient was NaN or "
        "Inf in 4.weight (Inf)"
    ]
    assert all(p.grad is not None for p in model.parameters())
    assert said[0].events == (Event.BUFFERS_RESTORED,)


@pytest.mark.parametrize("fused", [True, False])
def test_a_grad_scaler_that_drives_the_loop_is_served(fused):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    attachment = surefoot.attach(optimizer, model, clip=0.05)
    scaler = torch.amp.GradScaler("cpu")
    their_loop(model, optimizer, range(4), scaler=scaler)
    assert attachment.last is not None
    assert attachment.last.grad_norm > 0.05
    assert attachment.last.loss_scale == (65536.0 if fused else 1.0)
    expected, _ = plain_run(
        lambda p: torch.optim.AdamW(p, lr=1e-2, fused=fused), [[s] for s in range(4)], clip=0.05
    )
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)
    assert "grad_scale" not in optimizer.__dict__


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_the_scaler_skips_leaves_batch_norm_finite(fused):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    surefoot.attach(optimizer, model)
    scaler = torch.amp.GradScaler("cpu")
    their_loop(model, optimizer, [0], scaler=scaler)
    images, labels = batch(1)
    scaler.scale(loss_of(model, images * math.nan, labels)).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    their_loop(model, optimizer, [2], scaler=scaler)
    assert all(bool(torch.isfinite(b).all()) for b in model.buffers())
    assert scaler.get_scale() == 32768.0


def test_a_scheduler_around_the_optimizer_changes_nothing():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer)
    attachment = surefoot.attach(optimizer, model)
    their_loop(model, optimizer, [0, 1], bad=(0,))
    schedule.step()
    assert (attachment.tally.applied, attachment.tally.refused) == (1, 1)


def test_detached_the_optimizer_takes_the_nan_again():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    surefoot.attach(optimizer, model).detach()
    their_loop(model, optimizer, [0], bad=(0,))
    assert not torch.isfinite(model[4].weight).all()
    surefoot.attach(optimizer, model)


def test_the_counters_travel_in_the_optimizers_checkpoint_and_pickle_is_untouched():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    attachment = surefoot.attach(optimizer, model)
    their_loop(model, optimizer, range(3), bad=(1,))
    saved = copy.deepcopy(optimizer.state_dict())
    assert (attachment.tally.applied, attachment.tally.refused) == (2, 1)
    other = torch.optim.AdamW(net().parameters())
    resumed = surefoot.attach(other)
    other.load_state_dict(saved)
    assert resumed.tally == attachment.tally
    plain = torch.optim.AdamW(net().parameters())
    plain.load_state_dict(saved)
    assert isinstance(pickle.loads(pickle.dumps(optimizer)), torch.optim.AdamW)


def test_without_the_model_parameters_are_numbered():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    attachment = surefoot.attach(optimizer)
    their_loop(model, optimizer, [0], bad=(0,))
    assert attachment.last is not None
    assert [c.name for c in attachment.last.culprits] == ["group0.param3"]


def test_a_step_without_any_gradient_is_the_loops_own_business():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    attachment = surefoot.attach(optimizer, model)
    optimizer.step()
    assert attachment.last is None


def test_what_cannot_be_guarded_is_named():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    surefoot.attach(optimizer, model)
    with pytest.raises(UsageError, match="guarded already; detach"):
        surefoot.attach(optimizer, model)
    with pytest.raises(UsageError, match="LBFGS computes gradients many times inside one step"):
        surefoot.attach(torch.optim.LBFGS(model.parameters()), model)
    with pytest.raises(UsageError, match=r"a torch.optim.Optimizer was expected, not Sequential"):
        surefoot.attach(model, model)


@pytest.mark.parametrize("name", ["adamw", "adamw-foreach", "sgd-momentum-loop"])
@pytest.mark.parametrize("keyword", [True, False])
def test_gradients_from_a_closure_are_judged_before_the_step_and_the_loss_is_known(name, keyword):
    make: OptimizerMaker = ALL[name]
    model = net()
    optimizer = make(list(model.parameters()))
    said = []
    surefoot.attach(optimizer, model, on_record=said.append)

    def closure(step: int) -> torch.Tensor:
        optimizer.zero_grad()
        images, labels = batch(step)
        loss = loss_of(model, images * (math.nan if step == 1 else 1.0), labels)
        loss.backward()
        return loss

    for step in range(4):
        run = lambda step=step: closure(step)  # noqa: E731
        loss = optimizer.step(closure=run) if keyword else optimizer.step(run)
        assert loss is not None
    assert [r.verdict.value for r in said] == ["applied", "refused", "applied", "applied"]
    assert said[1].cause is Cause.NONFINITE_LOSS
    assert said[3].loss == pytest.approx(loss.item())
    optimizer.zero_grad()
    expected = plain_run(make, [[0], [2], [3]])
    assert State.of(model).differences(State.of(expected[0])) == []


class _Wrapped(torch.optim.Optimizer):
    """As frameworks wrap one: a step of its own, without hooks, that calls the inner one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def step(self) -> None:  # type: ignore[override]
        self.optimizer.step()


def test_the_optimizer_inside_a_frameworks_wrapper_is_found():
    model = net()
    inner = torch.optim.AdamW(model.parameters())
    attachment = surefoot.attach(_Wrapped(inner), model)
    their_loop(model, inner, [0, 1], bad=(0,))
    assert (attachment.tally.applied, attachment.tally.refused) == (1, 1)


@pytest.mark.parametrize("decide", ["host", "device"])
def test_the_device_side_says_the_same_and_says_it_at_the_next_step(decide):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    said = []
    attachment = surefoot.attach(optimizer, model, clip=0.5, on_record=said.append, decide=decide)
    their_loop(model, optimizer, range(4), bad=(1,))
    assert len(said) == (4 if decide == "host" else 3)
    assert (attachment.tally.applied, attachment.tally.refused) == (3, 1)
    assert [r.verdict.value for r in said] == ["applied", "refused", "applied", "applied"]
    assert [c.name for c in said[1].culprits] == ["4.weight"]
    attachment.detach()
    expected = plain_run(FOLDED["adamw"], [[0], [2], [3]], clip=0.5)
    for ours, theirs in zip(model.parameters(), expected[0].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)


def test_an_observed_loss_is_in_the_record_with_its_terms_and_samples():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    attachment = surefoot.attach(optimizer, model)
    for micro in range(2):
        loss = loss_of(model, *batch(micro))
        terms = LossTerms({"class": loss, "zero": loss * 0.0}, {"class": 2.0})
        attachment.observe(terms, sample_ids=[f"image {micro}"])
        (terms.total / 2).backward()
    optimizer.step()
    record = attachment.last
    assert record is not None
    assert [t.name for t in record.terms] == ["class", "zero"]
    assert record.loss == pytest.approx(2 * record.terms[0].raw)
    assert (record.sample_ids, record.micro_batches) == (("image 0", "image 1"), 2)
    with pytest.raises(UsageError, match=r"the loss has shape \(8,\); a scalar was expected"):
        attachment.observe(torch.ones(8))


@pytest.mark.parametrize("tells", [True, False])
def test_gradients_that_nobody_zeroes_are_told_once(tells):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    said = []
    attachment = surefoot.attach(optimizer, model, on_record=said.append)

    def forgetful() -> None:
        for step in range(6):
            loss = loss_of(model, *batch(step))
            if tells:
                attachment.observe(loss)
            loss.backward()
            optimizer.step()

    with pytest.warns(UserWarning, match=r"Call optimizer.zero_grad\(\) after") as told:
        forgetful()
    assert len(told) == 1
    kept = [Event.GRADIENTS_KEPT in r.events for r in said]
    assert kept == [False] * 3 + [True] * 3


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_zeroed_gradients_are_no_leftovers_however_they_are_zeroed(to_none, micro_batches):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    said = []
    surefoot.attach(optimizer, model, on_record=said.append)
    for step in range(6):
        for micro in range(micro_batches):
            loss_of(model, *batch(10 * step + micro)).backward()
        optimizer.step()
        (optimizer if step % 2 else model).zero_grad(set_to_none=to_none)
    assert not any(Event.GRADIENTS_KEPT in r.events for r in said)


def test_parameters_that_never_had_a_gradient_are_listed_and_a_gradient_of_zero_is_told():
    model = net()
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    attachment = surefoot.attach(optimizer, model)
    (loss_of(model, *batch(0)) * 0.0).backward()
    optimizer.step()
    assert attachment.last is not None
    assert Event.GRADIENT_ZERO in attachment.last.events
    assert attachment.silent_parameters == ("0.weight",)


def test_refusals_are_bounded_here_too():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    surefoot.attach(optimizer, model, policy=Policy(max_consecutive_refusals=2))
    with pytest.raises(TrainingDiverged, match="2 steps in a row were refused") as stop:
        their_loop(model, optimizer, range(5), bad=range(5))
    assert stop.value.record.cause is Cause.NONFINITE_GRADIENT
