"""A refused step says which module, which loss term and which sample it died of."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from surefoot import Guard, LossTerms, Policy, attach
from surefoot.errors import ConfigError
from surefoot.records import Cause, Origin, StepRecord
from surefoot.testing import State, bad_gradient

DECIDE = pytest.mark.parametrize("decide", ["host", "device"])
NO_SNAPSHOTS = Policy(snapshot_interval=0)


class Shifted(nn.Module):
    """Root of what is below zero."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - 50).sqrt()


class Length(nn.Module):
    """Distance of each row to itself: 0, where a root has no gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return x + (x - x.detach()).square().sum(1, keepdim=True).sqrt()


class Guarded(nn.Module):
    """The root of a negative number, thrown away afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 1e9, (x - 1e9).sqrt(), x)


class Net(nn.Module):
    """Two layers around ``middle``; BatchNorm, an in-place ReLU and dropout as in real ones."""

    def __init__(self, middle: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(3, 4), nn.BatchNorm1d(4)
        self.act = nn.ReLU(inplace=True)
        self.middle = middle or nn.Identity()
        self.drop, self.head = nn.Dropout(0.4), nn.Linear(4, 2)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.drop(self.middle(self.act(self.norm(self.first(x))))))


def images(step: int = 0, bad: int | None = None, value: float = math.nan) -> Tensor:
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(step))
    if bad is not None:
        rows[bad, 1] = value
    return rows


def two_terms(model: nn.Module, x: Tensor) -> LossTerms:
    y = model(x).float()
    return LossTerms({"near": y.square().mean(), "far": (y - 3).abs().mean()}, {"far": 0.5})


def ids(step: int) -> list[str]:
    return [f"{step}/{row}" for row in range(6)]


class Loop:
    """A loop of one's own; each batch may be of several micro-batches."""

    def __init__(self, model: nn.Module, *, compute: Any = two_terms, **settings: Any) -> None:
        self.model, self.compute = model, compute
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        self.guard = Guard(model, self.optimizer, **{"policy": NO_SNAPSHOTS, **settings})

    def step(self, *batches: Tensor, tell: bool = True, **settings: Any) -> StepRecord:
        for number, batch in enumerate(batches):
            compute = partial(self.compute, self.model, batch)
            with self.guard.autocast():
                loss = compute()
            record = self.guard.step(
                loss, sample_ids=ids(number), recompute=compute if tell else None, **settings
            )
        self.guard.flush()
        assert record.refused is (record.cause is not Cause.NONE)
        return record


@DECIDE
@pytest.mark.parametrize("tell", [True, False])
def test_a_bad_image_is_the_models_own_input_and_its_sample_is_named(decide: str, tell: bool):
    record = Loop(Net(), decide=decide).step(images(bad=4), tell=tell)
    fault = record.fault
    assert fault is not None
    assert (fault.origin, fault.value, fault.position) == (Origin.INPUT, "NaN", "input[0]")
    assert (fault.samples, record.samples) == (("0/4",), ("0/4",))
    assert fault.made.finite == pytest.approx(17 / 18)
    assert str(record).endswith("the model's own input was not finite: NaN in input[0]; on 0/4")
    assert "look at these samples" in record.explain()


@DECIDE
@pytest.mark.parametrize("tell", [True, False])
@pytest.mark.parametrize("amp", [None, "bf16", "fp16"])
def test_a_module_that_makes_nan_of_finite_input_is_named(decide: str, tell: bool, amp: Any):
    record = Loop(Net(Shifted()), decide=decide, amp=amp).step(images(), tell=tell)
    fault = record.fault
    assert record.cause is Cause.NONFINITE_LOSS
    assert fault is not None
    assert (fault.origin, fault.module, fault.kind) == (Origin.MODULE, "middle", "Shifted")
    assert (fault.value, fault.position, fault.input_finite) == ("NaN", "output", True)
    assert fault.given.finite == 1.0
    assert 0.0 <= fault.given.minimum <= fault.given.maximum < 50.0
    assert fault.made.finite == 0.0
    assert "middle (Shifted)" in record.explain()


def test_code_between_two_modules_is_that_of_the_one_around_them():
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.two((self.one(x) - 50).log())

    fault = Loop(Net(Around())).step(images()).fault
    assert fault is not None
    assert (fault.module, fault.kind, fault.before) == ("middle", "Around", "middle.two")
    assert fault.input_finite
    assert "the own code of middle (Around), before it calls middle.two" in str(fault)


@DECIDE
def test_a_backward_pass_that_makes_nan_is_traced_to_its_module_and_term(decide: str):
    def compute(model: nn.Module, x: Tensor) -> LossTerms:
        middle = model.middle(model.first(x))  # type: ignore[operator]
        y = model.head(model.first(x))  # type: ignore[operator]
        return LossTerms({"plain": y.square().mean(), "root": middle.mean()}, {"root": 2.0})

    record = Loop(Net(Length()), compute=compute, decide=decide).step(images())
    fault = record.fault
    assert record.cause is Cause.NONFINITE_GRADIENT
    assert fault is not None
    assert (fault.origin, fault.module, fault.kind) == (Origin.BACKWARD, "middle", "Length")
    assert (fault.value, fault.position, fault.input_finite) == ("NaN", "input[0]", True)
    assert [(t.name, t.bad) for t in record.terms] == [("plain", False), ("root", True)]
    assert record.terms[0].grad_norm > 0
    assert record.terms[0].cosine == pytest.approx(1.0)
    assert [c.name for c in record.culprits] == ["first.weight", "first.bias"]
    assert "in the term root" in str(record)
    assert "sqrt, norm, pow" in record.explain()


def test_without_recompute_the_record_says_how_to_learn_more():
    record = Loop(Net(Length()), policy=Policy(term_gradients_every=0)).step(images(), tell=False)
    assert record.fault is not None
    assert (record.fault.origin, record.fault.kind) == (Origin.BACKWARD, "")
    assert math.isnan(record.terms[0].grad_norm)
    assert "guard.step(loss, recompute=...)" in record.explain()


def test_a_nan_that_where_throws_away_is_found_where_it_was_made():
    record = Loop(Net(Guarded())).step(images())
    assert record.cause is Cause.NONFINITE_GRADIENT
    assert record.fault is not None
    assert record.fault.origin is Origin.BACKWARD
    assert (record.fault.module, record.fault.kind) == ("middle", "Guarded")


def test_a_mask_of_minus_inf_is_not_blamed():
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.tensor([0.0, 0.0, 0.0, -math.inf]))
            self.mix = nn.Softmax(-1)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x + self.mask)

    model = nn.Sequential(nn.Linear(3, 4), Attention(), nn.Linear(4, 4), Shifted())
    fault = Loop(model).step(images()).fault
    assert fault is not None
    assert (fault.module, fault.kind) == ("3", "Shifted")
    assert fault.detail == "-Inf, which may be a mask, stood in 1.mix before that"
    assert fault.state == ()


def test_minus_inf_is_blamed_where_it_alone_reaches_the_loss():
    class Log(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 0).abs().log()

    model = nn.Sequential(nn.Linear(3, 4), Log())
    fault = Loop(model, compute=lambda m, x: m(x).mean()).step(images()).fault
    assert fault is not None
    assert (fault.module, fault.kind, fault.value) == ("1", "Log", "-Inf")


def test_a_weight_that_was_nan_already_is_named_as_such():
    model = Net()
    with torch.no_grad():
        model.head.weight[1, 2] = math.nan
    fault = Loop(model).step(images()).fault
    assert fault is not None
    assert (fault.module, fault.state) == ("head", ("weight",))
    assert "whose weight was not finite to begin with" in str(fault)


@DECIDE
def test_a_loss_function_that_divides_by_zero_is_told_from_the_model(decide: str):
    def compute(model: nn.Module, x: Tensor) -> LossTerms:
        y = model(x)
        return LossTerms({"plain": y.square().mean(), "share": (y / (y - y)).mean()}, {})

    record = Loop(Net(), compute=compute, decide=decide).step(images())
    assert record.fault is not None
    assert record.fault.origin is Origin.LOSS
    assert [(t.name, t.bad) for t in record.terms] == [("plain", False), ("share", True)]
    assert record.terms[0].cosine == pytest.approx(1.0)
    assert str(record).count("in the term share") == 1


def test_a_loss_function_whose_backward_is_bad_is_told_from_the_model():
    def compute(model: nn.Module, x: Tensor) -> LossTerms:
        y = model(x)
        still = (y - y.detach()).square().sum().sqrt()
        return LossTerms({"plain": y.square().mean(), "still": still}, {})

    record = Loop(Net(), compute=compute).step(images())
    assert record.fault is not None
    assert "in the loss function; NaN arrived at the output of the model" in str(record.fault)
    assert [t.bad for t in record.terms] == [False, True]


@DECIDE
def test_one_bad_gradient_is_named_with_its_parameter(decide: str):
    model = Net()
    loop = Loop(model, decide=decide)
    with bad_gradient(model.head.weight, math.inf, index=3):
        record = loop.step(images())
    assert [(c.name, c.kind) for c in record.culprits] == [("head.weight", "Inf")]
    assert record.fault is not None
    assert (record.fault.origin, record.fault.module) == (Origin.BACKWARD, "head")
    assert (record.fault.value, record.fault.position) == ("Inf", "weight")
    (culprit,) = record.culprits
    assert culprit.range.known is (decide == "host")
    if decide == "host":
        assert culprit.finite == pytest.approx(7 / 8)
        assert culprit.minimum <= culprit.mean <= culprit.maximum


def test_ranges_of_bad_gradients_are_those_of_the_true_ones():
    scale = Policy(initial_scale=8.0, min_scale=8.0)

    def gradients(amp: Any) -> Any:
        torch.manual_seed(3)
        model = nn.Linear(3, 2)
        loop = Loop(model, compute=lambda m, x: m(x).sum(), amp=amp, policy=scale)
        with bad_gradient(model.weight, math.inf):
            return loop.step(images()).culprits[0]

    plain, scaled = gradients(None), gradients("fp16")
    assert scaled.maximum == pytest.approx(plain.maximum, rel=1e-2)
    assert scaled.mean == pytest.approx(plain.mean, rel=1e-2)


@DECIDE
@pytest.mark.parametrize("tell", [True, False])
def test_of_a_window_the_bad_micro_batch_is_the_one_explained(decide: str, tell: bool):
    loop = Loop(Net(), accumulate=4, decide=decide)
    record = loop.step(images(0), images(1, bad=2), images(2), images(3), tell=tell)
    assert record.fault is not None
    assert (record.fault.origin, record.fault.micro_batch) == (Origin.INPUT, 1)
    assert record.samples == ("1/2",)
    assert "micro-batch 2 of 4" in record.explain()


def test_of_a_window_with_a_bad_gradient_the_micro_batch_is_found():
    class Rare(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + (x.detach().amax() > 90) * (x - x.detach()).square().sum().sqrt()

    model = nn.Sequential(nn.Linear(3, 4, bias=False), Rare())
    nn.init.ones_(model[0].weight)  # type: ignore[arg-type]
    loop = Loop(model, accumulate=3)
    record = loop.step(images(0) / 9, images(1) * 0 + 50, images(2) / 9)
    assert record.cause is Cause.NONFINITE_GRADIENT
    assert record.fault is not None
    assert record.fault.module == "1"
    # 0 x NaN is NaN: the factor does not save the other micro-batches.
    assert record.fault.micro_batch == 0


@DECIDE
@pytest.mark.parametrize("kind", ["input", "module", "backward", "gradient"])
def test_looking_into_a_step_leaves_no_trace(decide: str, kind: str):
    """Weights, moments, buffers, modes, attributes, random numbers and hooks as without it."""

    def run(policy: Policy) -> tuple[Loop, list[Any]]:
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)
        middle = {"module": Shifted(), "backward": Length()}.get(kind, nn.Identity())
        model = Net(nn.Identity())
        loop = Loop(model, decide=decide, policy=policy, accumulate=2)
        drawn = []
        for step in range(5):
            bad = step in (1, 3)
            model.middle = middle if bad else nn.Identity()
            batches = images(step), images(step + 10, bad=1 if bad and kind == "input" else None)
            if bad and kind == "gradient":
                with bad_gradient(model.first.weight, math.nan):
                    record = loop.step(*batches)
            else:
                record = loop.step(*batches)
            assert record.refused is bad
            drawn += [float(torch.rand(())), random.random(), float(np.random.rand())]
            drawn += [model.calls, model.training, len(model._forward_pre_hooks)]
            drawn += [p.grad is None for p in model.parameters()]
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        drawn += [hooks, [p._backward_hooks for p in model.parameters()]]
        return loop, drawn

    off = Policy(snapshot_interval=0, inspect_refusals=0)
    quiet, expected = run(off)
    looked, drawn = run(NO_SNAPSHOTS)
    expected[-1] = drawn[-1] = [not hooks for hooks in drawn[-1]]
    hooks_off, hooks_on = expected.pop(-2), drawn.pop(-2)
    assert [on - off for on, off in zip(hooks_on, hooks_off, strict=True)][1:] == [0] * 6
    assert [v for v in drawn if v not in (1, 2)] == [v for v in expected if v not in (1, 2)]
    assert (
        State.of(looked.model, looked.optimizer).differences(State.of(quiet.model, quiet.optimizer))
        == []
    )


def test_dropout_fails_the_same_way_again():
    class Fragile(nn.Module):
        """Bad only where dropout has left this one element alive."""

        def forward(self, x: Tensor) -> Tensor:
            return x.masked_fill((x != 0).all(1, keepdim=True), math.nan)

    model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), Fragile())
    seen = 0
    for seed in range(24):
        torch.manual_seed(seed)
        record = Loop(model, policy=NO_SNAPSHOTS).step(images(), tell=bool(seed % 2))
        if record.refused:
            seen += 1
            assert record.fault is not None
            assert (record.fault.origin, record.fault.module) == (Origin.MODULE, "2")
            assert 0 < len(record.fault.samples) < 6
    assert seen > 1


def test_an_input_that_was_overwritten_since_is_not_passed_off_as_the_one():
    model = Net()
    loop = Loop(model)
    batch = images(bad=0)
    loss = two_terms(model, batch)
    batch.copy_(images())
    record = loop.guard.step(loss)
    assert record.fault is not None
    assert record.fault.origin is Origin.NOT_AGAIN
    assert record.fault.detail == "an input was overwritten since"


def test_a_lambda_that_sees_another_batch_is_found_out():
    model = Net(Length())
    loop = Loop(model, accumulate=2)
    for batch in (images(0), images(1) * 30):
        compute = lambda: two_terms(model, batch)  # noqa: B023, E731
        record = loop.guard.step(two_terms(model, batch), recompute=compute)
    assert record.refused
    assert record.fault is not None
    assert "give functools.partial(compute, batch)" in record.fault.detail


def test_a_forward_pass_that_raises_the_second_time_is_survived_and_said():
    class Once(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                return x / 0
            raise RuntimeError("no second time\nand more")

    record = Loop(Net(Once())).step(images(), tell=False)
    assert record.fault is not None
    assert str(record.fault) == (
        "the forward pass could not be run again: RuntimeError: no second time"
    )


def test_a_loop_that_calls_parts_alone_is_understood():
    parts = nn.ModuleDict({"net": Net(Shifted()), "loss": nn.MSELoss()})

    def compute(model: Any, x: Tensor) -> Tensor:
        return model["loss"](model["net"](x), torch.zeros(6, 2))

    record = Loop(parts, compute=compute).step(images(), tell=False)
    assert record.fault is not None
    assert (record.fault.module, record.fault.kind) == ("net.middle", "Shifted")


def test_a_bad_target_is_told_from_a_bad_model():
    parts = nn.ModuleDict({"net": Net(), "loss": nn.MSELoss()})

    def compute(model: Any, x: Tensor) -> Tensor:
        return model["loss"](model["net"](x), torch.full((6, 2), math.nan))

    record = Loop(parts, compute=compute).step(images(), tell=False)
    assert str(record.fault) == (
        "what the loop gave to loss (MSELoss) was not finite: NaN in input target"
    )


def test_where_nothing_was_kept_the_record_says_what_to_do():
    model = nn.ModuleDict({"a": nn.Linear(3, 4)})

    def compute(model: Any, x: Tensor) -> Tensor:
        return (x @ model["a"].weight.T / 0).mean()

    record = Loop(model, compute=compute).step(images(), tell=False)
    assert record.fault is not None
    assert record.fault.origin is Origin.NOT_KEPT
    assert "call the model itself in the loop" in record.explain()


@pytest.mark.parametrize("tell", [False, True])
def test_an_attached_guard_says_where_as_well(tell: bool):
    model = Net(Shifted())
    optimizer = torch.optim.RMSprop(model.parameters())
    attachment = attach(optimizer, model)
    for step, bad in enumerate([None, 3]):
        model.middle = nn.Identity()
        terms = two_terms(model, images(step, bad=bad))
        if tell:
            attachment.observe(terms, sample_ids=ids(step))
        terms.total.backward()
        optimizer.step()
        optimizer.zero_grad()
    record = attachment.last
    assert record is not None
    assert record.refused
    assert record.fault is not None
    assert (record.fault.origin, record.fault.position) == (Origin.INPUT, "input[0]")
    assert record.samples == (("1/3",) if tell else ())
    attachment.detach()
    assert not model._forward_pre_hooks


def test_an_attached_guard_owns_up_to_what_it_cannot_tell_apart():
    model = Net(Length())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    attachment = attach(optimizer, model)
    two_terms(model, images()).total.backward()
    optimizer.step()
    assert attachment.last is not None
    assert attachment.last.fault is not None
    assert attachment.last.fault.origin is Origin.AFTER
    assert "attachment.observe(loss) tells the two apart" in " ".join(
        attachment.last.explain().split()
    )


def test_an_overflow_of_the_loss_scale_is_not_looked_into():
    policy = Policy(term_gradients_every=0)
    record = Loop(Net(Length()), amp="fp16", policy=policy).step(images())
    assert (record.cause, record.fault) == (Cause.OVERFLOW, None)
    assert all(math.isnan(t.grad_norm) for t in record.terms)


def test_ever_fewer_refusals_are_looked_into():
    model = Net()
    loop = Loop(model, policy=Policy(snapshot_interval=0, inspect_refusals=3))
    looked = []
    for number in range(1, 20):
        record = loop.step(images(number, bad=0))
        looked += [number] if record.fault is not None else []
        assert record.cause is Cause.NONFINITE_LOSS
    assert looked == [1, 2, 3, 4, 8, 16]


def test_no_refusal_is_looked_into_where_the_policy_says_so():
    loop = Loop(Net(), policy=Policy(inspect_refusals=0))
    assert loop.step(images(bad=0)).fault is None
    assert len(loop.model._forward_pre_hooks) == 1
    with pytest.raises(ConfigError, match=r"Policy\.inspect_refusals: at least 0, not -1"):
        Policy(inspect_refusals=-1)


# -- terms of healthy steps ------------------------------------------------------------------------


@DECIDE
@pytest.mark.parametrize("amp", [None, "fp16"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_sampled_step_is_bit_for_bit_a_step(decide: str, amp: Any, accumulate: int):
    def run(every: int) -> tuple[Loop, list[StepRecord]]:
        torch.manual_seed(1)
        policy = Policy(term_gradients_every=every)
        loop = Loop(Net(), policy=policy, clip=0.5, amp=amp, decide=decide, accumulate=accumulate)
        batches = [[images(10 * step + i) for i in range(accumulate)] for step in range(8)]
        return loop, [loop.step(*batch) for batch in batches]

    sampled, records = run(3)
    plain, _ = run(0)
    differences = State.of(sampled.model, sampled.optimizer).differences(
        State.of(plain.model, plain.optimizer)
    )
    assert differences == []
    looked = [r.step for r in records if not math.isnan(r.terms[0].grad_norm)]
    assert [step for step in looked if step != 1] == [0, 3, 6]  # on a device the first is late


def test_sampled_gradients_are_those_of_each_weighted_term():
    torch.manual_seed(2)
    model = Net()
    model.drop.p = 0.0
    loop = Loop(model, policy=Policy(term_gradients_every=1), amp="fp16")
    loop.step(images(0))
    twin = copy.deepcopy(model)
    record = loop.step(images(1))
    gradients = []
    for name in ("near", "far", None):
        with torch.autocast("cpu", torch.float16):
            terms = two_terms(twin, images(1))
        total = terms.total if name is None else terms.values[name] * terms.weight(name)
        some = torch.autograd.grad(total * 2.0**16, list(twin.parameters()))
        gradients.append(torch.cat([g.flatten() for g in some]) / 2.0**16)
    for found, alone in zip(record.terms, gradients, strict=False):
        assert found.grad_norm == pytest.approx(float(alone.norm()), rel=1e-3)
        cosine = torch.nn.functional.cosine_similarity(alone, gradients[-1], dim=0)
        assert found.cosine == pytest.approx(float(cosine), abs=1e-3)


def test_a_graph_that_runs_backwards_only_once_is_left_alone():
    class OnlyOnce(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.done = False
            return x * 1

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
            if torch._C._autograd._get_current_graph_task_keep_graph():
                raise RuntimeError("this backward pass runs once")
            return gradient

    def compute(model: nn.Module, x: Tensor) -> LossTerms:
        y = OnlyOnce.apply(model(x))
        return LossTerms({"a": y.mean(), "b": y.square().mean()}, {})

    loop = Loop(Net(), compute=compute, policy=Policy(term_gradients_every=1))
    records = [loop.step(images(step)) for step in range(3)]
    assert all(record.applied for record in records)
    assert all(math.isnan(record.terms[0].grad_norm) for record in records)


# -- what is kept ----------------------------------------------------------------------------------


def test_inputs_are_held_for_one_window_and_without_their_graph():
    model = nn.ModuleDict({"body": nn.Linear(3, 4), "head": nn.Linear(4, 2)})
    loop = Loop(model, compute=lambda m, x: m["head"](m["body"](x)).mean(), accumulate=2)
    keeper = loop.guard._stepper.inspector._keeper
    assert keeper is not None
    loop.guard.step(loop.compute(model, images()))
    (micro,) = keeper._window
    assert [call.module for call in micro.calls] == [model["body"], model["head"]]
    assert all(t.grad_fn is None for call in micro.calls for t in call.args)
    loop.guard.step(loop.compute(model, images()))
    assert keeper._window == []
    assert loop.guard._stepper.inspector._cases == {}


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("surefoot.guard.kept._MOST_BYTES", 200)
    loop = Loop(Net(), accumulate=4)
    batches = images(0, bad=1), images(1), images(2), images(3)
    for number, batch in enumerate(batches[:3]):
        loop.guard.step(two_terms(loop.model, batch), sample_ids=ids(number))
    keeper = loop.guard._stepper.inspector._keeper
    assert keeper is not None
    assert [len(micro.calls) for micro in keeper._window] == [0, 1, 1]
    assert [micro.sample_ids[0] for micro in keeper._window] == ["0/0", "1/0", "2/0"]


def test_a_model_that_is_called_without_ever_a_step_fills_no_memory(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("surefoot.guard.kept._MOST_CALLS", 3)
    loop = Loop(Net())
    for step in range(5):
        loop.model(images(step))
    keeper = loop.guard._stepper.inspector._keeper
    assert keeper is not None
    kept = [call.args[0] for call in keeper._open.calls]
    assert [torch.equal(a, images(step)) for a, step in zip(kept, (2, 3, 4), strict=True)] == [
        True
    ] * 3
    assert keeper._open.bytes == 3 * images().nbytes


def test_a_copy_of_the_model_keeps_nothing():
    model = Net()
    Loop(model)
    twin = copy.deepcopy(model)
    twin(images())
    for hook in twin._forward_pre_hooks.values():
        keeper = getattr(hook, "__self__", None)
        assert getattr(keeper, "_open", None) is None


def test_a_model_that_is_compiled_in_place_shows_its_parts_by_recompute():
    torch.compiler.reset()
    model = Net(Shifted())
    model.compile(backend="eager")
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=0.1), policy=NO_SNAPSHOTS)
    record = guard.step(model(images()).mean())
    assert record.fault is not None
    assert record.fault.origin is Origin.NOT_KEPT
    assert "torch.compile(model) leaves them" in record.fault.detail
    record = guard.step(model(images()).mean(), recompute=lambda: model(images()).mean())
    assert record.fault is not None
    assert (record.fault.module, record.fault.kind) == ("middle", "Shifted")


def _compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


@pytest.mark.parametrize("wrap", [_compiled, lambda m: m], ids=["compiled", "plain"])
def test_a_compiled_model_is_looked_into_part_by_part(wrap: Callable[[nn.Module], nn.Module]):
    torch.compiler.reset()
    model = Net(Shifted())
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=0.1), policy=NO_SNAPSHOTS)
    outer = wrap(model)
    with guard.autocast():
        loss = outer(images()).mean()
    record = guard.step(loss, recompute=lambda: outer(images()).mean())
    assert record.fault is not None
    assert (record.fault.module, record.fault.kind) == ("middle", "Shifted")
