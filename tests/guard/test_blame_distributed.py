"""Ranks that train together look into a refused step alike, and none waits for another."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from guard.ranks import world
from surefoot import Guard, LossTerms, Policy

POLICY = Policy(snapshot_interval=0, term_gradients_every=2)


class Late(nn.Module):
    """Bad where its input is large: on the rank that is given such an input."""

    def forward(self, x: Tensor) -> Tensor:
        return (1e4 - x.abs()).sqrt() + x


class Still(nn.Module):
    """A backward pass that is bad where its input is large."""

    def forward(self, x: Tensor) -> Tensor:
        same = torch.where(x.abs() > 1e4, x.detach(), 2 * x.detach() + 1)
        return x + (x - same).square().sum(1, keepdim=True).sqrt()


class Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        total = gradient.clone()
        torch.distributed.all_reduce(total)
        return total


class Shared(nn.Module):
    """Takes part in a collective, forwards and backwards, as SyncBatchNorm does."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 1e-9 * Sum.apply(x.mean(0))


class Net(nn.Module):
    def __init__(self, middle: nn.Module, sync: bool) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.norm = nn.Sequential(nn.LayerNorm(4), Shared() if sync else nn.Identity())
        self.middle, self.head = middle, nn.Linear(4, 2)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.norm(self.first(x)) * x.abs().amax()))


def compute(model: nn.Module, x: Tensor) -> LossTerms:
    y = model(x)
    return LossTerms({"a": y.square().mean(), "b": (y - 1).abs().mean()}, {"b": 0.5})


def scenario(rank: int, *, bad: str, sharded: bool, sync: bool, tell: bool, micro: int) -> Any:
    torch.manual_seed(0)
    middle = {"forward": Late(), "backward": Still()}.get(bad, nn.Identity())
    model: nn.Module = Net(middle, sync)
    if sharded:
        for part in (model.first, model.head):
            fully_shard(part, mesh=init_device_mesh("cpu", (torch.distributed.get_world_size(),)))
        fully_shard(model, mesh=init_device_mesh("cpu", (torch.distributed.get_world_size(),)))
    else:
        model = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    guard = Guard(model, optimizer, policy=POLICY, accumulate=micro)
    records = []
    for step in range(5):
        for i in range(micro):
            x = torch.randn(4, 3, generator=torch.Generator().manual_seed(100 * step + i))
            if step == 1 and rank == 1 and i == micro - 1:
                x = x * 1e6 if bad != "input" else x * math.nan
            with guard.autocast():
                loss = compute(model, x)
            again = partial(compute, model, x) if tell else None
            record = guard.step(
                loss, sample_ids=[f"{rank}/{i}/{j}" for j in range(4)], recompute=again
            )
        records.append(record)
    weights = [
        (p.full_tensor() if isinstance(p, DTensor) else p.detach()).double().sum().item()
        for p in model.parameters()
    ]
    return [r.to_dict() for r in records], [str(r) for r in records], weights


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("tell", [True, False])
@pytest.mark.parametrize(
    ("sharded", "sync"), [(False, False), (False, True), (True, False)], ids=["ddp", "sync", "fsdp"]
)
@pytest.mark.parametrize("bad", ["input", "forward", "backward"])
def test_every_rank_says_where_it_came_up_on_the_bad_one(
    bad: str, sharded: bool, sync: bool, tell: bool, micro: int
):
    ranks = world(2).run(scenario, bad=bad, sharded=sharded, sync=sync, tell=tell, micro=micro)
    assert ranks[0][2] == ranks[1][2]
    assert all(map(math.isfinite, ranks[0][2]))
    for records, _, _ in ranks:
        assert [r["verdict"] for r in records] == ["applied", "refused", *["applied"] * 3]
    faults = [records[1]["fault"] for records, _, _ in ranks]
    assert faults[0] == faults[1]
    fault = faults[0]
    if bad == "input":
        assert fault["origin"] == "input"
    elif bad == "forward" or (tell and not sharded):
        assert (fault["module"], fault["kind"]) == (
            "middle",
            "Late" if bad == "forward" else "Still",
        )
        assert fault["origin"] == ("module" if bad == "forward" else "backward")
    else:
        assert fault["origin"] == "backward"
        assert "kind" not in fault
    sampled = [
        not isinstance(r["terms"][0][-1], str) and len(r["terms"][0]) == 5 for r in ranks[0][0]
    ]
    assert sampled == [not sharded, False, not sharded, False, not sharded]
