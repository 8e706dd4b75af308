"""A state that is bad on one rank: all go back together, or all stop."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from guard.ranks import world
from guard.test_distributed import Run, alike
from surefoot.errors import TrainingDiverged
from surefoot.guard import Policy
from surefoot.records import Event

POLICY = Policy(snapshot_interval=10, snapshot_survives=3)
ways = pytest.mark.parametrize("way", ["guard", "attach"])
kinds = pytest.mark.parametrize("kind", ["ddp", "fsdp"])
sides = pytest.mark.parametrize("decide", ["host", "device"])


def weight_of(run: Run) -> torch.Tensor:
    """The last layer's, or this rank's part of it."""
    weight = dict(run.model.named_parameters())
    return next(p for name, p in weight.items() if name.endswith("4.weight"))


def local(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def damaged(rank: int, *, what: str, value: float, **settings: Any) -> dict[str, Any]:
    run = Run(rank, policy=POLICY, **settings)
    run.go(range(14))
    if rank == 1:
        weight = weight_of(run)
        local(run.optimizer.state[weight][what] if what else weight).view(-1)[0] = value
    run.go(range(14, 36))
    return run.end()


@pytest.mark.parametrize("size", [2, 4])
@kinds
@ways
@sides
@pytest.mark.parametrize(
    ("what", "value"), [("", math.nan), ("", 1e30), ("exp_avg", math.nan)], ids=str
)
def test_what_is_bad_on_one_rank_is_named_by_all_and_put_back_on_all(
    size, kind, way, decide, what, value
):
    settings = {"kind": kind, "way": way, "decide": decide, "what": what, "value": value}
    told = alike(world(size).run(damaged, **settings))
    back = [r for r in told["records"] if Event.ROLLED_BACK.value in r["events"]]
    assert len(back) == 1
    assert 1 in back[0]["bad_ranks"]
    names = [culprit[0] for culprit in back[0]["culprits"]]
    wanted = f"{what} of " * bool(what) + "module." * (kind == "ddp") + "4.weight (rank 1)"
    assert wanted in names


def until_it_stops(rank: int, *, policy: Policy, **settings: Any) -> tuple[int, str, str]:
    run = Run(rank, policy=policy, **settings)
    try:
        for step in range(20):
            run.go([step], spoil={(step, 0, 1)} if step > 2 else ())
        run.end()
    except TrainingDiverged as stop:
        return step, str(stop), str(stop.record.cause.value)
    return step, "went on", ""


@kinds
@ways
@sides
@pytest.mark.parametrize("amp", [None, "fp16"])
@pytest.mark.parametrize(
    ("policy", "message", "after"),
    [
        (Policy.strict(), "The policy asks to stop at once", 3),
        (Policy(max_consecutive_refusals=5), "5 steps in a row were refused", 7),
    ],
    ids=["strict", "limit"],
)
def test_all_ranks_stop_at_the_same_step_for_the_same_reason(
    kind, way, decide, amp, policy, message, after
):
    settings = {"kind": kind, "way": way, "decide": decide, "amp": amp}
    told = world(2).run(until_it_stops, policy=policy, **settings)
    assert told[0] == told[1]
    step, said, cause = told[0]
    assert step == after + (decide == "device")
    assert said.startswith(message)
    assert cause == "nonfinite_loss"
    assert "on rank 1" in said


def first_alone_asks(rank: int, *, way: str) -> dict[str, Any]:
    """As a loop that saves on the first rank only, at steps that all have to be asked of."""
    run = Run(rank, way=way, decide="device", policy=POLICY)
    for step in range(16):
        run.go([step], spoil={(step, 0, 1)} if step in (10, 11, 12) else ())
        if rank == 0:
            if way == "guard":
                assert run.guard.applied_steps + run.guard.refused_steps == step + 1
                run.guard.state_dict()
            else:
                assert run.attachment.tally.step == step + 1
                run.optimizer.state_dict()
        torch.distributed.barrier()
    run.go([16])
    return run.end()


@ways
def test_one_rank_alone_may_ask_for_counts_and_state(way):
    told = alike(world(2).run(first_alone_asks, way=way))
    assert [r["verdict"] for r in told["records"]].count("refused") == 3
    assert told["records"][10]["bad_ranks"] == [1]
