"""Two processes that keep a part of the weights each train as two that keep all of them."""

from __future__ import annotations

import io
import math
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.kill import difference
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from guard.ranks import mesh, world
from recipes.camouflage_runs import tiny
from surefoot.checkpoint import CheckpointStore, Interrupted
from surefoot.errors import ConfigError
from surefoot.journal import JournalReader
from surefoot.recipes import shards
from surefoot.recipes.camouflage import CamouflageConfig
from surefoot.recipes.camouflage.build import CamouflageLearner
from surefoot.recipes.camouflage.train import train_on_folders
from surefoot.recipes.refdet import TrainConfig
from surefoot.recipes.refdet.train import train_on_folders as train_refdet
from surefoot.recipes.shards import blocks, divide
from surefoot.records import Cause, Verdict

NEAR = 2e-4
"""Largest difference of a weight; the rates are up to 1e-3, and Adam makes a whole step of a
gradient that is nothing but rounding."""


def two_epochs(folder: Path, *, fsdp: bool, **run: Any) -> CamouflageConfig:
    """3 steps of stage 1, 3 of stage 2."""
    config = tiny(folder, **{"epochs": 2, "stage1_epochs": 1, **run})
    return replace(config, hardware=replace(config.hardware, fsdp=fsdp))


def trained(
    rank: int, config: CamouflageConfig, *, stop_at: int = 0, bad_at: int = 0, short_at: int = 0
) -> dict[str, Any]:
    """One process; at a micro-batch, the second one is asked to stop, or has a bad loss, or no
    memory.
    """
    said, terms, calls, parts = io.StringIO(), CamouflageLearner.terms, 0, []

    def counted(self: CamouflageLearner, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop_at and rank == 1:
            signal.raise_signal(signal.SIGTERM)
        if calls == short_at and rank == 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        found = terms(self, batch)
        if calls == 1:
            parts.extend(_held(p) for p in self.model.parameters())
        if calls == bad_at and rank == 1:
            found = replace(found, values={n: v * math.nan for n, v in found.values.items()})
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CamouflageLearner, "terms", counted)
        patch.setattr(shards, "LEAST", 1000)
        patch.setattr("surefoot.recipes.camouflage.sources._VALIDATION", 3)
        try:
            outcome = train_on_folders(config, stream=said)
        except Interrupted:
            return {"said": said.getvalue(), "end": "interrupted"}
    weights = torch.cat([p.detach().flatten() for p in outcome.masks.model.parameters()])
    end = str((weights.double().sum().item(), outcome.measured))
    assert outcome.measured is not None
    fields = outcome.measured.fields
    return {"said": said.getvalue(), "end": end, "fields": fields, "parts": parts}


def _held(parameter: Tensor) -> tuple[int, int]:
    """Elements here, and in all: within the forward pass of the root its own ones are whole."""
    here = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    return here.numel(), parameter.numel()


def alone(config: CamouflageConfig) -> str:
    return trained(0, config)["said"]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, tuple[Path, list[dict[str, Any]]]]:
    """The same run without and with shards."""
    root = tmp_path_factory.mktemp("both")
    return {
        fsdp: (
            root / str(fsdp),
            world(2).run(trained, config=two_epochs(root / str(fsdp), fsdp=fsdp)),
        )
        for fsdp in (False, True)
    }


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Each stopped in the middle of stage 2."""
    root = tmp_path_factory.mktemp("stopped")
    for fsdp in (False, True):
        config = two_epochs(root / str(fsdp), fsdp=fsdp)
        ends = world(2).run(trained, config=config, stop_at=8)
        assert [one["end"] for one in ends] == ["interrupted", "interrupted"]
    return {fsdp: root / str(fsdp) for fsdp in (False, True)}


def newest(folder: Path) -> Any:
    found = CheckpointStore(folder / "checkpoints").newest()
    assert found is not None
    return found


def apart(a: Path, b: Path) -> float:
    """The largest difference of a weight, of the last ones and of the average."""
    worst = 0.0
    for name in ("model", "ema"):
        ours, theirs = newest(a).load_weights(name), newest(b).load_weights(name)
        assert ours.keys() == theirs.keys()
        found = [(ours[n].double() - theirs[n].double()).abs().max().item() for n in ours]
        worst = max(worst, *found)
    return worst


def assert_same_scores(a: Any, b: Any) -> None:
    for name, scores in a.items():
        for kind, value in scores.items():
            if value is not None:
                assert value == pytest.approx(b[name][kind], abs=1e-5, rel=0), (name, kind)


# -- as without ------------------------------------------------------------------------------------


def test_weights_and_scores_are_those_of_whole_replicas(both: Any) -> None:
    (plain, (one, _)), (divided, ends) = both[False], both[True]
    assert apart(plain, divided) < NEAR
    assert ends[0]["end"] == ends[1]["end"]
    assert_same_scores(one["fields"], ends[0]["fields"])
    assert "2 processes, each with a part of the weights" in ends[0]["said"]
    assert ends[1]["said"] == ""
    held, all_of_them = (sum(kind) for kind in zip(*ends[0]["parts"], strict=True))
    assert held < 0.6 * all_of_them


def test_a_checkpoint_is_whole_and_has_the_form_of_every_other(both: Any) -> None:
    ours, theirs = (newest(both[fsdp][0]).load_state()["learner"] for fsdp in (True, False))
    assert ours.keys() == theirs.keys()
    ours, theirs = ours["optimizer"], theirs["optimizer"]
    assert ours["state"].keys() == theirs["state"].keys()
    assert [g["params"] for g in ours["param_groups"]] == [
        g["params"] for g in theirs["param_groups"]
    ]
    for number, kept in ours["state"].items():
        for key, value in kept.items():
            assert type(value) is Tensor
            assert value.shape == theirs["state"][number][key].shape
            assert torch.equal(kept["step"], theirs["state"][number]["step"])


def test_a_bad_batch_of_one_is_refused_by_all(tmp_path: Path) -> None:
    ends = world(2).run(trained, config=two_epochs(tmp_path / "a", fsdp=True), bad_at=4)
    assert ends[0]["end"] == ends[1]["end"]
    records = JournalReader(tmp_path / "a" / "journal.jsonl").steps()
    taken = [r for r in records if r.verdict is not Verdict.ACCUMULATED]
    assert [r.refused for r in taken] == [False, True, False, False, False, False]
    assert taken[1].cause is Cause.NONFINITE_LOSS
    assert taken[1].bad_ranks == (1,)


def test_memory_that_runs_out_on_one_of_two_replicas_costs_the_run_nothing(tmp_path: Path) -> None:
    ends = world(2).run(trained, config=two_epochs(tmp_path / "a", fsdp=False), short_at=4)
    assert ends[0]["end"] == ends[1]["end"]
    records = JournalReader(tmp_path / "a" / "journal.jsonl").steps()
    taken = [r for r in records if r.verdict is not Verdict.ACCUMULATED]
    assert [r.applied for r in taken] == [True] * 6


# -- going on --------------------------------------------------------------------------------------


def gone_on(folder: Path, source: Path, *, fsdp: bool) -> list[dict[str, Any]]:
    shutil.copytree(source, folder)
    config = two_epochs(folder, fsdp=fsdp, resume=folder)
    return world(2).run(trained, config=config)


def test_a_run_that_was_stopped_ends_bit_equal(stopped: Any, both: Any, tmp_path: Path) -> None:
    ends = gone_on(tmp_path / "a", stopped[True], fsdp=True)
    assert ends[0]["end"] == ends[1]["end"] == both[True][1][0]["end"]
    assert difference(tmp_path / "a", both[True][0]) == ""
    assert "no longer exact" not in ends[0]["said"]


@pytest.mark.parametrize("fsdp", [True, False], ids=["into shards", "out of shards"])
def test_a_checkpoint_goes_on_in_the_other_form(
    fsdp: bool, stopped: Any, both: Any, tmp_path: Path
) -> None:
    ends = gone_on(tmp_path / "a", stopped[not fsdp], fsdp=fsdp)
    assert f"changed: --fsdp: {not fsdp} -> {fsdp}" in ends[0]["said"]
    assert "no longer exact" not in ends[0]["said"]
    assert apart(tmp_path / "a", both[fsdp][0]) < NEAR
    assert_same_scores(ends[0]["fields"], both[fsdp][1][0]["fields"])


def test_one_process_goes_on_with_what_two_have_divided(stopped: Any, tmp_path: Path) -> None:
    shutil.copytree(stopped[True], tmp_path / "a")
    said = alone(two_epochs(tmp_path / "a", fsdp=False, resume=tmp_path / "a"))
    assert "Going on from" in said
    assert "no longer exact: batches of 1 x 2 samples" in said
    assert "no longer exact: random numbers of 1 processes, where 2 were saved" in said
    assert newest(tmp_path / "a").load_state()["epoch"] == 2


def test_one_process_has_nobody_to_divide_with(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"--fsdp: this is one process, .*torchrun.* leave it out"
    ):
        alone(two_epochs(tmp_path / "a", fsdp=True))
    assert not (tmp_path / "a").exists()


# -- RefDet ----------------------------------------------------------------------------------------


def refdet(rank: int, config: TrainConfig) -> dict[str, Any]:
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "LEAST", 1000)
        outcome = train_refdet(config, stream=said)
    model = outcome.detector.model
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not any(tensor.is_meta for tensor in weights.values())
    assert outcome.evaluation is not None
    return {"weights": weights, "scores": outcome.evaluation.to_dict(), "said": said.getvalue()}


def numbers(value: Any, place: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from numbers(child, f"{place}/{key}")
    elif isinstance(value, int | float):
        yield place, value


def test_refdet_in_shards_is_refdet(tmp_path: Path, tiny_config: Any) -> None:
    told = {}
    for fsdp in (False, True):
        config = tiny_config(tmp_path / str(fsdp), max_steps=2)
        config = replace(config, hardware=replace(config.hardware, fsdp=fsdp))
        told[fsdp] = world(2).run(refdet, config=config)
    ours, theirs = told[True], told[False]
    for name, tensor in ours[0]["weights"].items():
        assert torch.equal(tensor, ours[1]["weights"][name]), name
        away = (tensor.double() - theirs[0]["weights"][name].double()).abs().max().item()
        assert away < NEAR, name
    assert str(ours[0]["scores"]) == str(ours[1]["scores"])
    found = [dict(numbers(told[fsdp][0]["scores"])) for fsdp in (True, False)]
    assert len(found[0]) > 5
    assert found[0] == pytest.approx(found[1], abs=1e-5, nan_ok=True)


# -- blocks ----------------------------------------------------------------------------------------


class Looked(nn.Module):
    """Its encoder is never called as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.blocks = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.encoder.small = nn.ModuleList([nn.Linear(2, 2)])
        self.head = nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.encoder.blocks:
            x = block(x)
        return self.head(x)


def test_blocks_are_what_is_called_as_a_whole_and_is_large() -> None:
    model = Looked()
    assert blocks(model, 50) == list(model.encoder.blocks)
    assert blocks(model, 100) == []
    nested = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    assert blocks(nested, 50) == [*nested[0]]
    assert blocks(nested, 100) == [nested[0]]


class Forked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)

    def forward(self, x: Tensor, *, both: bool) -> Tensor:
        return (self.first(x) + self.second(x) if both else self.first(x)).sum()


def unreached(rank: int) -> list[float]:
    """The gradient of a parameter that only one process's batch reaches."""
    torch.manual_seed(0)
    model = Forked()
    divide(model, mesh(), least=100)
    model(torch.ones(1, 2), both=rank == 0).backward()
    gradient = model.second.weight.grad
    assert isinstance(gradient, DTensor)
    return gradient.full_tensor().flatten().tolist()


def test_what_the_batch_of_one_does_not_reach_holds_nobody_up() -> None:
    assert world(2).run(unreached) == [[0.5] * 4] * 2
