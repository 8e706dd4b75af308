"""The guard's settings, errors, records and memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from guard.conftest import batch, loss_of, net
from surefoot.errors import ConfigError, UsageError
from surefoot.guard import AdaptiveClip, Guard, PercentileClip, Policy, ZScoreClip
from surefoot.records import Event, StepRecord, Verdict
from surefoot.shapes import LossTerms
from surefoot.testing import State, bad_gradient


def fused(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip": 0.0}, "clip=0.0: the largest allowed gradient norm, above 0"),
        ({"clip": math.nan}, "clip=nan"),
        ({"accumulate": 0}, "accumulate=0: micro-batches per step, at least 1"),
        ({"amp": "fp8"}, "amp='fp8': 'bf16', 'fp16' or None"),
        ({"decide": "maybe"}, "decide='maybe'"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, message):
    model = net()
    with pytest.raises(ConfigError, match=message):
        Guard(model, fused(model), **settings)


def test_an_optimizer_that_cannot_be_refused_on_the_device_is_named():
    model = net()
    with pytest.raises(ConfigError, match="RMSprop cannot be refused on the device"):
        Guard(model, torch.optim.RMSprop(model.parameters()), decide="device")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nonfinite": "ignore"}, "'refuse' or 'raise', not 'ignore'"),
        ({"backoff_factor": 1.0}, "growth_factor is above 1 and backoff_factor between"),
        ({"min_scale": 0.0}, "0 < min_scale <= initial_scale"),
        ({"max_consecutive_refusals": 0}, "max_consecutive_refusals: at least 1"),
    ],
)
def test_policies_that_cannot_work_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        Policy(**settings)


def test_a_constant_loss_is_an_error_not_a_step():
    model = net()
    guard = Guard(model, fused(model))
    with pytest.raises(UsageError, match="the loss carries no gradient"):
        guard.step(torch.tensor(0.1))


def test_a_loss_that_reaches_none_of_the_parameters_is_an_error():
    model, other = net(), net(1)
    guard = Guard(model, fused(model))
    with pytest.raises(UsageError, match="none of the optimizer's 5 parameters received"):
        guard.step(loss_of(other, *batch(0)))


def test_a_loss_that_is_no_scalar_is_an_error():
    model = net()
    with pytest.raises(UsageError, match=r"the loss has shape \(8, 3\); a scalar was expected"):
        Guard(model, fused(model)).step(model(batch(0)[0]))


def test_terms_that_change_inside_a_window_are_an_error():
    model = net()
    guard = Guard(model, fused(model), accumulate=2)
    guard.step(LossTerms({"a": loss_of(model, *batch(0))}, {}))
    with pytest.raises(UsageError, match=r"the loss terms \['b'\] differ from \['a'\]"):
        guard.step(LossTerms({"b": loss_of(model, *batch(0))}, {}))


@pytest.mark.parametrize("decide", ["host", "device"])
def test_the_record_holds_each_term_raw_and_weighted_averaged_over_the_window(decide):
    model = _Two()
    guard = Guard(model, fused(model), accumulate=2, decide=decide)
    for a in (1.0, 3.0):
        values = {"a": model.w.sum() * 0 + a, "b": model.w.sum() * 0 + 10.0}
        record = guard.step(LossTerms(values, {"b": 0.5}))
    assert [(t.name, t.raw, t.weight, t.weighted) for t in record.terms] == [
        ("a", 2.0, 1.0, 2.0),
        ("b", 10.0, 0.5, 5.0),
    ]
    assert record.loss == 7.0


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))


def test_a_plateau_scheduler_is_refused_with_the_reason():
    model = net()
    optimizer = fused(model)
    with pytest.raises(UsageError, match="steps on a validation metric"):
        Guard(model, optimizer).schedule(torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer))


@pytest.mark.parametrize("decide", ["host", "device"])
@pytest.mark.parametrize("amp", [None, "fp16", "bf16"])
def test_a_guard_restored_from_its_state_goes_on_bit_for_bit(decide, amp):
    def run(stop: int | None) -> State:
        model = net()
        guard = Guard(model, fused(model), amp=amp, decide=decide, clip=0.5)
        for step in range(8):
            if step == stop:
                saved = guard.state_dict()
                guard.detach()
                guard = Guard(model, guard._stepper.optimizer, amp=amp, decide=decide, clip=0.5)
                guard.load_state_dict(saved)
            with guard.autocast():
                loss = loss_of(model, *batch(step))
            with bad_gradient(model[0].weight, math.inf if step == 2 else 0.0):
                guard.step(loss)
        return State.of(model, guard._stepper.optimizer, guard)

    assert run(None).differences(run(4)) == []


def test_buffers_changed_between_two_steps_are_kept_by_a_refusal():
    model = net()
    guard = Guard(model, fused(model))
    guard.step(loss_of(model, *batch(0)))
    model[1].running_mean.fill_(7.0)  # as loading or recalibrating does
    before = State.of(model)
    with bad_gradient(model[0].weight, math.nan):
        guard.step(loss_of(model, *batch(1)))
    assert State.of(model).differences(before) == []


def test_buffers_are_kept_in_a_loop_that_calls_submodules_only():
    model = net()
    guard = Guard(model, fused(model))

    def loss(step: int) -> torch.Tensor:
        images, labels = batch(step)
        for layer in model:
            images = layer(images)
        return nn.functional.cross_entropy(images, labels)

    guard.step(loss(0))
    before = State.of(model)
    with bad_gradient(model[0].weight, math.nan):
        guard.step(loss(1))
    assert State.of(model).differences(before) == []


def test_a_buffer_that_the_forward_pass_replaces_is_put_back():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen = torch.cat([self.seen, x])
            return (self.w * x).sum()

    model = Counts()
    guard = Guard(model, fused(model))
    guard.step(model(torch.ones(1)))
    assert guard.step(model(torch.full((1,), math.nan))).refused
    assert model.seen.tolist() == [0.0, 1.0]


def test_evaluation_between_steps_does_not_open_a_window():
    model = net()
    guard = Guard(model, fused(model))
    guard.step(loss_of(model, *batch(0)))
    model.eval()
    model(batch(1)[0])
    model.train()
    model[1].running_mean.fill_(3.0)
    before = State.of(model)
    with bad_gradient(model[0].weight, math.nan):
        guard.step(loss_of(model, *batch(2)))
    assert State.of(model).differences(before) == []


def test_a_record_from_the_device_is_read_late_and_equals_what_it_says():
    model = net()
    guard = Guard(model, fused(model), decide="device")
    record = guard.step(loss_of(model, *batch(0)))
    assert "verdict" not in record.__dict__
    assert guard.applied_steps == 1
    assert record.verdict is Verdict.APPLIED
    assert StepRecord.from_dict(record.to_dict()) == record
    with pytest.raises(AttributeError, match="no_such_field"):
        _ = record.no_such_field


def test_weight_zero_times_nan_is_no_nan():
    model = net()
    guard = Guard(model, fused(model))
    loss = loss_of(model, *batch(0))
    record = guard.step(LossTerms({"good": loss, "off": loss * math.nan}, {"off": 0.0}))
    assert record.applied
    assert math.isnan(record.terms[1].raw)


class _HostReads(TorchDispatchMode):
    """Counts what would stop a GPU: values that are read to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
@pytest.mark.parametrize("clip", [None, 0.1, [AdaptiveClip(), PercentileClip(), ZScoreClip()]])
def test_a_healthy_step_decided_on_the_device_reads_nothing_back(amp, clip):
    model = net()
    guard = Guard(model, fused(model), amp=amp, clip=clip, decide="device", accumulate=2)
    for step in range(4):
        guard.step(loss_of(model, *batch(step)))
    with _HostReads() as reads:
        for step in range(4, 8):
            with guard.autocast():
                loss = loss_of(model, *batch(step))
            guard.step(loss)
    assert reads.count == 0
    with _HostReads() as reads:
        float(torch.ones(()))
    assert reads.count == 1


@pytest.mark.parametrize("what", ["clip", "zero_grad", "nothing"])
@pytest.mark.parametrize("decide", ["host", "device"])
def test_whatever_else_changes_the_gradients_inside_a_window_is_told(what, decide):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    guard = Guard(model, optimizer, accumulate=2, decide=decide)
    records = []
    for step in range(4):
        records.append(guard.step(loss_of(model, *batch(step))))
        if what == "clip":
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        elif what == "zero_grad":
            optimizer.zero_grad()
    touched = [Event.GRADIENTS_TOUCHED in r.events for r in records]
    assert touched == [False, what != "nothing", False, what != "nothing"]


@pytest.mark.parametrize("decide", ["host", "device"])
def test_a_batch_like_no_other_stays_out_of_the_running_statistics(decide):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    guard = Guard(model, optimizer, decide=decide)
    records = []
    for step in range(40):
        images, labels = batch(step)
        factor = 1e6 if step == 30 or step >= 33 else 1.0
        before = [b.clone() for b in model.buffers()]
        records.append(guard.step(loss_of(model, images * factor, labels)))
        kept = all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
        assert kept is (step == 30 or 33 <= step < 38), step
    told = [r.step for r in records if Event.BATCH_OUTLYING in r.events]
    assert told == [30, 33, 34, 35, 36, 37]
    assert all(r.applied for r in records)
