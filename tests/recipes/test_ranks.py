"""Several processes train as one run: one verdict, one folder, one measurement."""

from __future__ import annotations

import io
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.kill import difference
from torch import nn

from guard.ranks import world
from recipes.camouflage_runs import tiny
from surefoot.checkpoint import CheckpointStore, Interrupted, capture_rng
from surefoot.data import AeroEyes, write_aeroeyes
from surefoot.data.camouflage import ProceduralCamouflage
from surefoot.errors import ConfigError
from surefoot.journal import JournalReader
from surefoot.models import RefDet, RefDetConfig
from surefoot.models.camouflage import CamouflageNet
from surefoot.recipes.camouflage import CamouflageConfig
from surefoot.recipes.camouflage.build import CamouflageLearner
from surefoot.recipes.camouflage.train import train_on_folders
from surefoot.recipes.camouflage.validate import Masks, score
from surefoot.recipes.ranks import ALONE, Ranks
from surefoot.recipes.refdet import TrainConfig
from surefoot.recipes.refdet.train import train_on_folders as train_refdet
from surefoot.recipes.refdet.validate import Detector, calibrate, evaluate
from surefoot.recipes.run_folder import to_resume
from surefoot.records import Verdict

CPU = torch.device("cpu")


def last_state(folder: Path) -> dict[str, Any]:
    found = CheckpointStore(folder / "checkpoints").newest()
    assert found is not None
    return found.load_state()


# -- training --------------------------------------------------------------------------------------


def camouflage(rank: int, config: CamouflageConfig, *, stop_at: int = 0) -> tuple[str, str]:
    """What was printed, and a digest of what the rank holds at the end; it may be asked to stop."""
    said, terms, calls = io.StringIO(), CamouflageLearner.terms, 0

    def counted(self: CamouflageLearner, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            signal.raise_signal(signal.SIGTERM)
        return terms(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CamouflageLearner, "terms", counted)
        patch.setattr("surefoot.recipes.camouflage.sources._VALIDATION", 3)
        try:
            outcome = train_on_folders(config, stream=said)
        except Interrupted:
            return said.getvalue(), "interrupted"
    weights = torch.cat([p.detach().flatten() for p in outcome.masks.model.parameters()])
    return said.getvalue(), str((weights.double().sum().item(), outcome.measured))


def in_two(config: CamouflageConfig, **settings: Any) -> list[tuple[str, str]]:
    return world(2).run(camouflage, config=config, **settings)


def stopped_on_one(rank: int, config: CamouflageConfig, step: int) -> tuple[str, str]:
    return camouflage(rank, config, stop_at=step if rank == 1 else 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, str]]]:
    """3 epochs of 3 steps, the last two in stage 2's unfrozen network, by two processes."""
    folder = tmp_path_factory.mktemp("two") / "a"
    return folder, in_two(tiny(folder, stage1_epochs=1))


def test_two_processes_hold_the_same_and_the_first_alone_speaks(whole: Any) -> None:
    folder, ((said, first), (silence, second)) = whole
    assert first == second
    assert "2 processes" in said
    assert "Stage 2: everything learns" in said
    assert silence == ""
    reader = JournalReader(folder / "journal.jsonl")
    assert reader.run["processes"] == 2
    taken = [r.step for r in reader.steps() if r.verdict is not Verdict.ACCUMULATED]
    assert taken == list(range(9))
    assert len([entry for entry in reader if entry.kind == "evaluation"]) == 3
    assert len(last_state(folder)["other_ranks"]) == 1


@pytest.mark.parametrize("step", [3, 11], ids=["stage 1", "stage 2"])
def test_a_signal_to_one_stops_all_and_the_resumed_run_ends_bit_equal(
    step: int, whole: Any, tmp_path: Path
) -> None:
    folder, config = tmp_path / "a", tiny(tmp_path / "a", stage1_epochs=1)
    ends = world(2).run(stopped_on_one, config=config, step=step)
    assert [end for _, end in ends] == ["interrupted", "interrupted"]
    assert "  SIGTERM: step" in ends[0][0]
    again = replace(config, run=replace(config.run, resume=folder))
    ends = in_two(again)
    assert ends[0][1] == ends[1][1] == whole[1][0][1]
    assert difference(folder, whole[0]) == ""
    mine, other = (last_state(f)["other_ranks"][0]["torch"] for f in (folder, whole[0]))
    assert torch.equal(mine, other)


def test_another_number_of_processes_goes_on_and_says_what_is_no_longer_exact(
    tmp_path: Path,
) -> None:
    folder, config = tmp_path / "a", tiny(tmp_path / "a")
    world(2).run(stopped_on_one, config=config, step=3)
    again = replace(config, run=replace(config.run, resume=folder))
    said, _ = camouflage(0, again)
    assert "no longer exact: batches of 1 x 2 samples" in said
    assert "no longer exact: random numbers of 1 processes, where 2 were saved" in said


def test_each_process_draws_random_numbers_of_its_own(whole: Any) -> None:
    state = last_state(whole[0])
    assert not torch.equal(state["rng"]["torch"], state["other_ranks"][0]["torch"])
    assert state["other_ranks"][0].keys() == capture_rng().keys()


def refdet(rank: int, config: TrainConfig) -> str:
    said = io.StringIO()
    outcome = train_refdet(config, stream=said)
    weights = torch.cat([p.detach().flatten() for p in outcome.detector.model.parameters()])
    assert (said.getvalue() == "") is (rank == 1)
    return str((weights.double().sum().item(), outcome.evaluation))


def test_refdet_trains_on_each_episode_once_and_goes_on_with_auto(
    tmp_path: Path, tiny_config: Any
) -> None:
    config = tiny_config(tmp_path / "a")
    config = replace(config, episode=replace(config.episode, n_episodes=4))
    ends = world(2).run(refdet, config=config)
    assert ends[0] == ends[1]
    assert len(list(JournalReader(tmp_path / "a" / "journal.jsonl").steps())) == 4
    short = replace(config, run=replace(config.run, save_dir=tmp_path / "b", resume=Path("auto")))
    stop = replace(short, run=replace(short.run, epochs=1))  # nothing is there: it starts
    world(2).run(refdet, config=stop)
    assert last_state(tmp_path / "b")["epoch"] == 1
    world(2).run(refdet, config=short)
    assert last_state(tmp_path / "b")["epoch"] == 2
    world(2).run(refdet, config=short)  # it is done, and that is no error
    assert len(list(JournalReader(tmp_path / "b" / "journal.jsonl").steps())) == 4


def test_auto_starts_anew_where_a_run_had_saved_nothing(tmp_path: Path, tiny_config: Any) -> None:
    folder = tmp_path / "a"
    config = tiny_config(folder, resume=Path("auto"), max_steps=2)
    train_refdet(config, stream=io.StringIO())
    shutil.rmtree(folder / "checkpoints")
    said = io.StringIO()
    train_refdet(config, stream=said)
    assert "Going on" not in said.getvalue()
    assert last_state(folder)["epoch"] == 1
    with pytest.raises(ConfigError, match=r"--resume auto: .* --save-dir; name that folder"):
        to_resume(Path("auto"), None)


# -- measuring -------------------------------------------------------------------------------------


def same_scores(rank: int, size: int) -> tuple[bool, int]:
    torch.manual_seed(3)
    items = ProceduralCamouflage(length=11, size=64, seed=1, split="validation")
    masks = Masks(CamouflageNet("tiny", channels=8), CPU)
    alone, together = score(masks, items), score(masks, items, ranks=Ranks(rank, size))
    return alone.per_image == together.per_image and alone.summary() == together.summary(), len(
        together
    )


@pytest.mark.parametrize("size", [2, 4])
def test_images_that_are_divided_have_the_scores_of_one_process(size: int) -> None:
    assert world(size).run(same_scores, size=size) == [(True, 11)] * size


def same_evaluation(rank: int, size: int, folder: Path) -> bool:
    torch.manual_seed(3)
    detector = Detector(
        model=RefDet(RefDetConfig.pocket()), device=CPU, image_size=64, support_size=32
    )
    data, ranks = AeroEyes.open(folder), Ranks(rank, size)
    found = []
    for here in (ALONE, ranks):
        threshold = calibrate(detector, data, 4, here)
        found.append(evaluate(detector, data.videos, threshold=threshold, ranks=here))
    return str(found[0]) == str(found[1])


@pytest.mark.parametrize("size", [2, 4])
def test_videos_that_are_divided_have_the_scores_of_one_process(size: int, tmp_path: Path) -> None:
    write_aeroeyes(tmp_path / "a", videos=3, frames=6, size=64, split="train")
    assert world(size).run(same_evaluation, size=size, folder=tmp_path / "a") == [True] * size


# -- talking ---------------------------------------------------------------------------------------


def first_fails(rank: int) -> str:
    def refuse() -> None:
        raise ConfigError("the folder is taken")

    try:
        Ranks(rank, 2).of_first(refuse)
    except (ConfigError, SystemExit) as end:
        return f"{type(end).__name__}: {end}"
    return "went on"


def test_what_the_first_one_refuses_ends_all() -> None:
    assert world(2).run(first_fails) == ["ConfigError: the folder is taken", "SystemExit: 2"]


def worked(rank: int, size: int) -> tuple[list[str], list[float]]:
    ranks, norm = Ranks(rank, size), nn.BatchNorm1d(1)
    norm.running_mean = torch.tensor([float(rank)])
    ranks.agree([norm])
    return ranks.each(list(range(5)), lambda n: f"{n}"), norm.running_mean.tolist()


@pytest.mark.parametrize("size", [2, 4])
def test_work_is_divided_and_the_first_ones_buffers_are_everybodys(size: int) -> None:
    assert world(size).run(worked, size=size) == [(["0", "1", "2", "3", "4"], [0.0])] * size


def test_statistics_over_all_processes_need_gpus() -> None:
    with pytest.raises(ConfigError, match=r"--sync-batchnorm: torch has it on GPUs only"):
        Ranks(0, 2).synchronised(nn.BatchNorm1d(1), CPU, wanted=True)
    norm = nn.BatchNorm1d(1)
    assert ALONE.synchronised(norm, CPU, wanted=True) is norm
    cuda = torch.device("cuda")
    assert isinstance(Ranks(0, 2).synchronised(norm, cuda, wanted=True), nn.SyncBatchNorm)
