"""The detector as ONNX files: they say what the network says, and are refused where they do not."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recipes.refdet_runs import frames_in, one, photos, picture, two_steps
from surefoot import cli
from surefoot.errors import ConfigError
from surefoot.models import References
from surefoot.recipes.refdet import TrainConfig
from surefoot.recipes.refdet.engines import OnnxEngine, references_file
from surefoot.recipes.refdet.finder import ReferenceDetector
from surefoot.recipes.refdet.predict import PredictConfig, predict


@pytest.fixture(scope="module")
def run(tiny_config: Callable[..., TrainConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_steps(tiny_config, tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="module")
def onnx_file(run: Path, videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxscript", reason="needs the export extra")
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    clip = str(one(videos) / "frames")
    words = ["export", "refdet", "--checkpoint", str(run), "--out", str(path), "--video", clip]
    assert cli.main(words) == 0
    return path


def test_the_onnx_files_find_the_same(run: Path, onnx_file: Path, videos: Path) -> None:
    ours, theirs = ReferenceDetector.load(run), ReferenceDetector.load(onnx_file)
    assert isinstance(theirs.engine, OnnxEngine)
    assert replace(theirs.engine.traits, source=ours.source) == ours.engine.traits
    pictures = [picture(seed=seed) for seed in range(5)]
    files = photos(videos)
    found = [
        list(d.candidates(pictures, d.references([files, files[:1], files]), limit=1))
        for d in (ours, theirs)
    ]
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)
        np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-2)


def test_whatever_tensors_references_have_go_through_the_files(onnx_file: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    detect = onnxruntime.InferenceSession(str(onnx_file))
    encode = onnxruntime.InferenceSession(str(references_file(onnx_file)))
    made = {value.name for value in encode.get_outputs()}
    wanted = {value.name for value in detect.get_inputs()} - {"images"}
    assert "tokens" in made
    assert wanted <= made <= {field.name for field in fields(References)}
    meta = detect.get_modelmeta().custom_metadata_map
    assert (meta["image_size"], meta["support_size"], meta["k_shot"]) == ("64", "32", "3")
    assert meta["strides"] == "8"


def test_predict_runs_from_the_onnx_files_alone(
    onnx_file: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *_: pytest.fail("a torch module ran"))
    config = PredictConfig(
        checkpoint=onnx_file, references=tuple(photos(videos)), video=one(videos) / "frames",
        out=tmp_path / "o.mp4", threshold=0.0, smooth="viterbi",
    )  # fmt: skip
    done = predict(config, stream=io.StringIO())
    assert done.frames == len(frames_in(done.out)[0]) == 8


def test_a_wrong_export_or_file_is_refused(
    run: Path,
    onnx_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["export", "refdet", "--checkpoint", str(run), "--out"]
    assert cli.main([*words, str(tmp_path / "model.pt")]) == 2
    assert "has to end in .onnx" in capsys.readouterr().err

    def copied(model: object, traits: object, paths: tuple[Path, Path]) -> None:
        for made, path in zip((onnx_file, references_file(onnx_file)), paths, strict=True):
            path.write_bytes(made.read_bytes())

    monkeypatch.setattr("surefoot.recipes.refdet.export._write", copied)
    assert cli.main([*words, str(tmp_path / "m.onnx"), "--tolerance", "-1"]) == 2
    assert "was not written; it differs from the network by" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    twice = ["export", "refdet", "--checkpoint", str(onnx_file), "--out", str(tmp_path / "m.onnx")]
    assert cli.main(twice) == 2
    assert "is an ONNX file already" in capsys.readouterr().err
    (tmp_path / "torn.onnx").write_bytes(onnx_file.read_bytes()[:100])
    with pytest.raises(ConfigError, match="onnxruntime cannot read it"):
        ReferenceDetector.load(tmp_path / "torn.onnx")
    with pytest.raises(ConfigError, match="expected the detector half"):
        ReferenceDetector.load(references_file(onnx_file))
    (tmp_path / "alone.onnx").write_bytes(onnx_file.read_bytes())
    with pytest.raises(ConfigError, match=r"alone\.references\.onnx is not beside it"):
        ReferenceDetector.load(tmp_path / "alone.onnx")


def test_halves_of_two_exports_and_files_of_others_are_refused(
    onnx_file: Path, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_file.read_bytes())
    half = onnx.load(references_file(onnx_file))
    next(entry for entry in half.metadata_props if entry.key == "pair").value = "another"
    onnx.save(half, references_file(path))
    with pytest.raises(ConfigError, match="are of two exports; take both of the same one"):
        ReferenceDetector.load(path)
    del half.metadata_props[:]
    onnx.save(half, tmp_path / "other.onnx")
    with pytest.raises(ConfigError, match=r"of another program \(its inputs: photos\)"):
        ReferenceDetector.load(tmp_path / "other.onnx")
