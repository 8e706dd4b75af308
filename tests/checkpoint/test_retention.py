"""What is kept, what goes, and which one is the newest and the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from surefoot.checkpoint import CheckpointStore
from surefoot.errors import ConfigError

WEIGHTS: dict[str, dict[str, Tensor]] = {"model": {"w": torch.ones(4)}}


def save(store: CheckpointStore, step: int, metric: float | None = None, **more: Any) -> Path:
    return store.save(step, {}, weights=WEIGHTS, metric=metric, **more)


def steps(store: CheckpointStore) -> list[int]:
    return sorted(int(p.name.rpartition("-")[2]) for p in store.folder.iterdir())


def damage(path: Path) -> None:
    (path / "state.pt").unlink()


def test_the_last_ones_and_the_best_are_kept(store: CheckpointStore) -> None:
    save(store, 1)
    save(store, 2, 0.5, best=True)
    for step in range(3, 9):
        save(store, step, 0.4)
    assert steps(store) == [2, 6, 7, 8]
    newest, best = store.newest(), store.best()
    assert newest is not None
    assert best is not None
    assert (newest.step, best.step, best.metric) == (8, 2, 0.5)


def test_a_new_best_lets_the_old_one_go(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)
    for step in range(1, 5):
        save(store, step, step / 10, best=True)
    assert steps(store) == [4]
    save(store, 5)
    assert steps(store) == [4, 5]


def test_milestones_stay_for_good(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2, keep_every=10)
    for step in range(3, 40, 4):  # 3 7 11 15 19 23 27 31 35 39
        save(store, step)
    assert steps(store) == [11, 23, 31, 35, 39]
    save(store, 100)
    save(store, 104)
    assert steps(store) == [11, 23, 31, 100, 104]


def test_a_milestone_of_a_run_that_went_on_from_before_it_takes_the_other_one_s_place(
    tmp_path: Path,
) -> None:
    store = CheckpointStore(tmp_path, keep_last=1, keep_every=10)
    for step in (8, 12, 18, 12, 19):
        save(store, step)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["00004-step-12", "00005-step-19"]


def test_a_damaged_milestone_makes_way_for_the_next_of_its_span(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=1, keep_every=10)
    damage(save(store, 10))
    for step in (12, 15, 18):
        save(store, step)
    assert steps(store) == [12, 18]


def test_damaged_ones_do_not_count_among_the_last(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=2)
    save(store, 1)
    damage(save(store, 2))
    damage(save(store, 3))
    save(store, 4)
    assert steps(store) == [1, 2, 3, 4]
    save(store, 5)
    assert steps(store) == [4, 5]


def test_an_old_best_stays_while_the_newer_one_is_damaged(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep_last=3)
    save(store, 1, 0.1, best=True)
    damage(save(store, 2, 0.2, best=True))
    for step in range(3, 9):
        save(store, step)
    assert steps(store) == [1, 2, 6, 7, 8]
    best = store.best()
    assert best is not None
    assert best.step == 1
    assert [one.path.name for one in store.rejected] == ["00002-step-2"]


def test_a_best_with_a_flipped_bit_is_passed_over_for_an_older_best(store: CheckpointStore) -> None:
    save(store, 1, 0.1, best=True)
    path = save(store, 2, 0.2, best=True) / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    best = store.best()
    assert best is not None
    assert best.step == 1
    assert "model.safetensors is damaged" in store.rejected[0].reason


def test_the_newest_is_the_one_saved_last_whatever_its_step(store: CheckpointStore) -> None:
    save(store, 100)
    save(store, 50)  # the run went on from an older checkpoint
    save(store, 100)
    newest = store.newest()
    assert newest is not None
    assert newest.path.name == "00003-step-100"
    assert steps(store) == [50, 100, 100]


def test_the_count_goes_on_in_a_new_process_and_past_five_digits(store: CheckpointStore) -> None:
    path = save(store, 1)
    path.rename(path.with_name("99999-step-1"))
    again = CheckpointStore(store.folder)
    assert save(again, 2).name == "100000-step-2"
    newest = again.newest()
    assert newest is not None
    assert newest.step == 2


def test_what_cannot_be_deleted_stops_nothing_and_goes_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path, keep_last=1)
    save(store, 1)
    real = Path.rename

    def refuse(path: Path, target: Path) -> Path:
        if target.name.startswith(".deleting-"):
            raise PermissionError(13, "Permission denied")
        return real(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", refuse)
        save(store, 2)
        assert steps(store) == [1, 2]
    save(store, 3)
    assert steps(store) == [3]


@pytest.mark.parametrize("settings", [{"keep_last": 0}, {"keep_every": 0}])
def test_to_keep_nothing_is_refused(tmp_path: Path, settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"keep_(last|every)=0: .*at least 1"):
        CheckpointStore(tmp_path, **settings)


def test_a_list_of_all_says_what_is_wrong_with_each(store: CheckpointStore) -> None:
    first = save(store, 1, 0.5, best=True)
    cut, flipped, gone = save(store, 2), save(store, 3), save(store, 4)
    (cut / "state.pt").write_bytes(b"x")
    content = bytearray((flipped / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (flipped / "model.safetensors").write_bytes(content)
    (gone / "manifest.json").unlink()
    quick, thorough = store.listing(), store.listing(verify=True)
    assert [one.path for one in quick] == [first, cut, flipped, gone]
    assert [bool(one.problem) for one in quick] == [False, True, False, True]
    assert [one.problem.partition(" ")[0] for one in thorough] == [
        "", "state.pt", "model.safetensors", "manifest.json"
    ]  # fmt: skip
    assert quick[3].manifest is None
    assert quick[0].bytes == sum(file.stat().st_size for file in first.iterdir())
    assert quick[0].manifest is not None
    assert quick[0].manifest.best


# What happens to a store, step after step: a save (as best or not) or damage to one of its folders.
happenings = st.lists(
    st.sampled_from(["save", "best", "damage newest", "damage oldest"]), max_size=8
)


@given(happenings, st.integers(1, 3))
@settings(max_examples=40)
def test_a_good_checkpoint_and_a_good_best_are_never_deleted_for_nothing(
    tmp_path_factory: pytest.TempPathFactory, happened: list[str], keep_last: int
) -> None:
    store = CheckpointStore(tmp_path_factory.mktemp("store"), keep_last=keep_last)
    good: dict[int, bool] = {}  # step -> saved as best, of all that nothing happened to
    for step, what in enumerate(happened, start=1):
        if what in ("save", "best"):
            save(store, step, 0.5, best=what == "best")
            good[step] = what == "best"
        elif there := steps(store):
            hit = there[-1] if what == "damage newest" else there[0]
            for path in store.folder.glob(f"*-step-{hit}/state.pt"):
                path.unlink()
            good.pop(hit, None)
        # ``good`` still holds what was there before: what this save deleted shows below.
        newest, best = store.newest(), store.best()
        assert (newest.step if newest else None) == max(good, default=None)
        bests = [s for s, is_best in good.items() if is_best]
        assert (best.step if best else None) == max(bests, default=None)
        good = {s: is_best for s, is_best in good.items() if s in steps(store)}
        if what in ("save", "best"):
            assert len(good) <= keep_last + 1
