"""Wrappers, compilers and scalers of others, under several ranks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

import surefoot
from guard.conftest import batch, loss_of, net
from guard.ranks import fingerprints, spread, world
from guard.test_distributed import alike, one_bad_batch
from surefoot.errors import ConfigError, UsageError
from surefoot.guard import Guard

sizes = pytest.mark.parametrize("size", [2, 4])


@sizes
@pytest.mark.parametrize("way", ["guard", "attach"])
@pytest.mark.parametrize(
    "wrapping",
    [
        {"gradient_as_bucket_view": True},
        {"find_unused_parameters": True},
        {"broadcast_buffers": False},
        {"bucket_cap_mb": 1e-4},
    ],
    ids=lambda wrapping: next(iter(wrapping)),
)
def test_however_ddp_is_set_up_a_refused_step_leaves_no_trace(size, way, wrapping):
    settings = {"way": way, "wrapping": wrapping, "accumulate": 2, "clip": 0.5}
    told = alike(world(size).run(one_bad_batch, **settings))
    clean = alike(world(size).run(one_bad_batch, leave_out=True, **settings))
    assert [r["verdict"] for r in told["records"]].count("refused") == 1
    assert told["prints"] == clean["prints"]


def wrapped(how: str) -> tuple[nn.Module, nn.Module]:
    """What the loop calls, and what the guard is given."""
    inner = net()
    if how == "inner alone":
        return nn.parallel.DistributedDataParallel(inner), inner
    if how == "compiled inside":
        ddp = nn.parallel.DistributedDataParallel(torch.compile(inner, backend="eager"))
        return ddp, ddp
    if how == "compiled sharded":
        model = torch.compile(spread(inner, "fsdp"), backend="eager")
        return model, model
    ddp = nn.parallel.DistributedDataParallel(inner)
    if how == "in a container":
        return ddp, nn.ModuleDict({"detector": ddp})
    model = torch.compile(ddp, backend="aot_eager" if how == "compiled ahead" else "eager")
    return model, model


def trained(rank: int, *, how: str, way: str, leave_out: bool) -> dict[str, Any]:
    model, given = wrapped(how)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    records: list[Any] = []
    if way == "guard":
        guard = Guard(given, optimizer, clip=0.5)
    else:
        attachment = surefoot.attach(optimizer, given, clip=0.5, on_record=records.append)
    for step in range(6):
        images, labels = batch(1000 * step + rank)
        if step == 2 and leave_out:
            continue
        if step == 2 and rank == 1:
            images = images * math.nan
        loss = loss_of(model, images, labels)
        if way == "guard":
            records.append(guard.step(loss))
            continue
        attachment.observe(loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    (guard if way == "guard" else attachment).detach()
    return {
        "records": [r.to_dict() for r in records],
        "said": [str(r) for r in records],
        "prints": fingerprints(model, optimizer),
        "finite": all(bool(torch.isfinite(b).all()) for b in model.buffers()),
        "scale": 1.0,
    }


@pytest.mark.parametrize(
    ("how", "way"),
    [
        ("inner alone", "attach"),
        ("in a container", "guard"),
        ("in a container", "attach"),
        ("compiled", "guard"),
        ("compiled", "attach"),
        ("compiled inside", "guard"),
        ("compiled ahead", "guard"),
        ("compiled sharded", "guard"),
        ("compiled sharded", "attach"),
    ],
)
def test_whatever_the_model_is_wrapped_in_one_ranks_nan_batch_leaves_no_trace(how, way):
    told = alike(world(2).run(trained, how=how, way=way, leave_out=False))
    clean = alike(world(2).run(trained, how=how, way=way, leave_out=True))
    (refused,) = (r for r in told["records"] if r["verdict"] == "refused")
    assert refused["bad_ranks"] == [1]
    assert told["prints"] == clean["prints"]


def wrong_module(rank: int) -> str:
    inner = net()
    ddp = nn.parallel.DistributedDataParallel(inner)
    guard = Guard(inner, torch.optim.SGD(ddp.parameters(), lr=0.1))
    try:
        loss_of(ddp, *batch(rank))
    except UsageError as problem:
        guard.detach()
        loss_of(ddp, *batch(rank)).backward()
        return str(problem)
    return "nothing was said"


def test_a_guard_that_was_given_the_module_inside_ddp_says_so_on_every_rank():
    for said in world(2).run(wrong_module):
        assert "Guard(DistributedDataParallel(model), optimizer, ...)" in said


def old_shards(rank: int) -> str:
    model = FullyShardedDataParallel(nn.Linear(4, 4), device_id=torch.device("cpu"))
    try:
        Guard(model, torch.optim.SGD(model.parameters(), lr=0.1))
    except ConfigError as problem:
        return str(problem)
    return "nothing was said"


def test_shards_that_do_not_say_what_they_are_part_of_are_refused_by_name():
    for said in world(2).run(old_shards):
        assert "Use fully_shard(model)" in said


def scaled(
    rank: int, *, kind: str, scaler: str, told: bool, fused: bool, clip: bool
) -> dict[str, Any]:
    """A fp16 loop with a scaler; at the third step one rank's gradients overflow."""
    model = spread(net(), kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused, foreach=False)
    kinds = {"GradScaler": torch.amp.GradScaler, "ShardedGradScaler": ShardedGradScaler}
    theirs = kinds[scaler]("cpu", init_scale=2.0**12)
    records: list[Any] = []
    attachment = surefoot.attach(
        optimizer, model, scaler=theirs if told else None, on_record=records.append
    )
    for step in range(6):
        with torch.autocast("cpu", torch.float16):
            loss = loss_of(model, *batch(1000 * step + rank))
        theirs.scale(loss).backward()
        if step == 2 and rank == 1:
            last = list(model.parameters())[-2].grad
            (last.to_local() if kind == "fsdp" else last).view(-1)[0] = math.inf
        if step == 2 and kind == "ddp":  # as the exchange of gradients would have done
            list(model.parameters())[-2].grad.view(-1)[0] = math.inf
        if clip:
            theirs.unscale_(optimizer)
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
    attachment.detach()
    return {
        "records": [r.to_dict() for r in records],
        "said": [str(r) for r in records],
        "prints": fingerprints(model, optimizer),
        "finite": all(bool(torch.isfinite(b).all()) for b in model.buffers()),
        "scale": theirs.get_scale(),
    }


@pytest.mark.parametrize("scaler", ["GradScaler", "ShardedGradScaler"])
@pytest.mark.parametrize(("kind", "told"), [("ddp", True), ("ddp", False), ("fsdp", True)])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "loop"])
@pytest.mark.parametrize("clip", [True, False], ids=["unscaled", "scaled"])
def test_a_scaler_of_others_backs_off_on_all_ranks_alike(scaler, kind, told, fused, clip):
    settings = {"kind": kind, "scaler": scaler, "told": told, "fused": fused, "clip": clip}
    report = alike(world(2).run(scaled, **settings))
    assert report["scale"] == 2.0**11
    verdicts = [r["verdict"] for r in report["records"]]
    if told or fused:
        assert verdicts == ["applied"] * 2 + ["refused"] + ["applied"] * 3
    else:  # the scaler skips without a word
        assert verdicts == ["applied"] * 5
