"""The first batch in half precision and in float32: what passes, what falls back, what is said."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from guard.conftest import batch, loss_of, net
from guard.ranks import world
from surefoot.errors import ConfigError, UsageError
from surefoot.guard import Guard, Policy
from surefoot.guard.deviation import Passed, deviation
from surefoot.guard.precision import PrecisionCheck, check_precision, has_bf16
from surefoot.shapes import LossTerms
from surefoot.testing import State

Case = tuple[nn.Module, Callable[[], Tensor]]


class Does(nn.Module):
    """A module of one function."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def between(function: Callable[[Tensor], Tensor]) -> Case:
    """A small network with that function in its middle, called ``1``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), Does(function), nn.Linear(16, 3))
    x, labels = torch.randn(8, 16), torch.arange(8) % 3
    return model, lambda: nn.functional.cross_entropy(model(x).float(), labels)


def cnn() -> Case:
    model = net()
    return model, lambda: loss_of(model, *batch(0))


def transformer() -> Case:
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
    x, y = torch.randn(4, 10, 32), torch.randn(4, 10, 32)
    return block, lambda: nn.functional.mse_loss(block(x).float(), y)


def perceptron() -> Case:
    return between(torch.tanh)


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Says whether the device has bf16 itself, whatever this machine is."""
    return lambda has: monkeypatch.setattr("surefoot.guard.precision.has_bf16", lambda _: has)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("case", [cnn, transformer, perceptron])
def test_a_healthy_model_keeps_what_was_asked_and_all_that_it_was(
    case: Callable[[], Case], amp: str
) -> None:
    model, compute = case()
    compute().backward()
    gradients = [p.grad for p in model.parameters()]
    copies = [g.clone() for g in gradients]
    model.train()
    next(iter(model.children())).eval()
    modes = [m.training for m in model.modules()]
    before, sequences = State.of(model), torch.get_rng_state()
    python, numpy = random.getstate(), np.random.get_state()[1].copy()
    check = check_precision(model, compute, amp)
    assert check.chosen == check.asked == amp
    assert check.amp == amp
    (trial,) = check.trials
    assert trial.deviation.cosine > 0.999
    assert trial.deviation.loss < 0.01
    assert trial.deviation.worst in dict(model.named_parameters())
    assert f"{amp} agrees with float32 on the first batch: cosine of the gradients 0.9" in (
        check.reason.replace("1.0000", "0.9999")
    )
    assert State.of(model).differences(before) == []
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert all(torch.equal(g, c) for g, c in zip(gradients, copies, strict=True))
    assert torch.equal(torch.get_rng_state(), sequences)
    assert random.getstate() == python
    assert np.array_equal(np.random.get_state()[1], numpy)


@pytest.mark.parametrize(("has", "chosen", "tried"), [(True, "bf16", 2), (False, "fp32", 1)])
def test_an_activation_beyond_fp16_falls_back_and_the_module_is_named(
    native: Callable[[bool], None], has: bool, chosen: str, tried: int
) -> None:
    native(has)
    model, compute = between(lambda h: h * 3e5 / 3e5 if h.dtype != torch.float16 else h * 3e5)
    check = check_precision(model, compute, "fp16")
    assert (check.asked, check.chosen, len(check.trials)) == ("fp16", chosen, tried)
    assert not check.trials[0].good
    assert check.reason.startswith("in fp16, Inf came up in 1 (Does), whose input was finite")
    assert "fp16 ends at 65504" in check.reason
    assert str(check).startswith(f"{chosen} instead of fp16: in fp16, Inf came up in 1 (Does)")
    assert ("; bf16 agrees with float32" in check.reason) == has
    assert ("; bf16 is only emulated on this CPU" in check.reason) == (not has)


def test_how_far_the_activation_reaches_is_said(native: Callable[[bool], None]) -> None:
    native(False)
    model = nn.Sequential(nn.Linear(1, 1, bias=False), Does(lambda h: h * 1e6))
    nn.init.ones_(model[0].weight)
    check = check_precision(model, lambda: model(torch.ones(2, 1)).mean(), "fp16")
    assert "its output reaches 1e+06 in float32, and fp16 ends at 65504" in check.reason


def test_a_cancellation_that_bf16_cannot_resolve_is_not_near() -> None:
    model, compute = between(lambda h: (h + 4096.0) - 4096.0)
    check = check_precision(model, compute, "bf16")
    assert check.chosen == "fp32"
    (trial,) = check.trials
    assert trial.deviation.cosine < 0.9
    assert trial.control.cosine > 0.999
    assert "bf16 is not near float32 on the first batch: cosine of the gradients" in check.reason
    assert "rounding the weights alone gives 0.99" in check.reason.replace("1.0000", "0.9999")


def test_a_network_that_turns_any_rounding_into_any_angle_is_not_blamed_on_precision() -> None:
    torch.manual_seed(0)
    layers = [
        layer
        for _ in range(40)
        for layer in (nn.Linear(32, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU())
    ]
    model, x = nn.Sequential(*layers, nn.Linear(32, 3)), torch.randn(6, 32)
    labels = torch.arange(6) % 3
    check = check_precision(
        model, lambda: nn.functional.cross_entropy(model(x).float(), labels), "bf16"
    )
    (trial,) = check.trials
    assert trial.deviation.cosine < 0.9
    assert trial.control.cosine < 0.95
    assert check.chosen == "bf16"
    assert "bf16 is as near to float32 as this model lets it be" in check.reason


def test_the_loss_scale_comes_down_until_gradients_fit() -> None:
    model = nn.Linear(4, 1)
    x = torch.ones(2, 4)
    # 5 for each of 2 outputs: 327,680 at the first scale, 20,480 at a sixteenth of it.
    check = check_precision(model, lambda: model(x).float().sum() * 5.0, "fp16")
    assert check.chosen == "fp16"
    assert check.trials[0].loss_scale == 4096.0
    assert check.reason.endswith("its gradients overflow until the loss scale is down to 4096")
    low = check_precision(
        model, lambda: model(x).float().sum() * 5.0, "fp16", policy=Policy.conservative()
    )
    assert low.trials[0].loss_scale == 1024.0
    assert "overflow" not in low.reason


def test_a_gradient_that_no_scale_makes_finite_is_located(native: Callable[[bool], None]) -> None:
    native(False)
    # The square of 1e-5 is 0 in fp16, and the root's slope there is infinite.
    model, compute = between(lambda h: h * (h * 1e-5).square().sum(1, keepdim=True).sqrt())
    check = check_precision(model, compute, "fp16")
    assert check.chosen == "fp32"
    assert check.trials[0].loss_scale == 1.0
    assert "came up in the backward pass of 1 (Does)" in check.reason
    assert "at a loss scale of 1" in check.reason


def test_a_loss_that_overflows_by_itself_is_not_laid_on_a_module(
    native: Callable[[bool], None],
) -> None:
    native(False)
    model, x = nn.Linear(4, 1), torch.ones(2, 4)
    check = check_precision(model, lambda: (model(x) * 1e7).square().mean(), "fp16")
    assert check.chosen == "fp32"
    assert "in fp16, every module's output was finite, so the loss function made it" in check.reason


def test_where_float32_fails_as_well_precision_is_not_blamed() -> None:
    model, compute = between(lambda h: (h - h) / (h - h))
    check = check_precision(model, compute, "bf16")
    assert check.chosen == "bf16"
    assert "not finite in float32 either, so precision is not to blame" in check.reason


def test_an_operation_that_half_precision_does_not_have_falls_back() -> None:
    def needs_float32(h: Tensor) -> Tensor:
        if h.dtype != torch.float32:
            raise NotImplementedError("\"nms\" not implemented for 'BFloat16'\nmore of it")
        return h

    check = check_precision(*between(needs_float32), "bf16")
    assert check.chosen == "fp32"
    assert "bf16 cannot be computed (\"nms\" not implemented for 'BFloat16')" in check.reason


def test_what_float32_raises_as_well_is_raised() -> None:
    def broken(h: Tensor) -> Tensor:
        raise RuntimeError("the model is broken")

    with pytest.raises(RuntimeError, match="the model is broken"):
        check_precision(*between(broken), "bf16")


def test_the_state_comes_back_after_an_exception_too() -> None:
    model = net()

    def compute() -> Tensor:
        loss_of(model, *batch(0))
        raise KeyError("label")

    before, sequences = State.of(model), torch.get_rng_state()
    with pytest.raises(KeyError, match="label"):
        check_precision(model, compute, "bf16")
    assert State.of(model).differences(before) == []
    assert torch.equal(torch.get_rng_state(), sequences)


def test_weights_come_back_to_the_bit_after_the_control_pass() -> None:
    model, compute = between(lambda h: (h + 4096.0) - 4096.0)
    before = State.of(model)
    assert check_precision(model, compute, "bf16").trials[0].control is not None
    assert State.of(model).differences(before) == []


def test_training_after_the_check_is_training_without_it() -> None:
    ends: list[State] = []
    for checked in (False, True):
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        if checked:
            check_precision(model, lambda m=model: loss_of(m, *batch(0)), "bf16")
        guard = Guard(model, optimizer, clip=1.0)
        for step in range(4):
            guard.step(loss_of(model, *batch(step)))
        ends.append(State.of(model, optimizer))
    assert ends[1].differences(ends[0]) == []


def test_hooks_on_gradients_and_frozen_parameters_are_left_alone() -> None:
    model, compute = perceptron()
    model[0].weight.requires_grad_(False)
    fired: list[Tensor] = []
    model[2].weight.register_post_accumulate_grad_hook(fired.append)
    check = check_precision(model, compute, "bf16")
    assert check.chosen == "bf16"
    assert fired == []
    assert model[0].weight.grad is None


def test_named_terms_and_float32_need_no_second_thought() -> None:
    model, compute = perceptron()
    terms = check_precision(model, lambda: LossTerms({"a": compute()}, {"a": 2.0}), "bf16")
    assert terms.chosen == "bf16"
    assert check_precision(model, compute, None) == PrecisionCheck(
        asked="fp32", chosen="fp32", reason="as asked"
    )


def test_a_check_travels_as_json() -> None:
    check = check_precision(*between(lambda h: (h + 4096.0) - 4096.0), "bf16")
    values = json.loads(json.dumps(check.to_dict(), allow_nan=False))
    assert values["chosen"] == "fp32"
    assert values["trials"][0]["control"]["cosine"] == check.trials[0].control.cosine


def test_misuse_is_named() -> None:
    model, compute = perceptron()
    with pytest.raises(ConfigError, match="check_precision: amp='fp8': 'bf16', 'fp16' or None"):
        check_precision(model, compute, "fp8")
    other = nn.Linear(2, 1)
    with pytest.raises(UsageError, match="the loss depends on no parameter of the model"):
        check_precision(model, lambda: other(torch.ones(1, 2)).mean(), "bf16")


@pytest.mark.parametrize("cpu", [(True, False), (False, True), (False, False)])
def test_bf16_is_what_the_processor_has_itself(
    monkeypatch: pytest.MonkeyPatch, cpu: tuple[bool, bool]
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: cpu[0])
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: cpu[1])
    assert has_bf16(torch.device("cpu")) == any(cpu)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: cpu[0])
    assert has_bf16(torch.device("cuda")) == cpu[0]
    assert not has_bf16(torch.device("meta"))


vectors = st.lists(st.floats(-10, 10).filter(lambda v: abs(v) > 0.01), min_size=4, max_size=4)


@given(vectors, vectors)
def test_the_angle_is_that_of_the_whole_gradient(a: list[float], b: list[float]) -> None:
    def passed(values: list[float]) -> Passed:
        tensor = torch.tensor(values)
        return Passed.of(2.0, {"w": tensor[:3], "b": tensor[3:]})

    found = deviation(passed(a), passed(b))
    exact = np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
    assert found.cosine == pytest.approx(exact, abs=1e-4)
    assert found.length == pytest.approx(np.linalg.norm(a) / np.linalg.norm(b), rel=1e-4)
    off = {
        "w": np.linalg.norm(np.subtract(a, b)[:3]) / np.linalg.norm(b[:3]),
        "b": abs(a[3] - b[3]) / abs(b[3]),
    }
    assert found.worst_by == pytest.approx(max(off.values()), rel=1e-3, abs=1e-4)
    assert found.loss == 0.0


def test_a_gradient_of_zero_is_near_zero_only() -> None:
    zero, some = (Passed.of(1.0, {"w": torch.tensor([v, 0.0])}) for v in (0.0, 1.0))
    assert deviation(zero, zero).near()
    assert not deviation(zero, some).near()
    assert not deviation(some, zero).near()


def _waits(h: Tensor) -> Tensor:
    torch.distributed.all_reduce(torch.zeros(1))  # as SyncBatchNorm does, on GPUs alone
    return h * 1e4


def _unlike_batches(rank: int, *, size: float) -> tuple[str, str, int]:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(4, 4), Does(_waits))
    model = nn.Sequential(nn.parallel.DistributedDataParallel(inner))
    x = torch.full((2, 4), size if rank else 0.01)
    check = check_precision(model, lambda: model(x).float().mean(), "fp16")
    return check.chosen, check.reason, len(check.trials)


def test_ranks_that_train_together_choose_alike_whoever_had_the_bad_batch() -> None:
    (first, told, tried), (second, where, tried_too) = world(2).run(_unlike_batches, size=100.0)
    assert first == second != "fp16"
    assert tried == tried_too
    assert told.startswith("fp16 is not finite on another rank")
    assert "Inf came up in 0.module.1 (Does)" in where
    assert [chosen for chosen, *_ in world(2).run(_unlike_batches, size=0.1)] == ["fp16", "fp16"]
