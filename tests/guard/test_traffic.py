"""How much memory a healthy step moves: one read pass over the gradients, and the fused kernel."""

from __future__ import annotations

import pytest
import torch
from benchmarks.traffic import TrafficMeter
from torch import nn

import surefoot
from surefoot.guard import AdaptiveClip, Guard, NormClip, ValueClip

ROOMY, TIGHT = 1e9, 1e-6
COUNT = 3 * 5000


class Stepping:
    """Three tensors of 5,000 weights, gradients that lie there, and a step in one way."""

    def __init__(self, way: str, clip: object, amp: str | None, kind: type = torch.optim.AdamW):
        torch.manual_seed(0)
        self.model = nn.ParameterList(torch.randn(5000) for _ in range(3))
        self.amp, self.way = amp, way
        more = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        self.optimizer = kind(self.model.parameters(), lr=1e-4, fused=True, **more)
        self.loss = torch.ones((), requires_grad=True)
        if way == "attached":
            surefoot.attach(self.optimizer, self.model, clip=clip)
        else:
            self.guard = Guard(self.model, self.optimizer, clip=clip, amp=amp, decide=way)

    def step(self) -> None:
        if self.way == "attached":
            self.loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        else:
            assert self.guard.step(self.loss).applied

    def measure(self) -> tuple[float, list[str]]:
        """Bytes per weight of the third step, and the operations that moved them."""
        for _ in range(3):
            for weight in self.model.parameters():
                weight.grad = torch.randn(5000) * 1e-3
            with TrafficMeter() as meter:
                self.step()
        return meter.total / COUNT, [operation.name for operation in meter.operations]


@pytest.mark.parametrize("way", ["host", "attached"])
@pytest.mark.parametrize(
    ("clip", "moved"), [(None, 32), (ROOMY, 32), (TIGHT, 36), (NormClip(TIGHT), 36)]
)
def test_adamw_moves_32_bytes_a_weight_and_36_where_gradients_are_divided(way, clip, moved):
    bytes_each, operations = Stepping(way, clip, None).measure()
    assert bytes_each == moved
    assert operations.count("_fused_adamw_") == 1


@pytest.mark.parametrize("way", ["host", "device"])
def test_unscaling_and_clipping_share_the_kernel(way):
    assert Stepping(way, TIGHT, "fp16").measure()[0] == 36
    assert Stepping(way, None, "fp16").measure()[0] == 36


def test_on_the_device_the_divisor_is_always_given_and_costs_four_bytes():
    assert Stepping("device", None, None).measure()[0] == 32
    assert Stepping("device", ROOMY, None).measure()[0] == 36


@pytest.mark.parametrize(
    ("kind", "state"), [(torch.optim.Adam, 2), (torch.optim.SGD, 1), (torch.optim.Adagrad, 1)]
)
def test_every_folding_optimizer_pays_one_read_pass(kind, state):
    kernel = 4 * (2 + state) + 4 * (1 + state)  # reads weight, gradient, state; writes but gradient
    assert Stepping("host", ROOMY, None, kind).measure()[0] == kernel + 4
    assert Stepping("host", TIGHT, None, kind).measure()[0] == kernel + 8


def test_rules_beyond_the_global_norm_cost_what_the_documents_say():
    weights_and_gradients, _ = Stepping("host", AdaptiveClip(1e-9), None).measure()
    assert weights_and_gradients == 32 + 4 + 8  # the weights' norms; each gradient read and written
    value, _ = Stepping("host", ValueClip(1e-6), None).measure()
    assert value == 32 + 2 * 8 + 4  # two cuts, and the norm that is left
