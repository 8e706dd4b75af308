"""Nineteen ways in which stepping an optimizer by hand goes wrong, each closed."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from guard.conftest import ALL, FOLDED, PLAIN, batch, loss_of, net, plain_run
from surefoot.errors import UsageError
from surefoot.guard import Guard, Policy
from surefoot.guard.apply import apply_folded, folds
from surefoot.guard.measure import tensor_norms
from surefoot.records import Cause, Event
from surefoot.testing import State, bad_gradient


class _Weights(nn.Module):
    """Bare parameters, so that a test can say every gradient exactly."""

    def __init__(self, *weights: torch.Tensor) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)

    def pull(self, *gradients: torch.Tensor) -> torch.Tensor:
        """A loss whose gradient is exactly these tensors."""
        return sum((w * g).sum() for w, g in zip(self.weights, gradients, strict=True))


def test_01_found_inf_is_a_float32_scalar_that_is_exactly_zero_or_one(monkeypatch):
    model = _Weights(torch.ones(3))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    seen = []
    step = optimizer.step
    monkeypatch.setattr(optimizer, "step", lambda: (seen.append(optimizer.found_inf), step()))
    guard = Guard(model, optimizer, decide="device")
    guard.step(model.pull(torch.ones(3)))
    guard.step(model.pull(torch.full((3,), math.inf)))
    assert [(f.dtype, f.shape, float(f)) for f in seen] == [
        (torch.float32, (), 0.0),
        (torch.float32, (), 1.0),
    ]


@pytest.mark.parametrize("decide", ["host", "device"])
def test_02_the_reported_norm_is_true_though_the_kernel_writes_gradients_back(decide):
    model = _Weights(torch.zeros(2), torch.zeros(1))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    guard = Guard(model, optimizer, clip=1.0, amp="fp16", decide=decide)
    record = guard.step(model.pull(torch.tensor([3.0, 0.0]), torch.tensor([4.0])))
    assert record.grad_norm == pytest.approx(5.0, rel=1e-6)
    assert record.clip_coefficient == pytest.approx(0.2, rel=1e-6)
    assert Event.CLIPPED in record.events
    with bad_gradient(model.weights[0], math.nan):
        record = guard.step(model.pull(torch.ones(2), torch.ones(1)))
    assert math.isnan(record.grad_norm)


@pytest.mark.parametrize("name", ["adam", "adamw", "adagrad"])
def test_03_step_counters_count_applied_steps_only(name):
    model = net()
    optimizer = FOLDED[name](list(model.parameters()))
    guard = Guard(model, optimizer, decide="device")
    for step in range(6):
        with bad_gradient(model[0].weight, math.nan if step % 2 else 0.0):
            guard.step(loss_of(model, *batch(step)))
    assert guard.applied_steps == 3
    assert {float(state["step"]) for state in optimizer.state.values()} == {3.0}


@pytest.mark.parametrize("name", ["sgd-momentum", "sgd-nesterov"])
@pytest.mark.parametrize("decide", ["host", "device"])
def test_04_a_refused_first_step_of_fused_sgd_leaves_no_garbage_in_the_momentum(name, decide):
    model = net()
    optimizer = FOLDED[name](list(model.parameters()))
    guard = Guard(model, optimizer, decide=decide)
    with bad_gradient(model[0].weight, math.inf):
        assert guard.step(loss_of(model, *batch(0))).refused
    guard.step(loss_of(model, *batch(1)))
    guard.step(loss_of(model, *batch(2)))
    expected = plain_run(FOLDED[name], [[1], [2]])
    assert State.of(model, optimizer).differences(State.of(*expected)) == []


def test_04_dampening_makes_the_host_decide_the_first_step():
    model = net()
    make = lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, dampening=0.5, fused=True)  # noqa: E731
    optimizer = make(list(model.parameters()))
    guard = Guard(model, optimizer, decide="device")
    with bad_gradient(model[0].weight, math.inf):
        assert guard.step(loss_of(model, *batch(0))).refused
    guard.step(loss_of(model, *batch(1)))
    expected = plain_run(make, [[1]])
    assert State.of(model, optimizer).differences(State.of(*expected)) == []


def test_05_attributes_left_by_a_scaler_are_refused_by_name():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    guard = Guard(model, optimizer)
    optimizer.found_inf = torch.tensor(1.0)
    with pytest.raises(UsageError, match="carries found_inf from somebody else"):
        guard.step(loss_of(model, *batch(0)))


@pytest.mark.parametrize("decide", ["host", "device"])
def test_06_a_bad_loss_refuses_but_only_an_overflow_backs_the_scale_off(decide):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    guard = Guard(model, optimizer, amp="fp16", decide=decide)
    images, labels = batch(0)
    record = guard.step(loss_of(model, images * math.nan, labels))
    assert record.cause is Cause.NONFINITE_LOSS
    assert guard.state_dict()["scale"] == {"scale": 65536.0, "clean_steps": 0}
    with bad_gradient(model[0].weight, math.inf):
        record = guard.step(loss_of(model, *batch(1)))
    assert Event.SCALE_BACKED_OFF in record.events
    assert guard.state_dict()["scale"]["scale"] == 32768.0


def test_07_an_exception_inside_the_step_leaves_no_stale_attribute():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    guard = Guard(model, optimizer, clip=1e-3, decide="device")

    def explode(*_):
        raise RuntimeError("a hook of somebody else")

    handle = optimizer.register_step_pre_hook(explode)
    with pytest.raises(RuntimeError, match="a hook of somebody else"):
        guard.step(loss_of(model, *batch(0)))
    handle.remove()
    assert not hasattr(optimizer, "found_inf")
    assert not hasattr(optimizer, "grad_scale")
    assert guard.step(loss_of(model, *batch(1))).applied


@pytest.mark.parametrize("name", PLAIN)
def test_08_optimizers_that_ignore_found_inf_get_the_plain_path(name):
    model = net()
    optimizer = PLAIN[name](list(model.parameters()))
    assert not folds(optimizer)
    guard = Guard(model, optimizer)
    before = State.of(model, optimizer)
    with bad_gradient(model[0].weight, math.nan):
        assert guard.step(loss_of(model, *batch(0))).refused
    assert State.of(model, optimizer).differences(before) == []


def test_08_a_subclass_that_may_override_step_is_not_trusted_to_fold():
    class Mine(torch.optim.AdamW):
        pass

    assert not folds(Mine([nn.Parameter(torch.ones(1))], fused=True))


def test_08_one_group_that_is_not_fused_is_enough_not_to_fold():
    first, second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optimizer = torch.optim.AdamW([{"params": [first]}], fused=True)
    optimizer.add_param_group({"params": [second], "fused": False})
    assert not folds(optimizer)


def test_09_the_plain_path_touches_gradients_only_where_something_is_to_be_divided(monkeypatch):
    model = _Weights(torch.ones(3))
    optimizer = torch.optim.RMSprop(model.parameters())
    versions = []
    step = optimizer.step
    monkeypatch.setattr(
        optimizer, "step", lambda: (versions.append(model.weights[0].grad._version), step())
    )
    guard = Guard(model, optimizer, clip=1.0)
    guard.step(model.pull(torch.full((3,), 0.1)))
    guard.step(model.pull(torch.full((3,), 10.0)))
    assert versions == [0, 1]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_10_norms_of_half_precision_gradients_are_taken_in_float32(dtype):
    gradient = torch.full((1024,), 3200.0, dtype=dtype)
    assert float(tensor_norms([gradient])) == pytest.approx(102400.0, rel=1e-4)
    model = _Weights(torch.zeros(1024, dtype=dtype))
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=1e-6))
    record = guard.step(model.pull(gradient).float())
    assert record.applied
    assert record.grad_norm == pytest.approx(102400.0, rel=1e-4)


@pytest.mark.parametrize("decide", ["host", "device"])
def test_11_a_norm_beyond_float32_is_refused_and_named_as_what_it_is(decide):
    model = _Weights(torch.zeros(4), torch.zeros(2))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    guard = Guard(model, optimizer, decide=decide)
    loss = model.pull(torch.full((4,), 1.7e19), torch.ones(2))
    record = guard.step(loss)
    assert record.refused
    assert record.cause is (Cause.NORM_OVERFLOW if decide == "host" else record.cause)
    assert record.culprits[0].name == "weights.0"


@pytest.mark.parametrize("name", ["adamw", "sgd-momentum", "adagrad", "rmsprop", "adamw-foreach"])
@pytest.mark.parametrize("amp", [None, "fp16"])
def test_12_clipping_is_that_of_clip_grad_norm_whatever_the_loss_scale(name, amp):
    model = net()
    optimizer = ALL[name](list(model.parameters()))
    guard = Guard(model, optimizer, clip=0.05, amp=amp)
    for step in range(5):
        assert guard.step(loss_of(model, *batch(step))).clip_coefficient < 1.0
    expected, _ = plain_run(ALL[name], [[s] for s in range(5)], clip=0.05)
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-6)


def test_14_a_compiled_model_is_guarded_like_any_other():
    model = net()
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    guard = Guard(compiled, optimizer)
    guard.step(loss_of(compiled, *batch(0)))
    before = State.of(model, optimizer)
    images, labels = batch(1)
    record = guard.step(loss_of(compiled, images * math.nan, labels))
    assert record.refused
    assert State.of(model, optimizer).differences(before) == []


@pytest.mark.parametrize("decide", ["host", "device"])
def test_15_a_tensor_learning_rate_is_obeyed_and_recorded(decide):
    model = _Weights(torch.zeros(1))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=torch.tensor(0.25), weight_decay=0.0, fused=True
    )
    record = Guard(model, optimizer, decide=decide).step(model.pull(torch.ones(1)))
    assert record.learning_rates == (0.25,)
    assert model.weights[0].tolist() == pytest.approx([-0.25], rel=1e-5)


def test_16_missing_sparse_complex_and_empty_gradients_are_measured():
    embedding = nn.Embedding(5, 2, sparse=True)
    embedding(torch.tensor([1, 1])).sum().backward()
    gradients = [
        embedding.weight.grad,
        torch.tensor([3.0 + 4.0j]),
        torch.empty(0),
        torch.tensor([2.0], dtype=torch.float64),
    ]
    norms = tensor_norms(gradients)
    assert norms.dtype is torch.float64
    assert norms.tolist() == pytest.approx([math.sqrt(8.0), 5.0, 0.0, 2.0])


def test_16_sparse_gradients_are_clipped_on_the_plain_path():
    torch.manual_seed(0)
    model = nn.Embedding(5, 2, sparse=True)
    before = model.weight.detach().clone()
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=1.0), clip=1.0)
    record = guard.step(model(torch.tensor([1, 3])).sum())
    assert record.grad_norm == pytest.approx(2.0)
    assert float((before - model.weight.detach()).norm()) == pytest.approx(1.0, rel=1e-5)


def test_16_frozen_and_tied_parameters_are_counted_once_or_not_at_all():
    model = _Weights(torch.zeros(1), torch.zeros(1))
    model.weights[1].requires_grad_(False)
    model.tied = model.weights[0]
    guard = Guard(model, torch.optim.AdamW(model.parameters(), fused=True))
    assert guard.step((model.weights[0] * 3 + model.tied).sum()).grad_norm == 4.0


def test_16_a_parameter_group_added_later_is_measured_and_named():
    model = _Weights(torch.zeros(1), torch.zeros(1))
    optimizer = torch.optim.AdamW([model.weights[0]], fused=True)
    guard = Guard(model, optimizer)
    guard.step(model.pull(torch.ones(1), torch.ones(1)))
    optimizer.add_param_group({"params": [model.weights[1]]})
    model.weights[1].grad = None
    record = guard.step(model.pull(torch.tensor([3.0]), torch.tensor([math.nan])) * 1.0)
    assert record.refused
    with bad_gradient(model.weights[1], math.inf):
        record = guard.step(model.pull(torch.ones(1), torch.ones(1)))
    assert [c.name for c in record.culprits] == ["weights.1"]


def test_17_two_optimizers_have_a_verdict_and_a_loss_scale_each():
    generator, critic = net(1), net(2)
    guards = [
        Guard(m, torch.optim.AdamW(m.parameters(), fused=True), amp="fp16")
        for m in (generator, critic)
    ]
    with bad_gradient(critic[0].weight, math.inf):
        records = [
            g.step(loss_of(m, *batch(0))) for g, m in zip(guards, (generator, critic), strict=True)
        ]
    assert [r.applied for r in records] == [True, False]
    assert [g.state_dict()["scale"]["scale"] for g in guards] == [65536.0, 32768.0]


@pytest.mark.parametrize("decide", ["host", "device"])
@pytest.mark.parametrize("amp", [None, "fp16"])
def test_18_the_last_window_of_an_epoch_steps_with_the_mean_of_what_it_has(decide, amp):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    guard = Guard(model, optimizer, accumulate=4, amp=amp, decide=decide)
    records = [guard.step(loss_of(model, *batch(n))) for n in guard.batches(range(6))]
    assert [r.verdict.value for r in records] == ["accumulated"] * 3 + [
        "applied",
        "accumulated",
        "applied",
    ]
    assert records[-1].micro_batches == 2
    assert Event.PARTIAL_WINDOW in records[-1].events
    expected, _ = plain_run(FOLDED["adamw"], [[0, 1, 2, 3], [4, 5]])
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_18_without_the_loader_flush_closes_the_window_and_saving_before_it_is_refused():
    model = net()
    guard = Guard(model, torch.optim.AdamW(model.parameters(), fused=True), accumulate=4)
    guard.step(loss_of(model, *batch(0)))
    with pytest.raises(UsageError, match="1 of 4 micro-batches wait for their optimizer step"):
        guard.state_dict()
    record = guard.flush()
    assert record is not None
    assert record.applied
    assert guard.flush() is None


def test_19_gradients_that_are_views_of_ddp_buckets_are_named_one_by_one(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = net()
        wrapped = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
        optimizer = torch.optim.AdamW(wrapped.parameters(), lr=1e-2, fused=True)
        guard = Guard(wrapped, optimizer, accumulate=2)
        for number in range(4):
            with guard.autocast():
                loss = loss_of(wrapped, *batch(number))
            with bad_gradient(model[4].weight, math.inf if number == 3 else 0.0):
                record = guard.step(loss)
            assert wrapped.require_backward_grad_sync is (number % 2 == 1)
    finally:
        torch.distributed.destroy_process_group()
    assert [c.name for c in record.culprits] == ["module.4.weight"]


def test_exact_kernel_calls_need_no_divisor_on_a_good_unclipped_step():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    loss_of(model, *batch(0)).backward()
    gradient = model[4].weight.grad
    apply_folded(optimizer, divisor=None, refuse=None)
    assert gradient._version == 0


def test_policy_settings_reach_the_scale():
    model = net()
    guard = Guard(
        model,
        torch.optim.AdamW(model.parameters(), fused=True),
        amp="fp16",
        policy=Policy(initial_scale=8.0, growth_interval=2, growth_factor=1.5),
    )
    scales = [guard.step(loss_of(model, *batch(s))).loss_scale for s in range(4)]
    assert scales == [8.0, 8.0, 12.0, 12.0]
