"""A recipe goes on in the middle of an epoch, and outlives a disk that refuses."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot.checkpoint import CheckpointStore
from surefoot.data import write_aeroeyes
from surefoot.errors import CheckpointError
from surefoot.journal import JournalReader, JournalWriter
from surefoot.recipes import session
from surefoot.recipes.refdet import (
    DataOptions,
    EpisodeOptions,
    HardwareOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
    TrainConfig,
)
from surefoot.recipes.refdet.train import Run, train_on_folders
from surefoot.recipes.session import Session
from surefoot.records import StepRecord, Verdict


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_aeroeyes(tmp_path_factory.mktemp("videos") / "train", videos=3, frames=8, size=64)


def config_of(videos: Path, folder: Path) -> TrainConfig:
    """2 epochs of 5 episodes, 3 steps each."""
    return TrainConfig(
        run=RunOptions(epochs=2, save_dir=folder, val_interval=9),
        data=DataOptions(data_root=videos, held_out=(), num_workers=0),
        episode=EpisodeOptions(n_way=2, n_query=2, n_episodes=5, image_size=64, support_size=32),
        model=ModelOptions(preset="pocket"),
        optimizer=OptimizerOptions(lr=1e-3, warmup_epochs=1.0, gradient_accumulation=2),
        hardware=HardwareOptions(device="cpu", precision="fp32"),
    )


@pytest.fixture
def config(videos: Path, tmp_path: Path) -> TrainConfig:
    return config_of(videos, tmp_path / "run")


@pytest.fixture
def interrupted_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Has the run interrupted when it writes the record after so many micro-batches."""
    write, count = JournalWriter.write, iter(range(10**6))

    def set_up(stop: int) -> None:
        def write_or_stop(self: JournalWriter, record: StepRecord, **more: Any) -> None:
            if next(count) == stop:
                raise KeyboardInterrupt
            write(self, record, **more)

        monkeypatch.setattr(JournalWriter, "write", write_or_stop)

    return set_up


def weights_of(folder: Path) -> dict[str, Any]:
    found = CheckpointStore(folder / "checkpoints").newest()
    assert found is not None
    return {name: found.load_weights(name) for name in found.weights}


@pytest.fixture(scope="module")
def whole_run(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Weights of a run that never stopped."""
    config = config_of(videos, tmp_path_factory.mktemp("whole") / "run")
    return weights_of(train_on_folders(config, stream=io.StringIO()).folder)


@pytest.mark.parametrize(("stop", "workers"), [(3, 0), (6, 2), (9, 0)])
def test_a_run_interrupted_within_an_epoch_ends_bit_for_bit_as_if_it_had_not_been(
    config: TrainConfig,
    interrupted_after: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    whole_run: dict[str, Any],
    stop: int,
    workers: int,
) -> None:
    monkeypatch.setattr(session, "SAVE_SECONDS", -1.0)  # after every step
    config = replace(config, data=replace(config.data, num_workers=workers))
    interrupted_after(stop)
    with pytest.raises(KeyboardInterrupt):
        train_on_folders(config, stream=io.StringIO())
    monkeypatch.undo()
    folder = config.run.save_dir
    said = io.StringIO()
    resumed = replace(config, run=replace(config.run, resume=folder))
    train_on_folders(resumed, stream=said)
    steps, inside = divmod(stop, 5)
    had = inside - inside % 2 if inside else 0
    expected = f"after epoch {steps}" + (f" and {had} episodes of the next" if had else "")
    assert expected in said.getvalue()
    assert "no longer exact" not in said.getvalue()
    torch.testing.assert_close(weights_of(folder), whole_run, rtol=0, atol=0)


def test_a_run_interrupted_between_an_epoch_s_last_step_and_its_end_goes_on_with_the_end(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch, whole_run: dict[str, Any]
) -> None:
    def interrupt(self: Run, epoch: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "SAVE_SECONDS", -1.0)
    monkeypatch.setattr(Run, "end_epoch", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_on_folders(config, stream=io.StringIO())
    monkeypatch.undo()
    folder, said = config.run.save_dir, io.StringIO()
    train_on_folders(replace(config, run=replace(config.run, resume=folder)), stream=said)
    assert "after epoch 0 and 5 episodes of the next" in said.getvalue()
    assert "0/0" not in said.getvalue()
    torch.testing.assert_close(weights_of(folder), whole_run, rtol=0, atol=0)


def test_a_disk_that_refuses_for_a_while_costs_one_checkpoint(
    config: TrainConfig,
    monkeypatch: pytest.MonkeyPatch,
    largest_file: Callable[[int], Any],
) -> None:
    said = io.StringIO()
    epoch_ends: list[Any] = []
    save = Session.save

    def save_on_a_full_disk_first(self: Session, *given: Any, **named: Any) -> Any:
        if epoch_ends:
            return save(self, *given, **named)
        with largest_file(64 * 1024):
            epoch_ends.append(save(self, *given, **named))
        return epoch_ends[0]

    monkeypatch.setattr(Session, "save", save_on_a_full_disk_first)
    folder = train_on_folders(config, stream=said).folder
    assert "checkpoint of step 3 could not be saved" in said.getvalue()
    assert "There is no earlier checkpoint." in said.getvalue()
    assert "The run goes on without it; the next try is due in 10 s" in said.getvalue()
    newest = CheckpointStore(folder / "checkpoints").newest()
    assert newest is not None
    assert newest.step == 6
    told = [e.values for e in JournalReader(folder / "journal.jsonl") if e.kind == "checkpoint"]
    assert [(one["step"], one["failures"]) for one in told] == [(3, 1), (6, 0)]


def test_what_a_whole_run_has_come_to_is_not_lost_in_silence(
    config: TrainConfig, largest_file: Callable[[int], Any]
) -> None:
    with (
        largest_file(64 * 1024),
        pytest.raises(CheckpointError, match=r"step 6 could not be saved.*File too large"),
    ):
        train_on_folders(config, stream=io.StringIO())


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def a_session(tmp_path: Path, clock: Clock) -> Iterator[tuple[Session, list[str]]]:
    told: list[str] = []
    with Session(tmp_path, recipe="refdet", run={}, say=told.append, clock=clock) as opened:
        yield opened, told


def test_a_checkpoint_is_due_when_the_last_is_old_or_failed(
    a_session: tuple[Session, list[str]], clock: Clock
) -> None:
    opened, told = a_session
    weights = {"model": {"w": torch.ones(1)}}
    clock.now = 599.0
    assert not opened.save_due
    clock.now = 600.0
    assert opened.save_due
    assert opened.save(1, {}, weights=weights).saved
    assert not opened.save_due
    bad = {"model": {"w": torch.tensor(float("nan"))}}
    assert not opened.save(2, {}, weights=bad).saved
    assert not opened.save_due
    assert "are not finite" in told[0]
    clock.now = 610.0
    assert opened.save_due
    assert opened.save(3, {}, weights=weights).saved
    assert not opened.save_due


def test_a_journal_whose_disk_is_full_for_a_while_says_what_it_lost(
    a_session: tuple[Session, list[str]], largest_file: Callable[[int], Any]
) -> None:
    opened, told = a_session
    path = opened.folder / "journal.jsonl"
    opened.journal.event("epoch", epoch=1)
    with largest_file(path.stat().st_size + 10):
        for step in range(3):
            opened.journal.write(StepRecord(step=step, verdict=Verdict.APPLIED))
    opened.journal.event("epoch", epoch=2)
    entries = list(JournalReader(path))
    assert [entry.kind for entry in entries] == ["epoch", "gap", "epoch"]
    assert entries[1].values["lost"] == 3
    assert "could not be written: File too large" in told[0]
    assert "The run goes on; its lines are lost until then." in told[0]
    assert told[1:] == ["  the journal is written again; 3 lines were lost"]
