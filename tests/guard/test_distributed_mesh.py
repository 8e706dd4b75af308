"""Norms of gradients in shards, on every kind of mesh, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable
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
from surefoot.guard import Guard
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
