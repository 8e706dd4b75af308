"""Runs with faults end, bit for bit, where a plain loop over the good steps alone ends."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from guard.conftest import ALL, FOLDED, OptimizerMaker, batch, loss_of, net, plain_run
from surefoot.guard import Guard, Policy
from surefoot.records import Cause, Event, Verdict
from surefoot.testing import FaultScript, State, bad_gradient


def settings_of(side: tuple[OptimizerMaker, str]):
    make, decide = side
    model = net()
    optimizer = make(list(model.parameters()))
    return model, optimizer, decide


def assert_same_state(model, optimizer, expected_model, expected_optimizer) -> None:
    different = State.of(model, optimizer).differences(State.of(expected_model, expected_optimizer))
    assert different == []


@pytest.mark.parametrize("script", ["gnnggg", "gggngngg", "gnnnnng"])
def test_nan_batches_leave_no_trace(side, script):
    model, optimizer, decide = settings_of(side)
    guard = Guard(model, optimizer, decide=decide)
    faults, good = FaultScript.parse(script), []
    for step in range(len(script)):
        images, labels = batch(step)
        if faults.at(step):
            images = images * math.nan
        record = guard.step(loss_of(model, images, labels), sample_ids=[f"sample {step}"])
        assert record.refused is (faults.at(step) is not None)
        if record.refused:
            assert record.cause is Cause.NONFINITE_LOSS
            assert record.sample_ids == (f"sample {step}",)
        else:
            good.append([step])
        assert_same_state(model, optimizer, *plain_run(side[0], good))


def test_inf_in_one_gradient_names_that_parameter(side):
    model, optimizer, decide = settings_of(side)
    guard = Guard(model, optimizer, decide=decide)
    guard.step(loss_of(model, *batch(0)))
    with bad_gradient(model[4].weight, math.inf):
        record = guard.step(loss_of(model, *batch(1)))
    assert (record.verdict, record.cause) == (Verdict.REFUSED, Cause.NONFINITE_GRADIENT)
    assert [(c.name, c.kind) for c in record.culprits] == [("4.weight", "Inf")]
    assert str(record).endswith("a gradient was NaN or Inf in 4.weight (Inf)")
    assert Event.BUFFERS_RESTORED in record.events
    guard.step(loss_of(model, *batch(2)))
    assert_same_state(model, optimizer, *plain_run(side[0], [[0], [2]]))


def test_nan_every_seventh_step(side):
    model, optimizer, decide = settings_of(side)
    guard = Guard(model, optimizer, decide=decide)
    good = []
    for step in range(22):
        if step % 7 == 6:
            with bad_gradient(model[0].weight, math.nan):
                record = guard.step(loss_of(model, *batch(step)))
            assert [(c.name, c.kind) for c in record.culprits] == [("0.weight", "NaN")]
        else:
            record = guard.step(loss_of(model, *batch(step)))
            good.append([step])
        assert record.applied is (step % 7 != 6)
    assert (guard.applied_steps, guard.refused_steps) == (19, 3)
    assert_same_state(model, optimizer, *plain_run(side[0], good))


def test_fp16_overflow_for_thirty_steps_backs_the_scale_off_to_its_floor(side):
    make, decide = side
    model, optimizer, _ = settings_of(side)
    guard = Guard(model, optimizer, amp="fp16", decide=decide)
    before = State.of(model)
    scales, causes = [], []
    for step in range(30):
        with guard.autocast():
            loss = loss_of(model, *batch(step))
        with bad_gradient(model[4].bias, math.inf):
            record = guard.step(loss)
        assert record.refused
        scales.append(record.loss_scale)
        causes.append(record.cause)
    assert scales == [max(2.0 ** (16 - step), 1.0) for step in range(30)]
    # At the floor the scale is not to blame any more, and the record says so.
    assert causes == [Cause.OVERFLOW] * 16 + [Cause.NONFINITE_GRADIENT] * 14
    assert State.of(model).differences(before) == []
    with guard.autocast():
        loss = loss_of(model, *batch(30))
    assert guard.step(loss).applied
    expected = net()
    expected_optimizer = make(list(expected.parameters()))
    with torch.autocast("cpu", torch.float16):
        loss = loss_of(expected, *batch(30))
    loss.backward()
    expected_optimizer.step()
    assert_same_state(model, optimizer, expected, expected_optimizer)


@pytest.mark.parametrize("fault", ["loss", "gradient"])
def test_a_fault_in_the_second_of_four_micro_batches_refuses_the_window(side, fault):
    model, optimizer, decide = settings_of(side)
    guard = Guard(model, optimizer, accumulate=4, decide=decide)
    for number in range(12):
        images, labels = batch(number)
        if number == 5 and fault == "loss":
            images = images * math.nan
        loss = loss_of(model, images, labels)
        if number == 5 and fault == "gradient":
            with bad_gradient(model[4].weight, math.nan):
                record = guard.step(loss, sample_ids=[str(number)])
        else:
            record = guard.step(loss, sample_ids=[str(number)])
        wanted = Verdict.ACCUMULATED if number % 4 != 3 else None
        assert wanted is None or record.verdict is wanted
        if number == 7:
            assert record.refused
            seen_at_once = fault == "loss" and decide == "host"
            assert record.sample_ids == (("5",) if seen_at_once else ("4", "5", "6", "7"))
            assert (Event.BACKWARD_SKIPPED in record.events) is seen_at_once
    assert (guard.applied_steps, guard.refused_steps) == (2, 1)
    assert_same_state(model, optimizer, *plain_run(side[0], [[0, 1, 2, 3], [8, 9, 10, 11]]))


@pytest.mark.parametrize("name", ["adamw", "sgd-momentum", "rmsprop"])
def test_schedule_and_average_move_on_applied_steps_only(name):
    model = net()
    optimizer = ALL[name](list(model.parameters()))
    guard = Guard(model, optimizer, decide="device" if name in FOLDED else "host")
    schedule = guard.schedule(torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=10))
    average = guard.average(
        torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
        )
    )
    guard.step(loss_of(model, *batch(0)))
    assert guard.applied_steps == 1
    before = State.of(model, optimizer, schedule, average)
    with bad_gradient(model[0].weight, math.nan):
        with guard.autocast():
            loss = loss_of(model, *batch(1))
        guard.step(loss)
    assert guard.refused_steps == 1
    assert State.of(model, optimizer, schedule, average).differences(before) == []
    guard.step(loss_of(model, *batch(2)))
    assert guard.applied_steps == 2
    assert schedule.last_epoch == 2
    assert int(average.n_averaged) == 2


def test_a_scaled_batch_under_fp16_leaves_batch_norm_as_it_was():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    guard = Guard(model, optimizer, amp="fp16")
    for step in range(3):
        with guard.autocast():
            loss = loss_of(model, *batch(step))
        guard.step(loss)
    before = State.of(model)
    images, labels = batch(3)
    with guard.autocast():
        loss = loss_of(model, images * 1e6, labels)
    record = guard.step(loss)
    assert record.refused
    assert State.of(model).differences(before) == []
    assert all(torch.isfinite(b).all() for b in model.buffers())


def test_the_original_accumulation_makes_no_step_and_ends_normally_ours_makes_four():
    """Accumulation 4 with a GradScaler that is unscaled on every batch, and errors swallowed."""
    model, steps, swallowed = net(), 0, []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scaler = torch.amp.GradScaler("cpu")
    for number in range(16):
        try:
            scaler.scale(loss_of(model, *batch(number)) / 4).backward()
            scaler.unscale_(optimizer)
            if number % 4 == 3:
                scaler.step(optimizer)
                scaler.update()
                steps += 1
        except RuntimeError as error:
            swallowed.append(str(error))
            optimizer.zero_grad()
    assert steps == 0
    assert "unscale_() has already been called" in swallowed[0]
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    guard = Guard(model, optimizer, accumulate=4, amp="fp16")
    for number in range(16):
        with guard.autocast():
            loss = loss_of(model, *batch(number))
        guard.step(loss)
    assert guard.applied_steps == 4


def test_the_run_stops_after_so_many_refusals_and_carries_the_record():
    from surefoot.errors import TrainingDiverged

    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    guard = Guard(model, optimizer, policy=Policy(max_consecutive_refusals=3))
    before = State.of(model, optimizer)
    loss = lambda: loss_of(model, batch(0)[0] * math.nan, batch(0)[1])  # noqa: E731
    guard.step(loss())
    guard.step(loss())
    with pytest.raises(TrainingDiverged, match="3 steps in a row were refused") as stop:
        guard.step(loss())
    assert stop.value.record.cause is Cause.NONFINITE_LOSS
    assert State.of(model, optimizer).differences(before) == []


def test_strict_stops_at_the_first_nan_but_not_at_an_overflow_the_scale_absorbs():
    from surefoot.errors import TrainingDiverged

    model = net()
    guard = Guard(
        model,
        torch.optim.AdamW(model.parameters(), fused=True),
        amp="fp16",
        policy=Policy.strict(),
    )
    with bad_gradient(model[0].weight, math.inf):
        assert guard.step(loss_of(model, *batch(0))).cause is Cause.OVERFLOW
    with pytest.raises(TrainingDiverged, match=r"to stop at once\. The last step: step 1"):
        guard.step(nn.functional.mse_loss(model(batch(0)[0]), torch.tensor(math.nan).expand(8, 3)))
