"""Norms of gradients in shards, on every kind of mesh, and what they cost."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import surefoot
from guard.conftest import batch, loss_of, net
from guard.ranks import fingerprints, mesh, spread, whole, world
from surefoot.guard import (
    AdaptiveClip,
    GroupClip,
    Guard,
    NormClip,
    PercentileClip,
    ValueClip,
    ZScoreClip,
)
from surefoot.guard.measure import tensor_norms


def grid(model: nn.Module) -> nn.Module:
    """Two linear layers, cut across the columns of a 2 x 2 mesh and then across its rows."""
    axes = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    parallelize_module(model, axes["tensor"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
    return fully_shard(model, mesh=axes["data"])


def hybrid(model: nn.Module) -> nn.Module:
    """Two replicas of two shards each."""
    return fully_shard(model, mesh=init_device_mesh("cpu", (2, 2), mesh_dim_names=("copy", "part")))


def norms(rank: int, make: Callable[[nn.Module], nn.Module]) -> tuple[Any, ...]:
    torch.manual_seed(0)
    model = make(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)))
    row = rank // 2 if make is grid else rank
    model(torch.full((3, 8), 1.0 + row)).square().sum().backward()
    gradients = [p.grad for p in model.parameters()]
    assert all(isinstance(g, DTensor) for g in gradients)
    placements = {type(p).__name__ for g in gradients for p in g.placements}
    wholes = [whole(g) for g in gradients]
    return tensor_norms(gradients).tolist(), tensor_norms(wholes).tolist(), placements


@pytest.mark.parametrize("make", [grid, hybrid], ids=lambda make: make.__name__)
def test_13_norms_are_those_of_the_whole_tensors_on_any_mesh(make):
    told = world(4).run(norms, make=make)
    for ours, theirs, _ in told:
        assert ours == pytest.approx(theirs)
        assert ours == told[0][0]
    if make is grid:
        assert "_StridedShard" in told[0][2]  # which says of itself that it is no shard


class Halves(nn.Module):
    """A replicated matrix, then one in shards: every gradient is whole on its own terms."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        row = mesh()
        first, second = torch.randn(6, 6) / 3, torch.randn(8, 6) / 3
        self.first = nn.Parameter(distribute_tensor(first, row, [Replicate()]))
        self.second = nn.Parameter(distribute_tensor(second, row, [Shard(0)]))
        self.row = row

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = distribute_tensor(x, self.row, [Replicate()])
        return nn.functional.linear(nn.functional.linear(x, self.first), self.second).full_tensor()


def spoil(gradient: DTensor, *, value: float) -> None:
    """Without a word to the other ranks."""
    gradient.to_local()[0, 0] = value


def bad_shard(rank: int, *, value: float, way: str, fused: bool, leave_out: bool) -> Any:
    """At the third step one rank's part of the later matrix has a bad gradient."""
    model = Halves()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused, foreach=False)
    records: list[Any] = []
    if way == "guard":
        guard = Guard(model, optimizer, clip=0.5)
    else:
        attachment = surefoot.attach(optimizer, model, clip=0.5, on_record=records.append)
    for step in range(6):
        if step == 2 and leave_out:
            continue
        loss = (
            model(torch.randn(5, 6, generator=torch.Generator().manual_seed(step))).square().mean()
        )
        if step == 2 and not leave_out and rank == 1:
            handle = model.second.register_hook(partial(spoil, value=value))
        if way == "guard":
            records.append(guard.step(loss))
        else:
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if step == 2 and not leave_out and rank == 1:
            handle.remove()
    if way == "attach":
        attachment.detach()
    said = [(r.verdict.value, r.cause.value, r.grad_norm, r.clip_coefficient) for r in records]
    names = [c.name for r in records for c in r.culprits]
    return str(said), names, fingerprints(model, optimizer)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("way", ["guard", "attach"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "loop"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_value_in_one_shard_behind_a_replicated_one_is_seen_by_all(size, way, fused, value):
    settings = {"value": value, "way": way, "fused": fused}
    told = world(size).run(bad_shard, leave_out=False, **settings)
    clean = world(size).run(bad_shard, leave_out=True, **settings)
    for said, names, prints in told:
        assert said == told[0][0]
        assert said.count("'refused', 'nonfinite_gradient'") == 1
        assert names == ["second"]
        assert prints == clean[0][2]


class Counted:
    """Counts the collectives that Python asks for while it is open."""

    NAMES = (
        "all_gather",
        "all_gather_into_tensor",
        "all_gather_object",
        "all_reduce",
        "barrier",
        "broadcast",
        "reduce_scatter_tensor",
    )

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._inner: dict[str, Any] = {}

    def __enter__(self) -> Counted:
        for name in self.NAMES:
            self._inner[name] = inner = getattr(torch.distributed, name)
            setattr(torch.distributed, name, self._counting(name, inner))
        return self

    def _counting(self, name: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            return inner(*args, **kwargs)

        return call

    def __exit__(self, *_: Any) -> None:
        for name, inner in self._inner.items():
            setattr(torch.distributed, name, inner)


def asked_of_others(rank: int, *, kind: str, way: str, decide: str) -> tuple[Any, Any]:
    """Collectives of one healthy step beside those of backward, and of a refused one."""
    if kind in ("grid", "hybrid"):
        model = {"grid": grid, "hybrid": hybrid}[kind](
            nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
        )
        x, row = torch.ones(3, 8), rank // 2 if kind == "grid" else rank
        loss = lambda step: model(x + step + row).square().mean() + step  # noqa: E731
    else:
        model = spread(net(), kind)
        loss = lambda step: loss_of(model, *batch(10 * step + rank))  # noqa: E731
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    settings = {"clip": 1.0, "decide": decide}
    if way == "guard":
        guard = Guard(model, optimizer, **settings)
        step_of = guard._stepper.close
    else:
        attachment = surefoot.attach(optimizer, model, **settings)
    counts: dict[int, list[str]] = {}
    for step in range(4):
        value = loss(step) * (math.nan if step == 2 and rank == 0 else 1.0)
        if way == "guard":
            counted = Counted()

            def close(*args: Any, counted: Counted = counted) -> Any:
                with counted:
                    return step_of(*args)

            guard._stepper.close = close
            guard.step(value)
        else:
            attachment.observe(value)
            value.backward()
            with Counted() as counted:
                optimizer.step()
            optimizer.zero_grad()
        counts[step] = counted.calls
    return counts[1], counts[2] + counts[3]


@pytest.mark.parametrize("way", ["guard", "attach"])
@pytest.mark.parametrize("decide", ["host", "device"])
@pytest.mark.parametrize(
    ("kind", "size", "axes"), [("ddp", 2, 0), ("fsdp", 2, 1), ("hybrid", 4, 1), ("grid", 4, 2)]
)
def test_a_healthy_step_asks_the_others_nothing_but_each_axis_of_shards_once(
    way, decide, kind, size, axes
):
    for healthy, refused in world(size).run(asked_of_others, kind=kind, way=way, decide=decide):
        assert healthy == ["all_reduce"] * axes
        assert refused.count("all_gather_object") == 1


RULES = {
    "norm": NormClip(0.05),
    "value": ValueClip(0.01),
    "adaptive": AdaptiveClip(0.005),
    "percentile": PercentileClip(50.0, warmup=3),
    "z-score": ZScoreClip(0.5, warmup=3),
    "groups": GroupClip({0: 0.05}),
    "two": [AdaptiveClip(0.01), NormClip(0.05)],
}


def clipped(
    rank: int, *, rule: str, kind: str, way: str, decide: str, fused: bool
) -> tuple[dict[str, torch.Tensor], list[float]]:
    model = spread(net(), kind)
    # fused SGD knows no shards; a large eps keeps Adam's step in proportion to the gradient
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, eps=1e-2, fused=fused, foreach=False)
    settings: dict[str, Any] = {"clip": copy.deepcopy(RULES[rule]), "decide": decide}
    records: list[Any] = []
    if way == "guard":
        guard = Guard(model, optimizer, **settings)
    else:
        attachment = surefoot.attach(optimizer, model, on_record=records.append, **settings)
    for step in range(8):
        loss = loss_of(model, *batch(10 * step + rank)) * (4.0 if step == 6 else 1.0)
        if way == "guard":
            records.append(guard.step(loss))
            continue
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    (guard if way == "guard" else attachment).detach()
    weights = {n.removeprefix("module."): whole(p).detach() for n, p in model.named_parameters()}
    return weights, [r.clip_coefficient for r in records]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("way", "decide", "fused"),
    [("guard", "host", True), ("guard", "device", True), ("attach", "host", False)],
)
def test_every_rule_clips_shards_as_it_clips_replicas(rule, way, decide, fused):
    settings = {"rule": rule, "way": way, "decide": decide, "fused": fused}
    wholes = world(2).run(clipped, kind="ddp", **settings)
    shards = world(2).run(clipped, kind="fsdp", **settings)
    assert min(wholes[0][1]) < 0.9
    for told in (*wholes, *shards):
        assert told[1] == pytest.approx(wholes[0][1], rel=1e-4)
        torch.testing.assert_close(told[0], wholes[0][0], rtol=1e-4, atol=1e-6)


class Mixed(Halves):
    """With a plain matrix besides, whose gradient is the same on every rank."""

    def __init__(self) -> None:
        super().__init__()
        self.third = nn.Parameter(torch.randn(3, 8) / 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(super().forward(x), self.third)


def mixed(rank: int, *, way: str, rule: str) -> tuple[float, str, dict[str, str]]:
    model = Mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, foreach=False)
    records: list[Any] = []
    clip = copy.deepcopy(RULES[rule])
    if way == "guard":
        guard = Guard(model, optimizer, clip=clip)
    else:
        attachment = surefoot.attach(optimizer, model, clip=clip, on_record=records.append)
    for step in range(3):
        x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
        loss = model(x).square().mean()
        if way == "guard":
            records.append(guard.step(loss))
            continue
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    (guard if way == "guard" else attachment).detach()
    coefficients = [r.clip_coefficient for r in records]
    return min(coefficients), str(coefficients), fingerprints(model, optimizer)


@pytest.mark.parametrize("way", ["guard", "attach"])
@pytest.mark.parametrize("rule", ["norm", "value", "two"])
def test_shards_and_plain_tensors_in_one_optimizer_are_clipped_together(way, rule):
    told = world(2).run(mixed, way=way, rule=rule)
    assert told[0] == told[1]
    assert told[0][0] < 0.9
