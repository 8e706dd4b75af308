"""A save that fails does not end the run: it is said, what stands is intact, and it is retried."""

from __future__ import annotations

import math
import stat
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from surefoot.checkpoint import CheckpointStore, SaveOutcome, check_finite_state
from surefoot.errors import CheckpointError, UsageError
from surefoot.journal.format import decode, encode

Weights = dict[str, dict[str, Tensor]]
LARGE: Weights = {"model": {"w": torch.ones(100_000)}}
SMALL: Weights = {"model": {"w": torch.ones(1)}}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", clock=clock)


def test_a_save_that_fails_is_an_outcome_and_the_next_one_is_tried(
    store: CheckpointStore,
    clock: Clock,
    largest_file: Callable[[int], AbstractContextManager[None]],
) -> None:
    first = store.try_save(1, {}, weights=LARGE)
    assert first.saved
    assert first.path is not None
    assert str(first) == f"checkpoint of step 1 saved in {store.folder / '00001-step-1'}"
    with largest_file(64 * 1024):
        failed = store.try_save(2, {}, weights=LARGE)
    assert not failed.saved
    assert failed.problem.startswith(f"checkpoint of step 2 could not be saved in {store.folder}: ")
    assert "File too large" in failed.problem
    assert "The earlier checkpoint 00001-step-1 is intact." in failed.problem
    assert str(failed).endswith("The run goes on without it; the next try is due in 10 s, or with "
                                "the next save.")  # fmt: skip
    assert [path.name for path in store.folder.iterdir()] == ["00001-step-1"]
    again = store.try_save(3, {}, weights=LARGE)
    assert again.saved
    assert not store.retry_due


def test_it_is_tried_again_sooner_and_then_less_and_less_often(
    store: CheckpointStore, clock: Clock, tmp_path: Path
) -> None:
    store.folder.write_text("in the way")
    pauses = []
    for count in range(1, 9):
        outcome = store.try_save(count, {}, weights=SMALL)
        assert outcome.failures == count
        pauses.append(outcome.retry_in)
        clock.now += outcome.retry_in - 1
        assert not store.retry_due
        clock.now += 1
        assert store.retry_due
    assert pauses == [10, 20, 40, 80, 160, 320, 600, 600]
    assert "8 times in a row" in str(outcome)
    store.folder.unlink()
    assert store.try_save(9, {}, weights=SMALL).failures == 0
    assert not store.retry_due


def test_a_run_that_was_never_saved_has_nothing_to_retry(store: CheckpointStore) -> None:
    assert not store.retry_due


def test_an_outcome_fits_into_a_journal(store: CheckpointStore) -> None:
    good = store.try_save(1, {}, weights=SMALL)
    bad = store.try_save(2, {}, weights={"model": {"w": torch.tensor(math.nan)}})
    for outcome in (good, bad):
        line = decode(encode({"kind": "checkpoint", **outcome.to_dict()}))
        assert line["path"] == (None if outcome.path is None else str(outcome.path))
        assert line["problem"] == outcome.problem


def test_wrong_arguments_are_errors_all_the_same(store: CheckpointStore) -> None:
    with pytest.raises(UsageError, match="no weights to save"):
        store.try_save(1, {}, weights={})


def test_moments_that_are_not_finite_are_not_saved(store: CheckpointStore) -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    store.save(1, {"optimizer": optimizer.state_dict()}, weights={"model": model.state_dict()})
    optimizer.state[model.weight]["exp_avg"][0, 1] = math.nan
    state = {"optimizer": optimizer.state_dict()}
    with pytest.raises(
        CheckpointError,
        match=r"1 tensor of the state is not finite: state\['optimizer'\]\['state'\]\[0\]"
        r"\['exp_avg'\]\. It is not saved.* The earlier checkpoint 00001-step-1 is intact",
    ):
        store.save(2, state, weights={"model": model.state_dict()})


def test_what_is_no_number_of_the_training_may_be_anything() -> None:
    state: dict[str, Any] = {
        "loss": math.nan,
        "window": [math.inf],
        "mask": torch.zeros(2, dtype=torch.bool),
        "sparse": torch.eye(2).to_sparse(),
        "shape": torch.empty(3, device="meta"),
    }
    state["itself"] = state
    check_finite_state(state)
    with pytest.raises(CheckpointError, match=r"2 tensors of the state .*\['a'\]\[0\], .*\['b'\]"):
        check_finite_state(
            {"a": [torch.tensor([math.inf])], "b": torch.tensor(complex(0, math.nan))}
        )


# -- a real disk -----------------------------------------------------------------------------------


def fill(disk: Any, free: int) -> Path:
    """Write until about ``free`` bytes are left."""
    room = (1024 * 1024) - free
    filler = disk.folder / "filler"
    filler.write_bytes(b"\1" * max(0, room - _used(disk.folder)))
    return filler


def _used(folder: Path) -> int:
    return sum(-(-p.stat().st_size // 4096) * 4096 for p in folder.rglob("*") if p.is_file())


def test_a_disk_without_room_is_seen_before_anything_is_written(small_disk: Any) -> None:
    store = CheckpointStore(small_disk.folder / "checkpoints")
    weights: Weights = {"model": {"w": torch.ones(50_000)}}
    store.save(1, {}, weights=weights)
    filler = fill(small_disk, free=150_000)
    outcome = store.try_save(2, {}, weights=weights)
    assert "step 2 could not be saved" in outcome.problem
    assert "it takes 0.3 MB and 0.1 MB are free, so nothing was written" in outcome.problem
    assert "The earlier checkpoint 00001-step-1 is intact" in outcome.problem
    filler.unlink()
    assert store.try_save(3, {}, weights=weights).saved
    newest = store.newest()
    assert newest is not None
    assert newest.step == 3


def test_a_disk_that_fills_up_during_the_save_costs_nothing(
    small_disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surefoot.checkpoint import store as module

    monkeypatch.setattr(module, "free_bytes", lambda folder: 10**12)
    store = CheckpointStore(small_disk.folder / "checkpoints")
    weights: Weights = {"model": {"w": torch.ones(50_000)}}
    state = {"moments": torch.ones(50_000)}
    store.save(1, state, weights=weights)
    filler = fill(small_disk, free=300_000)  # room for the one file, not for the other
    outcome = store.try_save(2, state, weights=weights)
    assert "No space left on device" in outcome.problem
    assert [p.name for p in store.folder.iterdir()] == ["00001-step-1"]
    newest = store.newest()
    assert newest is not None
    assert torch.equal(newest.load_state()["moments"], state["moments"])
    filler.unlink()
    assert store.try_save(2, state, weights=weights).saved


def test_a_read_only_disk_is_said_and_a_run_that_can_write_again_saves(small_disk: Any) -> None:
    store = CheckpointStore(small_disk.folder / "checkpoints")
    store.save(1, {}, weights=SMALL)
    small_disk.remount("ro")
    outcome = store.try_save(2, {}, weights=SMALL)
    assert "Read-only file system. The earlier checkpoint 00001-step-1" in outcome.problem
    small_disk.remount("rw")
    assert store.try_save(2, {}, weights=SMALL).saved


def test_every_file_of_a_checkpoint_can_be_read_by_the_same_people(store: CheckpointStore) -> None:
    path = store.save(1, {}, weights=SMALL)
    modes = {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()}
    assert len(modes) == 1


def test_an_outcome_is_true_to_its_path() -> None:
    assert SaveOutcome(step=1, path=Path("x")).saved
    assert not SaveOutcome(step=1, path=None).saved
