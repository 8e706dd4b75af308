"""What a trained segmenter is used for: scores, masks of pictures, an ONNX file."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from recipes.camouflage_runs import cod10k, quiet, tiny
from surefoot import cli
from surefoot.checkpoint import CheckpointStore
from surefoot.errors import CheckpointError, ConfigError, DataError, UsageError
from surefoot.recipes.camouflage.pictures import overlay
from surefoot.recipes.camouflage.predict import PredictConfig, predict
from surefoot.recipes.camouflage.segmenter import Segmenter


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quiet(tiny(tmp_path_factory.mktemp("trained") / "run", epochs=1, stage1_epochs=0))


@pytest.fixture(scope="module")
def onnx_file(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript", reason="needs the export extra")
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    arguments = ["export", "camouflage", "--checkpoint", str(run), "--out", str(path)]
    assert cli.main(arguments) == 0
    return path


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def picture(height: int = 40, width: int = 52) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_a_mask_has_the_pictures_size_and_is_that_of_the_network(run: Path) -> None:
    segmenter = Segmenter.load(run)
    mask = segmenter.mask(picture())
    assert (mask.shape, mask.dtype) == ((40, 52), np.float32)
    assert 0 <= mask.min() < mask.max() <= 1
    found = CheckpointStore(run / "checkpoints").best()
    assert found is not None
    assert f"({found.measured_on} weights)" in segmenter.source
    other = "model" if found.measured_on == "ema" else "ema"
    assert not np.array_equal(Segmenter.load(run, weights=other).mask(picture()), mask)


def test_what_is_no_picture_or_no_run_is_refused(run: Path, tmp_path: Path) -> None:
    segmenter = Segmenter.load(run)
    with pytest.raises(UsageError, match=r"shape \(4, 4\) and uint8; expected H W 3"):
        segmenter.mask(np.zeros((4, 4), np.uint8))
    with pytest.raises(CheckpointError, match=r"no weights 'swa'; it has \['ema', 'model'\]"):
        Segmenter.load(run, weights="swa")
    with pytest.raises(ConfigError, match=r"^--checkpoint .*is no run folder and no checkpoint"):
        Segmenter.load(tmp_path)
    with pytest.raises(ConfigError, match="there is no such file"):
        Segmenter.load(tmp_path / "none.onnx")


def test_eval_prints_the_table_and_writes_every_image(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = cod10k(tmp_path / "COD10K")
    out = tmp_path / "scores"
    arguments = [
        "eval", "camouflage", "--checkpoint", str(run), "--dataset_path", str(data), "--out",
        str(out),
    ]  # fmt: skip
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    rows = [line.split()[0] for line in said.splitlines() if line[:1].isalpha()]
    assert {"model", "nothing", "centre", "mean"} <= set(rows)
    assert "S above mean mask:" in said
    with (out / "COD10K.csv").open(encoding="utf-8") as file:
        images = list(csv.DictReader(file))
    assert len(images) == 6
    summary = json.loads((out / "scores.json").read_text(encoding="utf-8"))["sets"]["COD10K"]
    mean = sum(float(row["s_measure"]) for row in images) / 6
    assert summary["s_measure"] == pytest.approx(mean)
    assert size_of(out / "COD10K.png")[0] > 1000


def test_predict_writes_masks_overlays_and_both_and_leaves_out_what_is_damaged(
    run: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.fromarray(picture()).save(folder / "moth.png")
    Image.fromarray(picture(20, 30)).save(folder / "moth.jpg")
    (folder / "torn.jpg").write_bytes(b"\xff\xd8\xff no picture")
    (folder / "notes.txt").write_text("not a picture", encoding="utf-8")
    out = tmp_path / "out"
    config = PredictConfig(checkpoint=run, images=(folder,), out=out)
    written, problems = predict(config, progress=False)
    assert [path.name for path in written] == ["moth.png", "moth-2.png"]
    assert [problem for problem in problems if "torn.jpg" in problem] == problems != []
    with Image.open(out / "masks" / "moth-2.png") as image:
        mask = np.array(image)
    expected = Segmenter.load(run).mask(picture())
    np.testing.assert_array_equal(mask, (expected * 255).round().astype(np.uint8))
    with Image.open(out / "overlays" / "moth-2.png") as image:
        seen = np.array(image)
    np.testing.assert_array_equal(seen, overlay(picture(), expected))
    assert size_of(out / "side_by_side" / "moth-2.png") == (3 * 52, 40)


def test_predict_without_pictures_says_so(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there are no pictures"):
        predict(PredictConfig(checkpoint=run, images=(tmp_path,), out=tmp_path / "o"))
    (tmp_path / "torn.png").write_bytes(b"none")
    with pytest.raises(DataError, match="none of 1 pictures can be read"):
        predict(
            PredictConfig(checkpoint=run, images=(tmp_path,), out=tmp_path / "o"), progress=False
        )


def test_the_onnx_file_gives_the_same_masks(run: Path, onnx_file: Path) -> None:
    ours, theirs = Segmenter.load(run), Segmenter.load(onnx_file)
    assert theirs.size == ours.size
    np.testing.assert_allclose(theirs.mask(picture()), ours.mask(picture()), atol=1e-5)
    images = torch.rand(5, 3, 64, 64)  # another batch than it was exported with
    assert ours.masks is not None
    torch.testing.assert_close(theirs._logits(images), ours.masks.logits(images), atol=1e-4, rtol=0)


def test_a_wrong_export_or_file_is_refused(
    run: Path, onnx_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["export", "camouflage", "--checkpoint", str(run), "--out"]
    assert cli.main([*arguments, str(tmp_path / "model.pt")]) == 2
    assert "has to end in .onnx" in capsys.readouterr().err
    assert cli.main([*arguments, str(tmp_path / "m.onnx"), "--tolerance", "-1"]) == 2
    assert "m.onnx: was not written; it differs from the network by" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "torn.onnx").write_bytes(onnx_file.read_bytes()[:100])
    with pytest.raises(ConfigError, match="onnxruntime cannot read it"):
        Segmenter.load(tmp_path / "torn.onnx")
