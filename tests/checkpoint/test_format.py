"""Checkpoints of every format there was are read, and each kind of damage is answered as written.

``data/format-1`` was saved when format version 1 was the newest. Never save it anew: it stands for
the checkpoints that people have.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot.checkpoint import FORMAT_VERSION, Checkpoint, CheckpointStore
from surefoot.checkpoint.manifest import Manifest
from surefoot.errors import CheckpointError

DATA = Path(__file__).with_name("data")
STORED = DATA / "format-1" / "00001-step-7"


def test_every_format_version_has_a_stored_checkpoint() -> None:
    assert {path.name for path in DATA.iterdir()} == {
        f"format-{version}" for version in range(1, FORMAT_VERSION + 1)
    }


def test_a_checkpoint_of_format_1_is_read_to_the_bit() -> None:
    found = Checkpoint.open(STORED)
    assert (found.step, found.metric, found.measured_on) == (7, 0.52, "ema")
    assert (found.manifest.best, found.manifest.saved) == (True, "2026-11-21T16:39:24+00:00")
    model, ema = found.load_weights("model"), found.load_weights("ema")
    assert model["embed.weight"] is model["head.weight"]
    assert model["embed.weight"].tolist() == [[1.0, -2.0], [0.5, 3.0]]
    assert model["bias"].dtype == torch.bfloat16
    assert (model["steps"].item(), ema["bias"].tolist()) == (7, [0.125, -0.125])
    state = found.load_state()
    assert state["epoch"] == 2
    assert state["optimizer"]["state"][0]["exp_avg"].tolist() == [0.125, -0.5]
    assert state["optimizer"]["param_groups"] == [{"lr": 1e-3, "betas": (0.9, 0.99), "params": [0]}]


def test_a_run_of_an_older_format_goes_on_in_its_folder(tmp_path: Path) -> None:
    shutil.copytree(STORED.parent, tmp_path / "checkpoints")
    store = CheckpointStore(tmp_path / "checkpoints", keep_last=2)
    store.save(9, {}, weights={"model": {"w": torch.ones(1)}})
    newest, best = store.newest(), store.best()
    assert newest is not None
    assert best is not None
    assert (newest.path.name, best.path.name) == ("00002-step-9", "00001-step-7")


def test_what_a_newer_surefoot_adds_to_a_manifest_is_passed_over() -> None:
    values = json.loads((STORED / "manifest.json").read_text())
    assert Manifest._of(_signed(values | {"colour": "blue"}), STORED).step == 7


# -- hand-damaged checkpoints ----------------------------------------------------------------------


def _signed(values: dict[str, Any]) -> dict[str, Any]:
    values.pop("sha256", None)
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return values | {"sha256": hashlib.sha256(canonical.encode()).hexdigest()}


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def _hole(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[600:1100] = bytes(500)
    path.write_bytes(content)


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _forge(folder: Path, file: str, content: bytes) -> None:
    """Replace a file and make the manifest agree: checksums keep accidents out, not people."""
    (folder / file).write_bytes(content)
    values = json.loads((folder / "manifest.json").read_text())
    values["files"][file] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "manifest.json").write_text(json.dumps(_signed(values)))


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("owned",))


def _archive_with_a_bomb(folder: Path) -> None:
    file = folder.with_name("bomb.pt")
    torch.save({"epoch": _Bomb()}, file)
    _forge(folder, "state.pt", file.read_bytes())
    file.unlink()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "nothing": lambda folder: None,
    "weights cut in half": lambda folder: _cut(folder / "model.safetensors"),
    "one bit of a weight flipped": lambda folder: _flip(folder / "model.safetensors"),
    "a file of weights removed": lambda folder: (folder / "ema.safetensors").unlink(),
    "500 bytes of the state are zeros": lambda folder: _hole(folder / "state.pt"),
    "the state emptied": lambda folder: os.truncate(folder / "state.pt", 0),
    "a byte appended": lambda folder: _lengthen(folder / "state.pt"),
    "the manifest removed": lambda folder: (folder / "manifest.json").unlink(),
    "the manifest cut in half": lambda folder: _cut(folder / "manifest.json"),
    "another metric written into it": lambda f: _edit(f / "manifest.json", metric=0.99),
    "saved by a newer surefoot": lambda f: _edit(f / "manifest.json", version=99),
    "its files point elsewhere": lambda f: _forge(f, "../elsewhere", b"x"),
    "an empty folder": lambda folder: [file.unlink() for file in folder.iterdir()],
    "a hostile pickle as state, checksums forged": lambda f: _forge(
        f, "state.pt", pickle.dumps(_Bomb())
    ),
    "a hostile torch.save archive as state, checksums forged": _archive_with_a_bomb,
    "a hostile pickle as weights, checksums forged": lambda f: _forge(
        f, "model.safetensors", pickle.dumps(_Bomb())
    ),
}


@pytest.fixture
def two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CheckpointStore:
    """An older good checkpoint and a newer one to be damaged."""
    store = CheckpointStore(tmp_path / "checkpoints")
    for name in ("00001-step-7", "00002-step-7"):
        shutil.copytree(STORED, store.folder / name)
    monkeypatch.chdir(tmp_path)
    return store


def answer_to(store: CheckpointStore) -> str:
    """What loading says, and that a run has something to go on from whatever it is."""
    newest = store.newest()
    assert newest is not None
    if store.rejected:
        (rejected,) = store.rejected
        assert (rejected.path.name, newest.path.name) == ("00002-step-7", "00001-step-7")
        return rejected.reason
    try:
        newest.load_state()
        newest.load_weights()
    except CheckpointError as refused:
        return str(refused).partition("00002-step-7: ")[2] or f"names another one: {refused}"
    return ""


@pytest.mark.parametrize("damage", DAMAGE)
def test_the_answer_to_each_damage_is_the_documented_one(
    two: CheckpointStore, root: Path, damage: str
) -> None:
    DAMAGE[damage](two.folder / "00002-step-7")
    said = answer_to(two)
    assert not Path("owned").exists()
    table = dict(
        [cell.strip() for cell in row.split("|")[1:3]]
        for row in (root / "docs" / "checkpoints.md").read_text("utf-8").splitlines()
        if row.startswith("| ")
    )
    if table[damage].endswith("…`"):  # what follows is the JSON reader's or safetensors' own
        assert said.startswith(table[damage][1:-2])
    else:
        assert table[damage] == (f"`{said}`" if said else "it is loaded")


def test_the_documented_loop_runs_stops_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (root / "docs" / "checkpoints.md").read_text("utf-8")
    code = page.partition("```python\n")[2].partition("```")[0]
    code = code.replace("num_workers=4", "num_workers=1").replace("step % 1000", "step % 3")
    monkeypatch.chdir(tmp_path)
    weights = []
    for epochs in (1, 3, 3):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 10)
        optimizer = torch.optim.AdamW(model.parameters())

        def train_on(batch: Any, model: Any = model, optimizer: Any = optimizer) -> None:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
            optimizer.step()

        inputs = torch.randn(300, 4, generator=torch.Generator().manual_seed(1))
        exec(
            code,
            {
                "dataset": torch.utils.data.TensorDataset(inputs, torch.arange(300) % 10),
                "model": model,
                "optimizer": optimizer,
                "epochs": epochs,
                "train_on": train_on,
            },
        )
        weights.append(model.weight.detach().clone())
        if epochs == 3:
            shutil.rmtree("runs")
    assert torch.equal(weights[1], weights[2])
    assert "checkpoint of step 15 saved in" in capsys.readouterr().out
