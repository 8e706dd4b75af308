"""Stage 1 on labelled images: trained, measured, resumed, and handed on to stage 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from recipes.labelled import CLASSES, write_coco, write_yolo
from surefoot.cli.main import main
from surefoot.data import DetectionBatch
from surefoot.recipes.refdet.base.data import cut_images, open_base_sources
from surefoot.recipes.refdet.base.learner import BaseLearner
from surefoot.recipes.refdet.base.train import BaseRun
from surefoot.recipes.refdet.build import Plan
from surefoot.recipes.refdet.config import TrainConfig
from surefoot.recipes.session import find_checkpoint
from surefoot.records import StepRecord

Flags = Callable[..., list[str]]


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two COCO files: 16 images to learn from, 8 others to measure on."""
    root = tmp_path_factory.mktemp("coco")
    training = write_coco(root / "train", images=16)
    return training, write_coco(root / "val", images=8, first=100)


@pytest.fixture(scope="module")
def flags(coco: tuple[Path, Path]) -> Flags:
    def made(folder: Path, *more: str) -> list[str]:
        return [
            "train", "refdet", "--stage", "1", "--preset", "pocket", "--data", str(coco[0]),
            "--val-data", str(coco[1]), "--image-size", "64", "--batch-size", "8", "--epochs", "2",
            "--num-workers", "0", "--device", "cpu", "--precision", "fp32",
            "--save-dir", str(folder), *more,
        ]  # fmt: skip

    return made


@pytest.fixture(scope="module")
def finished(flags: Flags, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "run"
    assert main(flags(folder)) == 0
    return folder


def last_weights(folder: Path, name: str = "model", *, best: bool = False):
    return find_checkpoint(folder, best=best)[0].load_weights(name)


def test_a_run_learns_classes_and_is_measured_as_coco_does(finished):
    entries = [json.loads(line) for line in (finished / "journal.jsonl").read_text().splitlines()]
    steps = [entry for entry in entries if entry["kind"] == "step"]
    assert len(steps) == 4
    assert [name for name, *_ in steps[0]["terms"]] == ["bbox", "cls", "dfl"]
    measured = [entry for entry in entries if entry["kind"] == "evaluation"]
    assert [set(entry) >= {"map", "map50", "map75"} for entry in measured] == [True, True]
    config = TrainConfig.load(finished / "config.json")
    assert config.run.stage == 1
    assert config.model.classes == len(CLASSES)
    names = set(last_weights(finished))
    assert {name.partition(".")[0] for name in names} == {"backbone", "standard"}


def test_the_terms_start_where_an_untrained_head_has_them(coco, tmp_path):
    config = TrainConfig.for_stage(1)
    learner = BaseLearner(
        TrainConfig.from_dict(
            config.to_dict()
            | {"model": {"preset": "pocket", "classes": 2}, "data": {"data": str(coco[0])}}
        ),
        Plan(1, 1, 0),
        torch.device("cpu"),
        None,
    )
    torch.manual_seed(0)
    batch = DetectionBatch(
        images=torch.rand(2, 3, 64, 64),
        sample_ids=("a", "b"),
        boxes=torch.tensor([[8.0, 8.0, 40.0, 40.0], [10.0, 4.0, 50.0, 44.0]]),
        box_image=torch.tensor([0, 1]),
        box_class=torch.tensor([0, 1]),
    )
    terms = learner.terms(batch)
    assert set(terms.names) == {"bbox", "cls", "dfl"}
    terms.total.backward()
    silent = [n for n, p in learner.model.named_parameters() if p.grad is None]
    assert silent == []
    first, second = cut_images(batch)
    assert first.batch.sample_ids == ("a",)
    assert second.batch.box_image.tolist() == [0]
    assert torch.equal(second.batch.boxes, batch.boxes[1:])
    assert (first.weight, second.weight) == (0.5, 0.5)
    assert cut_images(first.batch) == []


def test_a_run_that_was_stopped_ends_bit_for_bit_where_the_other_did(flags, finished, tmp_path):
    folder = tmp_path / "run"

    class Stop(Exception):
        pass

    def stop(self: BaseRun, record: StepRecord) -> None:
        if record.step == 2:
            raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseRun, "stepped", stop)
        with pytest.raises(Stop):
            main(flags(folder, "--save-steps", "1"))
    assert main(["train", "refdet", "--resume", str(folder)]) == 0
    for name in ("model", "ema"):
        whole, resumed = last_weights(finished, name), last_weights(folder, name)
        assert [n for n in whole if not torch.equal(whole[n], resumed[n])] == []


def test_stage_2_starts_from_its_backbone(finished, tiny_flags, tmp_path, capsys):
    folder = tmp_path / "run"
    more = ["--epochs", "1", "--checkpoint", str(finished), "--lr", "1e-12", "--max-steps", "1"]
    assert main(["train", "refdet", *tiny_flags(folder, *more)]) == 0
    said = capsys.readouterr().out
    assert f"Starting from {finished}" in said
    assert "left out: standard" in said
    assert "not in them: " in said
    base, here = last_weights(finished, "ema", best=True), last_weights(folder)
    backbone = [name for name in base if name.startswith("backbone") and "running" not in name]
    assert len(backbone) > 20
    for name in backbone:
        if base[name].is_floating_point():
            torch.testing.assert_close(here[name], base[name], rtol=0, atol=1e-6)


def test_a_dual_head_keeps_the_standard_head_of_stage_1(finished, tiny_flags, tmp_path):
    folder = tmp_path / "run"
    more = [
        "--epochs", "1", "--checkpoint", str(finished), "--head", "dual", "--classes", "2"
    ]  # fmt: skip
    assert main(["train", "refdet", *tiny_flags(folder, *more)]) == 0
    base, here = last_weights(finished, "ema", best=True), last_weights(folder)
    standard = [name for name in base if name.startswith("standard")]
    assert len(standard) > 4
    for name in standard:
        assert torch.equal(here[name], base[name]), name


def test_a_yolo_set_brings_its_own_val_split(tmp_path):
    data = write_yolo(tmp_path / "set", training=6, held_out=4)
    config = TrainConfig.from_dict(
        TrainConfig.for_stage(1).to_dict()
        | {"data": {"data": str(data)}, "model": {"preset": "pocket"}}
    )
    sources = open_base_sources(config)
    assert sources.classes == CLASSES
    assert len(sources.training) == 6
    assert sources.held_out is not None
    assert len(sources.held_out) == 4
    assert "6 images with 6 boxes of 2 classes" in sources.report


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "1"], "--stage 1 learns from labelled images: give --data instances.json"),
        (["--stage", "1", "--data", "set.txt"], "is neither procedural nor a file that ends in"),
        (["--stage", "1", "--data", "nowhere.json"], "nowhere.json"),
        (["--mosaic", "2"], "--mosaic 2.0: has to be a share from 0 to 1"),
    ],
)
def test_what_cannot_work_is_refused_by_name(arguments, message, capsys):
    assert main(["train", "refdet", *arguments]) != 0
    assert message in capsys.readouterr().err


def test_held_out_images_of_other_classes_are_refused(coco, tmp_path, capsys):
    other = write_coco(tmp_path / "other", images=4)
    content = json.loads(other.read_text())
    content["categories"][0]["name"] = "triangle"
    other.write_text(json.dumps(content))
    arguments = ["--stage", "1", "--data", str(coco[0]), "--val-data", str(other)]
    assert main(["train", "refdet", *arguments]) != 0
    assert "its classes are triangle, disc; those of" in capsys.readouterr().err


def test_an_image_that_is_spoilt_meanwhile_is_named_and_the_run_goes_on(
    flags, coco, tmp_path, capsys, monkeypatch
):
    root = tmp_path / "set"
    shutil.copytree(coco[0].parent, root)

    def spoil(self: BaseRun, epoch: int) -> None:
        if epoch == 1:
            broken = root / "images" / "5.png"
            broken.write_bytes(broken.read_bytes()[:200])

    monkeypatch.setattr(BaseRun, "begin_epoch", spoil)
    arguments = flags(tmp_path / "run", "--data", str(root / "instances.json"), "--mosaic", "0")
    assert main([*arguments, "--cache-mb", "0"]) == 0
    lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    told = [entry for entry in map(json.loads, lines) if entry["kind"] == "data"]
    assert [entry["sample"] for entry in told] == ["5.png"]
    assert "5.png: " in capsys.readouterr().out
