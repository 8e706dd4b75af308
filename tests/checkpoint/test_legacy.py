"""torch.save's own checksums, which torch.load does not look at."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from surefoot.checkpoint import verify_legacy
from surefoot.errors import CheckpointError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "last.pt"
    model = nn.Linear(64, 64)
    torch.save({"model": model.state_dict(), "epoch": 3}, path)
    return path


def test_a_good_file_is_good_and_counted(file: Path) -> None:
    found = verify_legacy(file)
    with zipfile.ZipFile(file) as archive:
        assert found.records == len(archive.namelist())
    assert found.bytes > 64 * 65 * 4
    assert found.path == file


def change(place: float, with_: Callable[[bytearray, int], None]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        with_(content, int(len(content) * place))
        path.write_bytes(content)

    return damage


def flip(content: bytearray, at: int) -> None:
    content[at] ^= 1


def hole(content: bytearray, at: int) -> None:
    content[at : at + 4096] = bytes(4096)


@pytest.mark.parametrize("damage", [change(0.5, flip), change(0.4, hole)])
def test_damage_that_torch_loads_without_a_word_is_found_and_its_record_named(
    file: Path, damage: Callable[[Path], None]
) -> None:
    before = torch.load(file, weights_only=True)
    damage(file)
    after = torch.load(file, weights_only=True)
    assert not torch.equal(after["model"]["weight"], before["model"]["weight"])
    with pytest.raises(
        CheckpointError,
        match=r"last\.pt: record last/data/0 is damaged: its 16,384 bytes are not those that were "
        r"written \(Bad CRC-32 .*\)\. torch\.load would not have said so",
    ):
        verify_legacy(file)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: os.truncate(path, path.stat().st_size // 2), "is cut off or its table of co"),
        (lambda path: os.truncate(path, 0), "is empty, or begins with zeros"),
        (lambda path: path.write_bytes(bytes(500)), "is empty, or begins with zeros"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "is no archive of torch.save"),
        (Path.unlink, "no such file"),
        (change(0.999, flip), "is cut off or its table|is damaged"),
    ],
)
def test_every_other_damage_is_named(file: Path, damage: Callable[[Path], None], said: str) -> None:
    damage(file)
    with pytest.raises(CheckpointError, match=f"last.pt: .*({said})"):
        verify_legacy(file)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be read \(.*Is a directory"):
        verify_legacy(tmp_path)


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(tmp_path / "owned"),))

    torch.save({"epoch": Bomb()}, tmp_path / "bomb.pt")
    verify_legacy(tmp_path / "bomb.pt")
    assert not (tmp_path / "owned").exists()


def test_every_bit_that_the_loader_would_have_trusted_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "small.pt"
    torch.save({"w": torch.arange(4.0)}, path)
    good = path.read_bytes()
    noticed = 0
    for place in range(0, len(good), 7):
        content = bytearray(good)
        content[place] ^= 4
        path.write_bytes(content)
        try:
            verify_legacy(path)
        except CheckpointError:
            noticed += 1
            continue
        # Padding between two records, a time stamp: nothing that is loaded, or torch says so.
        with suppress(RuntimeError):
            assert torch.load(path, weights_only=True)["w"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert noticed > 50
