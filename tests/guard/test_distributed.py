"""Ranks that train together come to one verdict, whoever had the bad batch."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from guard.conftest import batch, loss_of, net
from surefoot.guard import Guard
from surefoot.guard.measure import tensor_norms


def _train(rank: int, world: int, folder: str, sharded: bool, amp: str | None) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world
    )
    model: nn.Module = net()
    if sharded:
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    else:
        model = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    guard = Guard(model, optimizer, clip=0.5, amp=amp)  # type: ignore[arg-type]
    lines = []
    for step in range(6):
        images, labels = batch(10 * step + rank)
        if step == 2 and rank == 1:
            images = images * math.nan
        with guard.autocast():
            loss = loss_of(model, images, labels)
        record = guard.step(loss)
        lines.append(
            f"{record.verdict.value} {record.cause.value} {record.rank} {record.grad_norm!r} "
            f"{record.loss_scale}"
        )
    weights = {
        name: p.full_tensor() if isinstance(p, DTensor) else p.detach()
        for name, p in model.named_parameters()
    }
    buffers_finite = all(bool(torch.isfinite(b).all()) for b in model.buffers())
    torch.save({"lines": lines, "weights": weights, "finite": buffers_finite}, f"{folder}/{rank}")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("sharded", "amp"), [(False, None), (False, "fp16"), (True, None)])
def test_one_ranks_nan_batch_is_refused_by_all_and_leaves_them_identical(
    tmp_path: Path, sharded: bool, amp: str | None
):
    torch.multiprocessing.start_processes(  # type: ignore[attr-defined]
        _train, (2, str(tmp_path), sharded, amp), nprocs=2, start_method="spawn"
    )
    first, second = (torch.load(tmp_path / str(r), weights_only=True) for r in (0, 1))
    split = [[line.split() for line in rank["lines"]] for rank in (first, second)]
    assert [line[0] for line in split[0]] == ["applied"] * 2 + ["refused"] + ["applied"] * 3
    assert [[*line[:1], *line[3:]] for line in split[0]] == [
        [*line[:1], *line[3:]] for line in split[1]
    ]
    bad_loss = "nonfinite_loss"
    assert (split[0][2][1] != bad_loss, split[1][2][1]) == (True, bad_loss)
    assert [line[2] for line in split[1]] == ["1"] * 6
    assert first["finite"]
    assert second["finite"]
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name]), name
        assert torch.isfinite(weight).all()


def test_13_norms_of_mixed_sharded_and_replicated_gradients_are_those_of_the_whole(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
        fully_shard(model[0], mesh=init_device_mesh("cpu", (1,)))
        model(torch.ones(3, 4)).square().sum().backward()
        gradients = [p.grad for p in model.parameters()]
        assert any(isinstance(g, DTensor) for g in gradients)
        whole = [g.full_tensor() if isinstance(g, DTensor) else g for g in gradients]
        torch.testing.assert_close(tensor_norms(gradients), tensor_norms(whole))
    finally:
        torch.distributed.destroy_process_group()
