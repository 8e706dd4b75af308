"""Damaged, hostile and half-written checkpoints are passed over, and said to be so."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from surefoot.checkpoint import Checkpoint, CheckpointStore
from surefoot.checkpoint import store as store_module
from surefoot.errors import CheckpointError

Weights = dict[str, dict[str, Tensor]]
FILES = ["manifest.json", "model.safetensors", "state.pt"]


@pytest.fixture
def two(store: CheckpointStore, weights: Weights, state: dict[str, Any]) -> tuple[Path, Path]:
    """An older and a newer checkpoint."""
    first, second = (store.save(step, state, weights=weights) for step in (1, 2))
    return first, second


def flip_bit(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[min(int(len(content) * place), len(content) - 1)] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def punch_hole(path: Path) -> None:
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[: size // 2] + b"\0" * (size - size // 2))


DAMAGE: dict[str, Callable[[Path], None]] = {
    "removed": Path.unlink,
    "truncated": truncate,
    "emptied": lambda path: os.truncate(path, 0),
    "half zeros": punch_hole,
    "bit at the start": lambda path: flip_bit(path, 0.0),
    "bit inside": lambda path: flip_bit(path, 0.6),
    "bit near the end": lambda path: flip_bit(path, 0.97),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_a_damaged_newest_is_passed_over_for_the_older_good_one(
    store: CheckpointStore, two: tuple[Path, Path], file: str, damage: str
) -> None:
    DAMAGE[damage](two[1] / file)
    checkpoint = store.newest()
    assert checkpoint is not None
    assert checkpoint.path == two[0]
    (rejected,) = store.rejected
    assert rejected.path == two[1]
    assert file in rejected.reason
    assert str(two[1]) in str(rejected)
    with pytest.raises(CheckpointError, match=f"checkpoint {two[1]}: .*{file}"):
        Checkpoint.open(two[1])


def test_every_single_flipped_bit_of_a_manifest_is_noticed(two: tuple[Path, Path]) -> None:
    path = two[1] / "manifest.json"
    good = path.read_bytes()
    before = Checkpoint.open(two[1]).manifest
    for place in range(len(good)):
        damaged = bytearray(good)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        try:
            manifest = Checkpoint.open(two[1]).manifest
        except CheckpointError:
            continue
        # A bit in the white space between two fields says nothing else.
        assert good[place : place + 1].isspace()
        assert manifest == before


def test_nothing_is_rejected_where_all_is_well(
    store: CheckpointStore, two: tuple[Path, Path]
) -> None:
    checkpoint = store.newest()
    assert checkpoint is not None
    assert checkpoint.path == two[1]
    assert store.rejected == ()
    assert Checkpoint.open(two[0]).step == 1


def test_all_damaged_is_none_at_all(store: CheckpointStore, two: tuple[Path, Path]) -> None:
    for path in two:
        (path / "state.pt").unlink()
    assert store.newest() is None
    assert [one.path for one in store.rejected] == [two[1], two[0]]
    assert "state.pt is missing" in store.rejected[0].reason


def test_a_folder_that_is_not_there_holds_no_checkpoint(store: CheckpointStore) -> None:
    assert store.newest() is None
    assert store.best() is None


def test_what_is_no_checkpoint_is_left_alone(
    store: CheckpointStore, two: tuple[Path, Path]
) -> None:
    note = store.folder / "notes.txt"
    note.write_text("mine")
    store.save(3, {}, weights={"model": {"w": torch.ones(1)}})
    assert note.read_text() == "mine"
    assert store.newest() is not None
    assert store.rejected == ()


class Bomb:
    """What a hostile author puts into a pickle."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.target),))


def forge(checkpoint: Path, file: str, content: bytes) -> None:
    """Replace a file and make the manifest agree: checksums keep accidents out, not people."""
    (checkpoint / file).write_bytes(content)
    values = json.loads((checkpoint / "manifest.json").read_text())
    values["files"][file] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    del values["sha256"]
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    values["sha256"] = hashlib.sha256(canonical.encode()).hexdigest()
    (checkpoint / "manifest.json").write_text(json.dumps(values))


@pytest.mark.parametrize("packed", ["zip", "bare"])
def test_a_pickle_bomb_does_not_go_off(
    store: CheckpointStore, two: tuple[Path, Path], tmp_path: Path, packed: str
) -> None:
    target = tmp_path / "owned"
    file = tmp_path / "bomb.pt"
    if packed == "zip":
        torch.save({"epoch": 1, "optimizer": Bomb(target)}, file)
        with zipfile.ZipFile(file) as archive:
            assert b"mkdir" in archive.read("bomb/data.pkl")  # it is live
    else:
        file.write_bytes(pickle.dumps(Bomb(target)))
    forge(two[1], "state.pt", file.read_bytes())
    checkpoint = store.newest()
    assert checkpoint is not None
    assert checkpoint.path == two[1]
    with pytest.raises(
        CheckpointError, match=r"state\.pt (was refused|is no archive) .*\(no code in the file"
    ):
        checkpoint.load_state()
    assert not target.exists()


def test_weights_are_never_read_as_a_pickle(
    store: CheckpointStore, two: tuple[Path, Path], tmp_path: Path
) -> None:
    target = tmp_path / "owned"
    forge(two[1], "model.safetensors", pickle.dumps(Bomb(target)))
    checkpoint = store.newest()
    assert checkpoint is not None
    with pytest.raises(CheckpointError, match=r"model\.safetensors: Error while deserializing"):
        checkpoint.load_weights()
    assert not target.exists()


def test_a_manifest_does_not_lead_out_of_its_folder(
    store: CheckpointStore, two: tuple[Path, Path]
) -> None:
    (two[1].parent / "outside").write_text("x")
    forge(two[1], "../outside", b"x")
    checkpoint = store.newest()
    assert checkpoint is not None
    assert checkpoint.path == two[0]
    assert "'../outside' leads out of the checkpoint" in store.rejected[0].reason


def test_a_newer_format_is_passed_over_and_named(
    store: CheckpointStore, two: tuple[Path, Path]
) -> None:
    path = two[1] / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    checkpoint = store.newest()
    assert checkpoint is not None
    assert checkpoint.path == two[0]
    assert "format version 2; this surefoot reads up to 1" in store.rejected[0].reason


SAVING_FOR_EVER = """
import itertools, sys, torch
from surefoot.checkpoint import CheckpointStore
store = CheckpointStore(sys.argv[1], keep_last=2)
for step in itertools.count(1):
    store.save(step, {"step": step}, weights={"model": {"w": torch.full((20_000,), float(step))}})
    print(step, flush=True)
"""


def test_a_save_that_is_killed_costs_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    killed_in_a_save = False
    run = subprocess.Popen(
        [sys.executable, "-c", SAVING_FOR_EVER, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    with run.stdout as said:
        for _ in range(3):
            said.readline()
        deadline = time.monotonic() + 10
        while not killed_in_a_save and time.monotonic() < deadline:
            killed_in_a_save = any(folder.glob(".saving-*"))
        run.send_signal(signal.SIGKILL)
        run.wait()
        done = [int(line) for line in said.read().split()]
    assert killed_in_a_save
    store = CheckpointStore(folder, keep_last=2)
    checkpoint = store.newest()
    assert checkpoint is not None
    assert store.rejected == ()
    assert checkpoint.step in ((done[-1], done[-1] + 1) if done else (3, 4))
    assert checkpoint.load_state() == {"step": checkpoint.step}
    assert torch.all(checkpoint.load_weights()["w"] == checkpoint.step)

    (folder / ".saving-00009-step-9").mkdir(exist_ok=True)
    (folder / ".deleting-00001-step-1").mkdir(exist_ok=True)
    store.save(100, {}, weights={"model": {"w": torch.ones(1)}})
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("large", ["weights", "state"])
def test_a_full_disk_is_named_and_the_earlier_checkpoint_stands(
    store: CheckpointStore,
    two: tuple[Path, Path],
    large: str,
    largest_file: Callable[[int], AbstractContextManager[None]],
) -> None:
    many, few = torch.ones(100_000), torch.ones(1)
    weights = {"model": {"w": many if large == "weights" else few}}
    state = {"moments": many if large == "state" else few}
    with (
        largest_file(64 * 1024),
        pytest.raises(
            CheckpointError,
            match=r"step 3 could not be saved in .*File too large.* The earlier checkpoint "
            r"00002-step-2 is intact.* Look at the free space",
        ),
    ):
        store.save(3, state, weights=weights)
    assert sorted(store.folder.iterdir()) == list(two)
    assert store.save(3, state, weights=weights).name == "00003-step-3"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path, weights: Weights) -> None:
    (tmp_path / "file").write_text("in the way")
    store = CheckpointStore(tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"could not be saved in .*file: File exists"):
        store.save(1, {}, weights=weights)
    with pytest.raises(CheckpointError, match="cannot be read: Not a directory"):
        store.newest()


@pytest.mark.parametrize("file", FILES)
def test_a_disk_that_gives_back_other_bytes_is_noticed_before_the_rename(
    store: CheckpointStore,
    two: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    file: str,
) -> None:
    from surefoot.checkpoint import manifest, state, weights

    def lying(path: Path) -> None:
        if path.name == file and path.parent.name.startswith(".saving-"):
            flip_bit(path, 0.95)

    def after(module: Any, name: str, place: int) -> None:
        real = getattr(module, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            lying(arguments[place])
            return real(*arguments, **named)

        monkeypatch.setattr(module, name, wrapped)

    # Between the writing of a file and the look at what it holds.
    after(weights, "_opened", 0)
    after(state, "sha256_of", 0)
    if file == "manifest.json":
        after(manifest, "sync", 0)
    with pytest.raises(CheckpointError, match=f"{file}.*00002-step-2 is intact"):
        store.save(3, {"x": torch.ones(4)}, weights={"model": {"w": torch.ones(100)}})
    assert sorted(store.folder.iterdir()) == list(two)


def test_a_checkpoint_is_on_the_disk_before_it_gets_its_name(
    store: CheckpointStore, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    names = {}
    fsync, rename = os.fsync, Path.rename

    def record_sync(handle: int) -> None:
        events.append(f"sync {names.setdefault(handle, os.readlink(f'/proc/self/fd/{handle}'))}")
        names.clear()
        fsync(handle)

    def record_rename(path: Path, target: Path) -> Path:
        events.append(f"rename {path}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(Path, "rename", record_rename)
    store.save(1, {}, weights=weights)
    beside = store.folder.resolve() / ".saving-00001-step-1"
    assert set(events[:3]) == {f"sync {beside / file}" for file in FILES}
    assert events[3:] == [
        f"sync {beside}",
        f"rename {beside}",
        f"sync {store.folder.resolve()}",
    ]


def test_an_interrupted_save_leaves_nothing_behind(
    store: CheckpointStore, two: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store_module, "write_weights", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.save(3, {}, weights={"model": {"w": torch.ones(1)}})
    assert sorted(store.folder.iterdir()) == list(two)


def test_a_file_that_goes_bad_after_the_look_is_an_error_with_its_name(
    store: CheckpointStore, two: tuple[Path, Path]
) -> None:
    checkpoint = store.newest()
    assert checkpoint is not None
    shutil.rmtree(two[1])
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoint.load_weights()
    with pytest.raises(CheckpointError, match="No such file"):
        checkpoint.load_state()
