"""A bit that flips on one replica only is found, named, and taken back on all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import surefoot
from guard.conftest import batch, loss_of, net
from guard.ranks import world
from guard.test_distributed import Run, alike
from surefoot.errors import TrainingDiverged
from surefoot.guard import Policy
from surefoot.guard.replicas import bit_sum
from surefoot.records import Event

POLICY = Policy(snapshot_interval=10, snapshot_survives=3)
SIGN, MANTISSA, LOWEST = 1 << 31, 1 << 20, 1


def flip(tensor: torch.Tensor, bit: int, index: int = 5) -> None:
    word = bit - (1 << 32) if bit >= 1 << 31 else bit
    tensor.detach().view(-1).view(torch.int32)[index] ^= word


def flipped(rank: int, *, bit: int, what: str, where: int, **settings: Any) -> dict[str, Any]:
    run = Run(rank, policy=POLICY, lr=1e-4, **settings)
    run.go(range(14))
    if rank == where:
        weight = run.model.module[4].weight
        flip(run.optimizer.state[weight][what] if what else weight, bit)
    run.go(range(14, 30))
    return run.end()


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("way", ["guard", "attach"])
@pytest.mark.parametrize("decide", ["host", "device"])
@pytest.mark.parametrize("bit", [SIGN, MANTISSA, LOWEST], ids=["sign", "mantissa", "lowest"])
def test_a_flipped_bit_on_one_replica_is_named_and_taken_back_on_all(size, way, decide, bit):
    settings = {"bit": bit, "what": "", "where": 1, "way": way, "decide": decide}
    told = alike(world(size).run(flipped, **settings))
    back = [r for r in told["records"] if Event.ROLLED_BACK.value in r["events"]]
    assert len(back) == 1
    names = [culprit[0] for culprit in back[0]["culprits"]]
    assert len(names) == 1
    if size == 2 and bit == LOWEST:  # two copies, one as likely as the other
        assert back[0]["bad_ranks"] == [0, 1]
        assert names[0].startswith("module.4.weight (ranks differ: ")
        assert " at [0, 5]; rank " in names[0]
        return
    assert back[0]["bad_ranks"] == [1]
    assert names[0].startswith("module.4.weight (rank 1 differs: ")
    assert " at [0, 5], not " in names[0]


@pytest.mark.parametrize("size", [2, 4])
def test_what_the_optimizer_keeps_is_compared_as_well(size):
    settings = {"bit": SIGN, "what": "exp_avg", "where": 0}
    told = alike(world(size).run(flipped, **settings))
    (back,) = (r for r in told["records"] if Event.ROLLED_BACK.value in r["events"])
    assert 0 in back["bad_ranks"]
    assert size == 2 or back["bad_ranks"] == [0]
    names = [culprit[0].partition(" (")[0] for culprit in back["culprits"]]
    assert names == ["module.4.weight", "exp_avg of module.4.weight"]


def unharmed(rank: int, *, leave_out: bool) -> dict[str, Any]:
    """With and without the look: the same bits."""
    run = Run(rank, policy=Policy(snapshot_interval=0) if leave_out else POLICY)
    run.go(range(45))
    return run.end()


def test_looking_changes_nothing():
    ours, plain = (world(2).run(unharmed, leave_out=leave_out) for leave_out in (False, True))
    assert alike(ours)["prints"] == alike(plain)["prints"]
    assert not any(r["culprits"] for r in ours[0]["records"])


def apart(rank: int, *, seed: int) -> dict[str, Any]:
    """Ranks that share a process group, and nothing else: each trains a model of its own."""
    model = net(seed * rank)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    records: list[Any] = []
    attachment = surefoot.attach(optimizer, model, policy=POLICY, on_record=records.append)
    for step in range(35):
        loss_of(model, *batch(1000 * step + rank)).backward()
        optimizer.step()
        optimizer.zero_grad()
    attachment.detach()
    return {"events": [e.value for r in records for e in r.events], "applied": len(records)}


@pytest.mark.parametrize("seed", [0, 1], ids=["from equal weights", "from weights of their own"])
def test_ranks_that_train_apart_are_left_alone(seed):
    for told in world(2).run(apart, seed=seed):
        assert told["applied"] == 35
        assert Event.ROLLED_BACK.value not in told["events"]


def broken_memory(rank: int) -> str:
    """The same bit flips again and again."""
    policy = Policy(snapshot_interval=5, snapshot_survives=2, max_rollbacks=2)
    run = Run(rank, policy=policy, lr=1e-4)
    try:
        for step in range(100):
            run.go([step])
            if rank == 1:
                flip(run.model.module[4].weight, MANTISSA)
    except TrainingDiverged as stop:
        return str(stop)
    return "went on"


def test_memory_that_goes_on_flipping_stops_all_ranks_with_the_rank_in_the_message():
    first, second = world(2).run(broken_memory)
    assert first == second
    assert "went bad 3 times" in first
    assert "module.4.weight (rank 1 differs: " in first


@given(
    st.integers(1, 70),
    st.integers(0, 3),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.uint8, torch.int64]),
    st.data(),
)
def test_one_flipped_bit_always_changes_the_sum(size, offset, dtype, data):
    base = torch.arange(size + offset).to(dtype)
    tensor = base[offset:]
    before = bit_sum(tensor)
    bits = tensor.view(torch.uint8)
    place = data.draw(st.integers(0, bits.numel() - 1))
    bits[place] ^= 1 << data.draw(st.integers(0, 7))
    assert bit_sum(tensor) != before


def test_the_sum_takes_any_layout_and_dtype():
    image = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
    assert bit_sum(image) == bit_sum(image.contiguous())
    assert bit_sum(torch.tensor(True)) == 1
    assert bit_sum(torch.empty(0)) == 0
    assert bit_sum(torch.zeros(3, dtype=torch.complex64)) == 0
    assert bit_sum(torch.tensor(-0.0)) == -(2**31)
