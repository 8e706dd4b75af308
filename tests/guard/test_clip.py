"""Clipping rules: each against a plain reading of its paper, on the host and on the device."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from guard.conftest import FOLDED, PLAIN, batch, loss_of, net
from surefoot.errors import ConfigError
from surefoot.guard import (
    AdaptiveClip,
    GroupClip,
    Guard,
    NormClip,
    PercentileClip,
    ValueClip,
    ZScoreClip,
    attach,
)
from surefoot.records import Event
from surefoot.testing import bad_gradient


class _Weights(nn.Module):
    def __init__(self, *weights: list[float]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.tensor(w) for w in weights)

    def pull(self, *gradients: list[float]) -> torch.Tensor:
        pairs = zip(self.weights, gradients, strict=True)
        return sum((w * torch.tensor(g)).sum() for w, g in pairs)


def moved(model: _Weights, guard: Guard, *gradients: list[float]) -> list[list[float]]:
    """What plain SGD with rate 1 takes off the weights: the gradient as it was applied."""
    before = [w.detach().clone() for w in model.weights]
    guard.step(model.pull(*gradients))
    return [(b - w.detach()).tolist() for b, w in zip(before, model.weights, strict=True)]


def sgd(model: nn.Module, *, fused: bool) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=1.0, fused=fused)


sides = pytest.mark.parametrize(
    ("fused", "decide"), [(False, "host"), (True, "host"), (True, "device")]
)
scales = pytest.mark.parametrize("amp", [None, "fp16"])


@sides
@scales
def test_value_cuts_elements_of_the_true_gradient(fused, decide, amp):
    model = _Weights([0.0, 0.0], [0.0])
    guard = Guard(model, sgd(model, fused=fused), clip=ValueClip(0.5), amp=amp, decide=decide)
    assert moved(model, guard, [3.0, -0.25], [-7.0]) == [[0.5, -0.25], [-0.5]]
    record = guard.step(model.pull([0.3, 0.4], [1.2]))
    assert record.grad_norm == pytest.approx(1.3)
    assert record.clip_coefficient == pytest.approx(math.sqrt(0.3**2 + 0.4**2 + 0.5**2) / 1.3)


@sides
@scales
def test_adaptive_shortens_each_tensor_to_a_share_of_its_weight(fused, decide, amp):
    model = _Weights([3.0, 4.0], [0.0])
    rule = AdaptiveClip(0.1, least=0.01)
    guard = Guard(model, sgd(model, fused=fused), clip=rule, amp=amp, decide=decide)
    first, second = moved(model, guard, [6.0, 8.0], [-2.0])
    assert first == pytest.approx([0.3, 0.4], rel=1e-5)
    assert second == pytest.approx([-0.001], rel=1e-5)
    assert moved(model, guard, [0.01, 0.0], [0.0])[0] == pytest.approx([0.01, 0.0], abs=1e-6)


@sides
def test_groups_have_a_norm_each(fused, decide):
    model = _Weights([0.0, 0.0], [0.0], [0.0])
    optimizer = torch.optim.SGD(
        [
            {"params": [model.weights[0], model.weights[2]]},
            {"params": [model.weights[1]]},
        ],
        lr=1.0,
        fused=fused,
    )
    guard = Guard(model, optimizer, clip=GroupClip({0: 1.0}), decide=decide)
    first, second, third = moved(model, guard, [2.0, 0.0], [9.0], [1.5])
    assert first == pytest.approx([0.8, 0.0], rel=1e-5)
    assert second == [9.0]
    assert third == pytest.approx([0.6], rel=1e-5)


@sides
def test_percentile_follows_the_norms_of_accepted_steps(fused, decide):
    model = _Weights([0.0])
    rule = PercentileClip(50.0, history=8, warmup=3)
    guard = Guard(model, sgd(model, fused=fused), clip=rule, decide=decide)
    seen: list[float] = []
    for norm in (1.0, 4.0, 2.0, 8.0, math.inf, 1.0, 16.0, 3.0, 9.0, 2.0, 5.0, 30.0):
        ((applied,),) = moved(model, guard, [norm])
        if math.isinf(norm):
            assert applied == 0.0
            continue
        limit = float(np.quantile(seen[-8:], 0.5)) if len(seen) >= 3 else math.inf
        assert applied == pytest.approx(min(norm, limit), rel=1e-5)
        seen.append(norm)


@sides
def test_z_score_clips_what_stands_out_and_is_not_blinded_by_it(fused, decide):
    model = _Weights([0.0])
    rule = ZScoreClip(2.0, decay=0.9, warmup=4)
    guard = Guard(model, sgd(model, fused=fused), clip=rule, decide=decide)
    mean = variance = count = 0.0
    norms = [1.0, 1.2, 0.8, 1.1, 1.0, 50.0, math.nan, 1.05, 40.0, 0.9, 1e4]
    for norm in norms:
        ((applied,),) = moved(model, guard, [norm])
        if math.isnan(norm):
            assert applied == 0.0
            continue
        z = (norm - mean) / max(math.sqrt(variance), 1e-12)
        out = count >= 4 and z > 2.0
        wanted = mean + 4.0 / z * math.sqrt(variance) if out else norm
        assert applied == pytest.approx(wanted, rel=1e-4)
        share = max(1 / (count + 1), 0.1)
        step = wanted - mean
        variance = (1 - share) * (variance + share * step**2)
        mean += share * step
        count += 1
    assert mean < 2.0


@sides
@scales
def test_rules_in_a_row_see_what_the_ones_before_have_left(fused, decide, amp):
    model = _Weights([3.0, 4.0], [1.0])
    rules = [AdaptiveClip(0.2), NormClip(0.5)]
    guard = Guard(model, sgd(model, fused=fused), clip=rules, amp=amp, decide=decide)
    first, second = moved(model, guard, [6.0, 8.0], [2.0])
    length = math.hypot(1.0, 0.2)
    assert first == pytest.approx([0.6 * 0.5 / length, 0.8 * 0.5 / length], rel=1e-4)
    assert second == pytest.approx([0.2 * 0.5 / length], rel=1e-4)


@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_the_record_says_how_much_shorter_the_gradient_became(name):
    model = net()
    optimizer = {**FOLDED, **PLAIN}[name](list(model.parameters()))
    guard = Guard(model, optimizer, clip=AdaptiveClip(1e-3))
    record = guard.step(loss_of(model, *batch(0)))
    assert record.clip_coefficient < 0.1
    assert Event.CLIPPED in record.events


@pytest.mark.parametrize("make", [lambda: PercentileClip(warmup=2), lambda: ZScoreClip(warmup=2)])
def test_what_a_rule_has_learnt_is_saved_and_loaded(make):
    model = _Weights([0.0])
    guard = Guard(model, sgd(model, fused=True), clip=make())
    for norm in (1.0, 2.0, 1.5, 1.0):
        guard.step(model.pull([norm]))
    state = guard.state_dict()
    guard.detach()
    other = _Weights([0.0])
    resumed = Guard(other, sgd(other, fused=True), clip=make())
    resumed.load_state_dict(state)
    assert resumed.state_dict()["clip"] == state["clip"]
    assert abs(moved(other, resumed, [100.0])[0][0]) < 5.0


def test_an_attached_guard_clips_by_any_rule():
    model = _Weights([3.0, 4.0])
    optimizer = sgd(model, fused=False)
    attach(optimizer, model, clip=AdaptiveClip(0.1))
    model.pull([6.0, 8.0]).backward()
    optimizer.step()
    assert model.weights[0].tolist() == pytest.approx([2.7, 3.6], rel=1e-5)


def test_a_refused_step_teaches_a_rule_nothing():
    model = _Weights([0.0])
    guard = Guard(model, sgd(model, fused=True), clip=ZScoreClip(), decide="device")
    guard.step(model.pull([1.0]))
    before = guard.state_dict()["clip"]
    with bad_gradient(model.weights[0], math.nan):
        assert guard.step(model.pull([1.0])).refused
    assert guard.state_dict()["clip"] == before


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ValueClip(0.0), "ValueClip=0.0: the largest allowed element, above 0"),
        (lambda: AdaptiveClip(-1.0), "AdaptiveClip.factor=-1.0: a share of the weight's norm"),
        (lambda: PercentileClip(0.0), r"percentile in \(0, 100\], not 0.0"),
        (lambda: PercentileClip(history=4, warmup=9), "1 <= warmup <= history, not 9, 4"),
        (lambda: ZScoreClip(decay=1.0), "decay between 0 and 1"),
        (lambda: GroupClip({1: math.nan}), r"GroupClip\[1\]=nan"),
        (
            lambda: Guard(net(), torch.optim.SGD(net().parameters()), clip=[ValueClip(1.0)]),
            "ValueClip stands alone",
        ),
    ],
)
def test_rules_that_cannot_work_are_named(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
