"""Checkpoints that several processes write together: verified, and loaded by any number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import checkpoint as torch_checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from guard.ranks import mesh, world
from surefoot.checkpoint import CheckpointStore, Rejected
from surefoot.checkpoint.sharded import load, save
from surefoot.errors import CheckpointError, ConfigError


def net(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    if torch.distributed.is_initialized():
        fully_shard(model, mesh=mesh())
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(2, 5)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def parts_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments}


def weights_of(model: nn.Module) -> list[float]:
    wholes = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
    return torch.cat([w.detach().flatten() for w in wholes]).tolist()


def written(rank: int, folder: Path, times: int) -> list[list[float]]:
    """The weights at every save, and one step further."""
    model, optimizer = net(1)
    course = []
    for step in range(1, times + 1):
        stepped(model, optimizer)
        assert save(folder, step, parts_of(model, optimizer), keep_last=2).name.endswith(f"{step}")
        course.append(weights_of(model))
    stepped(model, optimizer)
    return [*course, weights_of(model)]


def read(rank: int, folder: Path) -> tuple[int, list[str], list[float], list[float]]:
    model, optimizer = net(2)
    state, rejected = parts_of(model, optimizer), list[Rejected]()
    found = load(folder, state, on_rejected=rejected.append)
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )
    here = weights_of(model)
    stepped(model, optimizer)
    return found.step, [str(one) for one in rejected], here, weights_of(model)


def test_what_two_wrote_is_read_by_two_and_by_one_and_goes_on_alike(tmp_path: Path) -> None:
    told = world(2).run(written, folder=tmp_path, times=3)
    assert told[0] == told[1]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["00002-step-2", "00003-step-3"]
    for step, rejected, here, after in world(2).run(read, folder=tmp_path):
        assert (step, rejected) == (3, [])
        assert here == told[0][2]
        assert after == told[0][3]
    step, _, here, after = read(0, tmp_path)
    assert (step, here) == (3, told[0][2])
    assert after == pytest.approx(told[0][3], abs=1e-6)


def test_a_flipped_bit_in_one_shard_is_found_and_the_older_one_is_taken(tmp_path: Path) -> None:
    told = world(2).run(written, folder=tmp_path, times=2)
    newest = tmp_path / "00002-step-2"
    shard = sorted(newest.glob("__1_*.distcp"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    for step, rejected, here, _ in world(2).run(read, folder=tmp_path):
        assert step == 1
        assert rejected == [f"{newest}: {shard.name} is damaged (its checksum differs)"]
        assert here == told[0][0]
    listed = {one.path.name: one.problem for one in CheckpointStore(tmp_path).listing(verify=True)}
    assert listed["00001-step-1"] == ""
    assert "damaged" in listed["00002-step-2"]
    (tmp_path / "00001-step-1" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"no good checkpoint\. 00002.*; 00001.*missing"):
        load(tmp_path, {})


def fails(rank: int, folder: Path) -> str:
    """The second process's disk refuses."""
    inner = torch_checkpoint.FileSystemWriter.write_data

    def refuse(*args: Any, **kwargs: Any) -> Any:
        if rank == 1:
            raise OSError(28, "No space left on device")
        return inner(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_checkpoint.FileSystemWriter, "write_data", refuse)
        try:
            save(folder, 9, parts_of(*net(1)))
        except CheckpointError as error:
            return str(error)
    return "went on"


def test_a_disk_that_refuses_one_fails_the_save_of_all_and_leaves_nothing(tmp_path: Path) -> None:
    world(2).run(written, folder=tmp_path, times=1)
    for said in world(2).run(fails, folder=tmp_path):
        assert f"checkpoint of step 9 could not be saved in {tmp_path}: process 1:" in said
        assert "No space left on device" in said
    assert [path.name for path in tmp_path.iterdir()] == ["00001-step-1"]
    assert world(2).run(read, folder=tmp_path)[1][0] == 1


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keep_last=0: at least 1"):
        save(tmp_path, 1, {}, keep_last=0)
    save(tmp_path, 1, {"w": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"loading .*00001-step-1: .*v"):
        load(tmp_path, {"v": torch.ones(2)})
