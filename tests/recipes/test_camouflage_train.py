"""``surefoot train camouflage`` end to end, at a size of seconds."""

from __future__ import annotations

import io
import math
import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recipes.camouflage_runs import cod10k, quiet, tiny
from surefoot import cli
from surefoot.checkpoint import Checkpoint, CheckpointStore
from surefoot.errors import CheckpointError, ConfigError, DataError
from surefoot.journal import Entry, JournalReader
from surefoot.journal.foreign import read_log
from surefoot.recipes.camouflage import CamouflageConfig
from surefoot.recipes.camouflage.build import CamouflageLearner, term_weights
from surefoot.recipes.camouflage.options import DataOptions, LossOptions
from surefoot.recipes.camouflage.schedule import Plan
from surefoot.recipes.camouflage.sources import open_sources
from surefoot.recipes.camouflage.train import CamouflageRun, train_on_folders
from surefoot.records import Cause, StepRecord, Verdict
from surefoot.testing import FaultScript, bad_gradient


def entries(folder: Path, kind: str) -> list[Entry]:
    return [entry for entry in JournalReader(folder / "journal.jsonl") if entry.kind == kind]


def newest(folder: Path) -> dict[str, Any]:
    """Weights and state of the newest checkpoint."""
    found = CheckpointStore(folder / "checkpoints").newest()
    assert found is not None
    return {
        "weights": {name: found.load_weights(name) for name in found.weights},
        "state": found.load_state(),
    }


def differing(ours: Any, theirs: Any, where: str = "") -> list[str]:
    """Places that are not equal to the bit."""
    if isinstance(ours, dict):
        keys = ours.keys() | theirs.keys()
        return [
            d for k in sorted(keys, key=str)
            for d in differing(ours.get(k), theirs.get(k), f"{where}.{k}")
        ]  # fmt: skip
    if isinstance(ours, list | tuple):
        pairs = enumerate(zip(ours, theirs, strict=True))
        return [d for i, (a, b) in pairs for d in differing(a, b, f"{where}.{i}")]
    if isinstance(ours, Tensor):
        return [] if torch.equal(ours.nan_to_num(), theirs.nan_to_num()) else [where]
    if isinstance(ours, float) and math.isnan(ours):
        return [] if math.isnan(theirs) else [where]
    return [] if ours == theirs else [where]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quiet(tiny(tmp_path_factory.mktemp("run") / "a"))


def test_a_run_saves_raw_weights_and_their_average_and_validates_both(finished: Path) -> None:
    found = CheckpointStore(finished / "checkpoints").best()
    assert found is not None
    assert set(found.weights) == {"model", "ema"}
    assert found.measured_on in ("model", "ema")
    measured = entries(finished, "evaluation")
    assert len(measured) == 3
    assert all({"model", "ema"} <= entry.values.keys() for entry in measured)
    figures = [e.values[e.values["weights"]]["s_measure"] for e in measured]
    assert found.metric == pytest.approx(max(figures))


def test_the_stages_freeze_and_free_the_backbone(finished: Path) -> None:
    assert [e.values["stage"] for e in entries(finished, "stage")] == [1, 2]
    kept = [Checkpoint.open(path) for path in sorted((finished / "checkpoints").glob("*-step-*"))]
    assert [one.step for one in kept] == [5, 10, 15]
    first, last = kept[1].load_weights("model"), kept[2].load_weights("model")
    backbone = [name for name in first if name.startswith("backbone.")]
    fresh = CamouflageRun(
        tiny(finished), open_sources(tiny(finished)), io.StringIO(), _never()
    ).learner.model.state_dict()
    assert all(torch.equal(first[name], fresh[name]) for name in backbone)
    moved = [name for name in backbone if not torch.equal(first[name], last[name])]
    assert any("running" in name for name in moved)
    assert any(name.endswith("weight") for name in moved)


def _never() -> Any:
    from surefoot.checkpoint.signals import Interruption

    return Interruption()


@pytest.mark.parametrize("step", [3, 12])
def test_a_run_cut_short_in_either_stage_ends_where_it_would_have(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    def cut(run: CamouflageRun, record: StepRecord) -> None:
        if record.step == step:
            raise KeyboardInterrupt

    config = tiny(tmp_path / "b", save_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(CamouflageRun, "stepped", cut)
        with pytest.raises(KeyboardInterrupt):
            quiet(config)
    saved = CheckpointStore(tmp_path / "b" / "checkpoints").newest()
    assert saved is not None
    assert saved.step == step  # the cut comes before the save of its own step
    quiet(replace(config, run=replace(config.run, resume=tmp_path / "b")))
    assert differing(newest(finished), newest(tmp_path / "b")) == []
    steps = [r.step for r in JournalReader(tmp_path / "b" / "journal.jsonl").steps()]
    assert steps[-1] == 14


def test_a_run_on_real_pairs_killed_in_both_stages_ends_where_it_would_have(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    camo = shared / "data" / "segment" / "CAMO"

    def settings(folder: Path, **run: Any) -> CamouflageConfig:
        config = tiny(folder, epochs=2, stage1_epochs=1, val_interval=99, **run)
        data = DataOptions(
            images=camo / "Imgs", masks=camo / "GT", img_size=32, batch_size=8, num_workers=0,
            val_share=0.05,
        )  # fmt: skip
        return replace(config, data=data)

    whole = train_on_folders(settings(tmp_path / "whole"), stream=io.StringIO()).folder
    last = max(r.step for r in JournalReader(whole / "journal.jsonl").steps())
    resume = None
    for at in (last // 4, 3 * last // 4, None):

        def cut(run: CamouflageRun, record: StepRecord, at: int | None = at) -> None:
            if record.step == at:
                raise KeyboardInterrupt

        config = settings(tmp_path / "cut", save_steps=1, resume=resume)
        with monkeypatch.context() as patch:
            patch.setattr(CamouflageRun, "stepped", cut)
            if at is None:
                train_on_folders(config, stream=io.StringIO())
            else:
                with pytest.raises(KeyboardInterrupt):
                    train_on_folders(config, stream=io.StringIO())
        resume = tmp_path / "cut"
    assert differing(newest(whole), newest(tmp_path / "cut")) == []


def test_nan_images_cost_their_steps_and_the_record_names_them(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surefoot.recipes.camouflage.feed import CamouflageFeed

    batches = CamouflageFeed.batches

    def spoilt(self: CamouflageFeed, count: int) -> Any:
        for number, batch in enumerate(batches(self, count)):
            if self.order.epoch == 2 and number == 4:
                batch["image"] = batch["image"] * math.nan
            yield batch

    monkeypatch.setattr(CamouflageFeed, "batches", spoilt)
    folder = quiet(tiny(tmp_path / "c"))
    records = list(JournalReader(folder / "journal.jsonl").steps())
    refused = [record for record in records if record.refused]
    assert [(r.step, r.cause) for r in refused] == [(12, Cause.NONFINITE_LOSS)]
    assert refused[0].samples[0].startswith("procedural-train")
    assert refused[0].fault is not None
    assert "input" in str(refused[0].fault)
    scores = [
        entries(one, "evaluation")[-1].values["ema"]["s_measure"] for one in (folder, finished)
    ]
    assert abs(scores[0] - scores[1]) < 0.01
    weights = newest(folder)["weights"]["model"]
    assert all(bool(torch.isfinite(w).all()) for w in weights.values() if w.is_floating_point())


@pytest.mark.parametrize(
    ("precision", "cause"),
    [("fp16", Cause.OVERFLOW), ("fp32", Cause.NONFINITE_GRADIENT)],
    ids=["fp16", "fp32"],
)
def test_a_gradient_of_infinite_norm_late_in_the_run_costs_its_step_and_no_more(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, cause: Cause
) -> None:
    """The crash of the report, at epoch 44: "norm inf" of a finite loss, and the run was dead."""
    script, real = FaultScript.parse("ggggg ggggg ggngg"), CamouflageLearner.terms
    name, open_until_the_next = "finish.correct.weight", ExitStack()

    def terms(self: CamouflageLearner, batch: Any) -> Any:
        open_until_the_next.close()
        if script.at(self.guard.applied_steps + self.guard.refused_steps):
            fault = bad_gradient(self.model.get_parameter(name), math.inf)
            open_until_the_next.enter_context(fault)
        return real(self, batch)

    monkeypatch.setattr(CamouflageLearner, "terms", terms)
    config = tiny(tmp_path / "c")
    hardware = replace(config.hardware, precision=precision, check_precision=False)
    folder = quiet(replace(config, hardware=hardware))
    records = list(JournalReader(folder / "journal.jsonl").steps())
    (refused,) = (record for record in records if record.refused)
    assert (refused.step, refused.cause) == (12, cause)
    assert math.isfinite(refused.loss)
    assert refused.grad_norm == math.inf
    assert [culprit.name for culprit in refused.culprits] == [f"model.{name}"]
    taken = [record for record in records if record.verdict is Verdict.APPLIED]
    assert [record.step for record in taken] == [*range(12), 13, 14]
    assert taken[-1].loss_scale == (512.0 if precision == "fp16" else 1.0)
    for weights in ("ema", "model"):
        scores = [
            entries(one, "evaluation")[-1].values[weights]["s_measure"]
            for one in (folder, finished)
        ]
        assert abs(scores[0] - scores[1]) < 0.01
    (told,) = read_log(folder / "journal.jsonl")
    assert any(f"model.{name}" in message.text for message in told.messages)


@pytest.mark.parametrize("scheduler", ["onecycle", "cosine", "none"])
@pytest.mark.parametrize("warmup", [0.0, 1.0])
def test_the_backbone_learns_at_a_tenth_under_every_schedule(
    tmp_path: Path, scheduler: str, warmup: float
) -> None:
    config = tiny(tmp_path)
    options = replace(config.optimizer, scheduler=scheduler, warmup_epochs=warmup)
    config = replace(config, optimizer=options)
    run = CamouflageRun(config, open_sources(config), io.StringIO(), _never())
    optimizer, schedule = run.learner.optimizer, run.learner.schedule
    peaks: list[float] = []
    for step in range(run.plan.total_steps):
        rates = {g["name"]: g["lr"] for g in optimizer.param_groups}
        assert rates["backbone"] == pytest.approx(0.1 * rates["decoder"])
        assert rates["backbone.1d"] == pytest.approx(0.1 * rates["decoder.1d"])
        assert 0 < rates["decoder"] <= 1e-3 * (1 if step < run.plan.first_steps else 0.5) + 1e-12
        peaks.append(rates["decoder"])
        optimizer.step()
        schedule.step()
    assert max(peaks[10:]) == pytest.approx(0.5e-3, rel=0.15)


def test_one_cycle_is_torchs_own() -> None:
    plan = Plan(steps_per_epoch=10, total_steps=101, first_steps=0, second_peak=1.0)
    weight = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([weight], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(theirs, 1.0, total_steps=101, pct_start=0.3)
    ours = [plan.factor(step) for step in range(101)]
    rates = []
    for _ in range(101):
        rates.append(theirs.param_groups[0]["lr"])
        theirs.step()
        if len(rates) < 101:
            schedule.step()
    np.testing.assert_allclose(ours, rates, rtol=1e-6)


def test_weights_of_terms_follow_the_settings_and_indecision_grows() -> None:
    options = LossOptions(edge_weight=0.25, dice_weight=2.0)
    start, end = (term_weights(options, t, experts=False) for t in (0.0, 1.0))
    assert (start["uncertainty"], end["uncertainty"]) == (0.0, 1.0)
    assert (end["edge"], end["dice"]) == (0.25, 2.0)
    assert "focal" not in end
    assert "balance" not in end


# -- the command -----------------------------------------------------------------------------------


def test_the_reports_own_command_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "train", "camouflage", "--dataset_path", str(cod10k(tmp_path / "COD10K")),
        "--batch-size", "2", "--accumulation_steps", "2", "--lr", "0.00025", "--epochs", "2",
        "--stage1-epochs", "1", "--grad-clip", "0.3", "--backbone", "tiny", "--channels", "8",
        "--img-size", "64", "--num-workers", "0", "--checkpoint-dir", str(tmp_path / "run"),
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert re.search(r"Epoch 2/2: 100% 3/3 \[\d\d:\d\d<00:00, loss=[\d.]+, grad=[\d.]+\]", said)
    assert "Stage 1: the backbone is frozen" in said
    assert re.search(r"validation, ema: S: 0\.\d+ .* IoU: ", said)
    assert re.search(r"gradient norm \(true, before clipping\): mean \S+, max ", said)
    resumed = [*arguments[:2], "--resume", str(tmp_path / "run"), "--epochs", "3"]
    assert cli.main(resumed) == 0
    assert "--epochs: 2 -> 3" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "nothing to learn from. Give --dataset-path"),
        (["--images", "a"], "--images and --masks go together"),
        (["--epochs", "0"], "--epochs 0: has to be at least 1"),
        (["--grad-clip", "-1"], "--grad-clip -1.0: has to be >= 0"),
        (["--channels", "7"], "--channels 7: has to be even"),
        (["--procedural", "4", "--dataset-path", "x"], "leave --dataset-path out"),
        (["--procedural", "4", "--resume", "/nowhere"], "is no run folder"),
        (["--lr", "nan"], "--lr nan: has to be finite and above 0"),
        (["--procedural", "4", "--num-workers", "0", "--backbone", "resnett50"], "resnett50"),
    ],
)
def test_impossible_settings_are_refused_with_their_flag(
    flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "camouflage", *flags]) == 2
    assert says in capsys.readouterr().err


def test_a_folder_without_pairs_and_weights_of_another_network_are_refused(
    finished: Path, tmp_path: Path
) -> None:
    config = tiny(tmp_path / "d")
    data = replace(config.data, procedural=0, dataset_path=tmp_path)
    with pytest.raises(DataError):
        train_on_folders(replace(config, data=data))
    other = replace(
        config,
        model=replace(config.model, channels=16),
        run=replace(config.run, checkpoint=finished),
    )
    with pytest.raises((CheckpointError, RuntimeError), match=r"size mismatch|another|missing"):
        quiet(other)
    with pytest.raises(ConfigError, match="Raise it to train on"):
        quiet(replace(config, run=replace(config.run, resume=finished)))
