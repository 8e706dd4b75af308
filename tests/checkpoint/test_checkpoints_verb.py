"""``surefoot checkpoints RUN``."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from surefoot import cli
from surefoot.checkpoint import CheckpointStore

STORED = Path(__file__).with_name("data") / "format-1" / "00001-step-7"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with three checkpoints, the middle one of them the best."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    store = CheckpointStore(folder / "checkpoints")
    weight = torch.arange(6.0).reshape(2, 3)
    for step, metric in ((10, 0.25), (20, 0.75), (30, 0.5)):
        model = {"a": weight * step, "b": weight[0] * step}
        weights = {"model": model, "ema": {"a": weight + step}}
        store.save(step, {}, weights=weights, metric=metric, measured_on="ema", best=step == 20)
    return folder


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("inside", ["", "checkpoints"])
def test_a_table_of_what_is_there(
    run: Path, capsys: pytest.CaptureFixture[str], inside: str
) -> None:
    assert cli.main(["checkpoints", str(run / inside)]) == 0
    first, header, *rows, end, hint = lines(capsys)
    assert first.startswith(f"{run / 'checkpoints'}: 3 checkpoints, ")
    assert first.endswith("kB, none bad")
    assert header.split() == ["checkpoint", "saved", "metric", "weights", "size"]
    assert [row.split()[0] for row in rows] == [f"0000{n}-step-{n}0" for n in (1, 2, 3)]
    assert [row.split()[3:5] for row in rows] == [[f"{m}", "(ema)"] for m in (0.25, 0.75, 0.5)]
    assert [row.rpartition("kB")[2].strip() for row in rows] == ["whole", "whole, best", "whole"]
    assert end == "A run goes on from 00003-step-30."
    assert "--verify reads every byte" in hint


def test_verifying_finds_what_sizes_do_not_show(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run / "checkpoints" / "00003-step-30" / "ema.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (run / "checkpoints" / "00001-step-10" / "manifest.json").unlink()
    assert cli.main(["checkpoints", str(run)]) == 0
    assert "1 bad" in lines(capsys)[0]
    assert cli.main(["checkpoints", str(run), "--verify"]) == 1
    first, _, *rows, end = lines(capsys)
    assert first.endswith("2 bad")
    assert rows[0].endswith("BAD: manifest.json is missing")
    assert rows[1].endswith("good, best")
    assert rows[2].endswith("BAD: ema.safetensors is damaged (its checksum differs)")
    assert end == "A run goes on from 00002-step-20."


def test_where_all_are_bad_it_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (run / "checkpoints").glob("*/state.pt"):
        path.unlink()
    assert cli.main(["checkpoints", str(run)]) == 0
    assert "There is none to go on from." in lines(capsys)


def test_one_checkpoint_alone_and_a_file_of_torch_save(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["checkpoints", str(STORED)]) == 0
    assert lines(capsys) == [f"{STORED}: step 7, weights ema, model; every byte is what was saved."]
    torch.save({"w": torch.ones(1000)}, tmp_path / "last.pt")
    assert cli.main(["checkpoints", str(tmp_path / "last.pt")]) == 0
    (said,) = lines(capsys)
    assert re.fullmatch(r".*last\.pt: every byte of its \d+ records \(4\.\d kB\) is what .*", said)
    content = bytearray((tmp_path / "last.pt").read_bytes())
    content[2000] ^= 1
    (tmp_path / "last.pt").write_bytes(content)
    assert cli.main(["checkpoints", str(tmp_path / "last.pt")]) == 2
    assert "record last/data/0 is damaged" in capsys.readouterr().err


def test_a_folder_without_any_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["checkpoints", str(tmp_path)]) == 2
    assert "manifest.json is missing" in capsys.readouterr().err


def test_weights_of_the_best_are_written_for_other_programs(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "out" / "best.safetensors"
    assert cli.main(["checkpoints", str(run), "--export", str(to)]) == 0
    assert lines(capsys) == [f"{to}: the ema weights of 00002-step-20, 1 tensors, 0.00 M values."]
    assert load_file(to)["a"].tolist() == (torch.arange(6.0).reshape(2, 3) + 20).tolist()
    assert [path.name for path in to.parent.iterdir()] == ["best.safetensors"]
    assert cli.main(["checkpoints", str(run), "--export", str(to)]) == 2
    assert "is there already" in capsys.readouterr().err
    other = tmp_path / "model.safetensors"
    assert cli.main(["checkpoints", str(run), "--export", str(other), "--weights", "model"]) == 0
    assert set(load_file(other)) == {"a", "b"}


def test_tied_weights_are_exported_under_both_names(tmp_path: Path) -> None:
    shutil.copytree(STORED.parent, tmp_path / "checkpoints")
    to = tmp_path / "model.safetensors"
    arguments = ["checkpoints", str(tmp_path), "--export", str(to), "--weights", "model"]
    assert cli.main(arguments) == 0
    found = load_file(to)
    assert found["head.weight"].tolist() == found["embed.weight"].tolist()
    assert set(found) == {"embed.weight", "head.weight", "bias", "steps"}
