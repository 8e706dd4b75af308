"""A step that a RefDet run refused, run again by the command."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from surefoot.cli import main
from surefoot.data import Episodes
from surefoot.errors import ConfigError
from surefoot.journal import JournalReader
from surefoot.recipes.refdet import OptimizerOptions, TrainConfig
from surefoot.recipes.refdet.replay import replay_refdet
from surefoot.recipes.refdet.sources import open_sources
from surefoot.recipes.refdet.train import train
from surefoot.recipes.replay import kept_steps, run_and_step
from surefoot.records import Origin, StepRecord
from surefoot.shapes import Episode


class Spoilt(Episodes):
    """The same episodes; one image of the fourth one has a NaN in it."""

    def __init__(self, inner: Episodes) -> None:
        super().__init__(episodes=len(inner), seed=0)
        self._inner, self._given = inner, 0

    def _episode(self, random: object, name: str) -> Episode:
        raise NotImplementedError

    def __getitem__(self, index: int) -> Episode:
        episode = self._inner[index]
        self._given += 1
        if self._given == 4:
            episode.images[1, 0, 5, 7] = math.nan
        return episode


@pytest.fixture(scope="module")
def spoilt_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_config: Callable[..., TrainConfig]
) -> Path:
    """A run of six episodes, two to a step, whose second step was refused."""
    folder = tmp_path_factory.mktemp("spoilt") / "run"
    config = tiny_config(folder)
    config = replace(config, optimizer=OptimizerOptions(lr=1e-3, gradient_accumulation=2))
    sources = open_sources(config)
    train(config, replace(sources, episodes=Spoilt(sources.episodes), held_out=None))
    return folder


def refused(run: Path) -> StepRecord:
    (record,) = [
        record for record in JournalReader(run / "journal.jsonl").steps() if record.refused
    ]
    return record


def test_the_journal_names_image_micro_batch_and_kept_step(spoilt_run: Path):
    record = refused(spoilt_run)
    assert record.fault is not None
    assert (record.fault.origin, record.fault.position) == (Origin.INPUT, "input images")
    assert len(record.samples) == 1
    assert record.samples[0] in record.sample_ids
    assert all(term.bad for term in record.terms)
    assert Path(record.bundle) == spoilt_run / "failures" / f"step-{record.step:08}"


def test_the_command_lists_and_replays(spoilt_run: Path, capsys: pytest.CaptureFixture[str]):
    number = refused(spoilt_run).step
    assert main(["replay", str(spoilt_run)]) == 0
    listed = capsys.readouterr().out
    assert "NaN in input images" in " ".join(listed.split())
    assert f"surefoot replay {spoilt_run} --step {number}" in listed
    for words in (
        [str(spoilt_run), "--step", str(number)],
        [str(spoilt_run / "failures" / f"step-{number:08}"), "--device", "cpu"],
    ):
        assert main(["replay", *words]) == 0
        shown = capsys.readouterr().out
        assert "> what went in, input images" in shown
        assert "  ! model.backbone.stem.conv (Conv2d)" in shown
        assert shown.rstrip().endswith("It is the data: what the model was given was not finite.")


def test_the_replay_is_the_step_to_the_bit(spoilt_run: Path):
    """Without its NaN the kept episode gives a finite loss: nothing else was wrong with it."""
    record = refused(spoilt_run)
    again = replay_refdet(spoilt_run, Path(record.bundle), torch.device("cpu"))
    (run,) = again.runs
    assert run.fault is not None
    assert record.fault is not None
    assert str(run.fault) == str(record.fault)
    assert (run.micro_batch, run.fault.samples) == (record.fault.micro_batch, record.fault.samples)
    assert [term.bad for term in run.terms] == [term.bad for term in record.terms]


def test_a_step_that_is_not_there_is_answered_with_those_that_are(
    spoilt_run: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["replay", str(spoilt_run), "--step", "77"]) == 2
    said = capsys.readouterr().err
    assert "holds no such step; the kept ones are:" in said
    assert str(refused(spoilt_run).step) in said


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"is no run folder: there is no config\.json in it"):
        run_and_step(tmp_path, None)


def test_a_run_without_refusals_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "config.json").write_text("{}")
    assert kept_steps(tmp_path) == []
    assert main(["replay", str(tmp_path)]) == 0
    assert "no step was refused, or none was kept" in capsys.readouterr().out


def test_a_damaged_step_is_listed_as_such(tmp_path: Path):
    kept = tmp_path / "failures" / "step-00000003"
    kept.mkdir(parents=True)
    (kept / "bundle.json").write_text("{")
    ((name, size, said),) = kept_steps(tmp_path)
    assert (name, size) == ("step-00000003", "0.0 MB")
    assert "the kept step is damaged" in said
