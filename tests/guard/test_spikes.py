"""Finite but far off: loss and gradient spikes."""

from __future__ import annotations

import math

import pytest
import torch

from guard.conftest import FOLDED, batch, loss_of, net, plain_run
from surefoot.errors import ConfigError, TrainingDiverged
from surefoot.guard import Guard, Policy
from surefoot.records import Cause, Event
from surefoot.testing import State

REFUSE = Policy(spike="refuse", window_warmup=8)


def build(policy: Policy, decide: str):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    return model, optimizer, Guard(model, optimizer, policy=policy, decide=decide)


@pytest.mark.parametrize("decide", ["host", "device"])
def test_by_default_a_spike_is_recorded_and_the_run_is_bit_equal_to_a_plain_one(decide):
    model, optimizer, guard = build(Policy(window_warmup=8), decide)
    records = [guard.step(loss_of(model, *batch(s))) for s in range(12)]
    assert all(r.events == () for r in records)
    expected = plain_run(FOLDED["adamw"], [[s] for s in range(12)])
    assert State.of(model, optimizer).differences(State.of(*expected)) == []
    record = guard.step(loss_of(model, *batch(12)) * 1e4)
    assert record.applied
    assert set(record.events) == {Event.LOSS_SPIKE, Event.GRADIENT_SPIKE}


@pytest.mark.parametrize("decide", ["host", "device"])
def test_a_refused_spike_leaves_no_trace_and_never_enters_the_window(decide):
    model, optimizer, guard = build(REFUSE, decide)
    good = []
    for step in range(20):
        factor = 100.0 if step in (10, 11, 15) else 1.0
        record = guard.step(loss_of(model, *batch(step)) * factor)
        assert record.refused is (factor > 1)
        if record.refused:
            assert record.cause is Cause.SPIKE
            assert record.culprits == ()
        else:
            good.append([step])
    expected = plain_run(FOLDED["adamw"], good)
    assert State.of(model, optimizer).differences(State.of(*expected)) == []
    assert max(w for w in guard.state_dict()["spikes"]["windows"][0]["logs"]) < math.log(10)


@pytest.mark.parametrize("decide", ["host", "device"])
def test_a_level_that_stays_is_the_new_level_after_five_refusals(decide):
    model, _, guard = build(REFUSE, decide)
    for step in range(10):
        guard.step(loss_of(model, *batch(step)))
    verdicts = [guard.step(loss_of(model, *batch(s)) * 100).applied for s in range(10, 20)]
    assert verdicts == [False] * 5 + [True] * 5


@pytest.mark.parametrize("decide", ["host", "device"])
def test_a_nan_between_spikes_keeps_the_window_alive(decide):
    model, _, guard = build(REFUSE, decide)
    for step in range(10):
        guard.step(loss_of(model, *batch(step)))
    assert guard.step(loss_of(model, batch(0)[0] * math.nan, batch(0)[1])).refused
    assert guard.step(loss_of(model, *batch(10)) * 1e3).cause is Cause.SPIKE
    assert guard.step(loss_of(model, *batch(11))).applied


@pytest.mark.parametrize(("saved_on", "loaded_on"), [("host", "device"), ("device", "host")])
def test_a_resumed_run_is_not_blind(saved_on, loaded_on):
    model, _, guard = build(REFUSE, saved_on)
    for step in range(10):
        guard.step(loss_of(model, *batch(step)))
    state = guard.state_dict()
    guard.detach()
    model, _, resumed = build(REFUSE, loaded_on)
    resumed.load_state_dict(state)
    assert resumed.step(loss_of(model, *batch(10)) * 1e3).cause is Cause.SPIKE


def test_losses_that_have_no_logarithm_are_never_spikes():
    model, _, guard = build(REFUSE, "host")
    for step in range(30):
        loss = loss_of(model, *batch(step))
        record = guard.step(loss - loss.detach() - 5.0)
        assert record.applied


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spike": "ignore"}, "'record', 'clip', 'refuse' or 'raise', not 'ignore'"),
        ({"spike_ratio": 0.5}, "spike_deviation is above 0 and spike_ratio at least 1"),
        ({"max_consecutive_spikes": 0}, "max_consecutive_spikes: at least 1"),
    ],
)
def test_settings_that_cannot_work_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        Policy(**settings)


@pytest.mark.parametrize("decide", ["host", "device"])
@pytest.mark.parametrize("clip", [None, 0.9])
def test_a_spikes_gradient_is_shortened_to_three_times_the_usual_one(decide, clip):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, fused=True)
    policy = Policy(spike="clip", window_warmup=8)
    guard = Guard(model, optimizer, policy=policy, decide=decide, clip=clip)
    norms = [guard.step(loss_of(model, *batch(s))).grad_norm for s in range(12)]
    before = State.of(model).tensors
    record = guard.step(loss_of(model, *batch(12)) * 1e4)
    assert record.applied
    assert Event.CLIPPED in record.events
    after = State.of(model).tensors
    names = [name for name, _ in model.named_parameters()]
    moved = torch.cat([(after[f"model.{n}"] - before[f"model.{n}"]).flatten() for n in names])
    usual = 3.0 * sorted(norms)[5]
    expected = usual if clip is None else min(clip, usual)
    assert float(moved.norm()) == pytest.approx(1e-3 * expected, rel=1e-2)
    assert record.grad_norm * record.clip_coefficient == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("decide", ["host", "device"])
def test_a_spike_may_end_the_run(decide):
    model, _, guard = build(Policy(spike="raise", window_warmup=8), decide)
    for step in range(12):
        guard.step(loss_of(model, *batch(step)))
    before = State.of(model)

    def spike() -> None:
        guard.step(loss_of(model, *batch(12)) * 1e4)
        guard.flush()

    with pytest.raises(TrainingDiverged, match="The policy asks to stop at once") as stop:
        spike()
    assert stop.value.record.cause is Cause.SPIKE
    assert "Look at the samples of the spikes, and at the learning rate." in stop.value.diagnosis
    now = State.of(model).differences(before)
    assert [n for n in now if "running" not in n and "num_batches" not in n] == []


@pytest.mark.parametrize("decide", ["host", "device"])
def test_a_loss_that_stays_half_as_far_off_is_told_from_the_fifth_step_on(decide):
    weight = torch.nn.Parameter(torch.ones(4))
    model = torch.nn.ParameterList([weight])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=True)
    guard = Guard(model, optimizer, decide=decide)
    noise = torch.randn(80, generator=torch.Generator().manual_seed(0)) * 0.3

    def step(level: float, number: int):
        return guard.step((weight * level * float(noise[number].exp())).sum())

    calm = [step(1.0, i) for i in range(60)]
    assert not any(r.events for r in calm)
    told = [Event.LOSS_SPIKE in step(5.0, 60 + i).events for i in range(8)]
    assert told[:4] == [False] * 4
    assert any(told[4:])
    assert guard.state_dict()["spikes"]["away"][0] >= 5
    again = Guard(model, optimizer, decide="host" if decide == "device" else "device")
    again.load_state_dict(guard.state_dict())
    assert again.state_dict()["spikes"]["away"] == guard.state_dict()["spikes"]["away"]
