"""Ultralytics' trainer on four drawn images, with the guard's callbacks."""

from __future__ import annotations

import math
import pickle
from contextlib import nullcontext

import numpy as np
import pytest
import torch

ultralytics = pytest.importorskip("ultralytics", reason="ultralytics is not installed")
images = pytest.importorskip("PIL.Image", reason="pillow is not installed")

from surefoot.errors import TrainingDiverged, UsageError  # noqa: E402
from surefoot.guard import Policy  # noqa: E402
from surefoot.integrations.ultralytics import attach, callbacks  # noqa: E402
from surefoot.journal import JournalReader  # noqa: E402
from surefoot.records import Cause  # noqa: E402
from surefoot.testing import bad_gradient  # noqa: E402

SMALL = """
nc: 1
backbone:
  - [-1, 1, Conv, [8, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
  - [-1, 1, Conv, [16, 3, 2]]
head:
  - [[1, 2], 1, Detect, [nc]]
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Four images with one bright box each, and a small net."""
    root = tmp_path_factory.mktemp("boxes")
    random = np.random.default_rng(0)
    for kind in ("images", "labels"):
        (root / kind).mkdir()
    for n in range(4):
        pixels = random.integers(0, 60, (64, 64, 3), dtype=np.uint8)
        pixels[16:48, 10 + n : 42 + n] = 200
        images.fromarray(pixels).save(root / "images" / f"{n}.png")
        (root / "labels" / f"{n}.txt").write_text(f"0 {(26 + n) / 64} 0.5 0.5 0.5\n")
    (root / "data.yaml").write_text(f"path: {root}\ntrain: images\nval: images\nnames: [box]\n")
    (root / "small.yaml").write_text(SMALL)
    return root


class Spoiler:
    """Makes one training batch NaN, or one gradient Inf; keeps the weights after every batch."""

    def __init__(self, *, image=None, gradient=None):
        self.image, self.gradient = image, gradient
        self.kept, self._batch = [], -1

    def add_to(self, model):
        model.add_callback("on_train_start", self.start)
        model.add_callback("on_train_batch_start", self.begin)
        model.add_callback("on_train_batch_end", self.end)
        return self

    def start(self, trainer):
        trainer.model.register_forward_pre_hook(self.spoil)

    def begin(self, trainer):
        self._batch += 1
        self._open = nullcontext()
        if self._batch == self.gradient:
            self._open = bad_gradient(trainer.model.model[1].conv.weight, math.inf)
        self._open.__enter__()

    def spoil(self, module, inputs):
        if module.training and isinstance(inputs[0], dict) and self._batch == self.image:
            inputs[0]["img"] = inputs[0]["img"] * math.nan

    def end(self, trainer):
        self._open.__exit__(None, None, None)
        now = {f"model.{k}": v.clone() for k, v in trainer.model.state_dict().items()}
        now |= {f"ema.{k}": v.clone() for k, v in trainer.ema.ema.state_dict().items()}
        self.kept.append(now)


def train(model, files, folder, **settings):
    random = ("mosaic", "hsv_h", "hsv_s", "hsv_v", "translate", "scale", "fliplr")
    model.train(
        **dict.fromkeys(random, 0.0),
        **{
            "data": str(files / "data.yaml"),
            "epochs": 2,
            "imgsz": 64,
            "batch": 2,
            "nbs": 2,
            "warmup_epochs": 0,
            "device": "cpu",
            "workers": 0,
            "amp": False,
            "plots": False,
            "pretrained": False,
            "verbose": False,
            "optimizer": "AdamW",
            "project": str(folder),
            **settings,
        },
    )
    return model.trainer


def small(files, spoiler=None, **settings):
    model = ultralytics.YOLO(files / "small.yaml", task="detect")
    spoiler = (spoiler or Spoiler()).add_to(model)
    attach(model, **settings)
    return model, spoiler


def same(ours, theirs):
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


def test_a_clean_run_is_the_same_to_the_bit(files, tmp_path):
    bare = ultralytics.YOLO(files / "small.yaml", task="detect")
    seen = Spoiler().add_to(bare)
    train(bare, files, tmp_path)
    model, spoiler = small(files)
    train(model, files, tmp_path)
    assert len(spoiler.kept) == len(seen.kept) == 4
    assert same(spoiler.kept[-1], seen.kept[-1]) == []


def test_a_nan_batch_moves_neither_weights_nor_average_and_costs_no_epoch(files, tmp_path, capsys):
    # The last batch of the second epoch: there Ultralytics by itself goes back to last.pt.
    model, spoiler = small(files, Spoiler(image=3))
    trainer = train(model, files, tmp_path)
    assert len(spoiler.kept) == 4
    assert same(spoiler.kept[3], spoiler.kept[2]) == []
    assert same(spoiler.kept[2], spoiler.kept[1]) != []
    assert (trainer.ema.updates, trainer.nan_recovery_attempts) == (3, 0)
    (refused,) = [r for r in JournalReader(trainer.save_dir / "journal.jsonl").steps() if r.refused]
    assert (refused.step, refused.cause) == (3, Cause.NONFINITE_LOSS)
    assert {t.name for t in refused.terms if math.isnan(t.raw)} >= {"box_loss", "cls_loss"}
    assert len(refused.sample_ids) == 2
    assert set(refused.sample_ids) < {f"{n}.png" for n in range(4)}
    assert "surefoot: 3 steps applied, 1 refused (1 nonfinite_loss)" in capsys.readouterr().err


def test_the_layer_is_named_though_ultralytics_clips(files, tmp_path):
    model, spoiler = small(files, Spoiler(gradient=0))
    trainer = train(model, files, tmp_path, epochs=1)
    first = next(JournalReader(trainer.save_dir / "journal.jsonl").steps())
    assert first.cause is Cause.NONFINITE_GRADIENT
    assert [(c.name, c.kind) for c in first.culprits] == [("model.1.conv.weight", "Inf")]
    assert same(spoiler.kept[1], spoiler.kept[0]) != []


class Stop(Exception):
    """What interrupts a run in a test."""


def test_counters_go_on_after_a_resume_and_the_trainer_is_its_own_again(files, tmp_path):
    def interrupt(trainer):
        if trainer.epoch == 1:
            raise Stop

    model, _ = small(files, Spoiler(image=0))
    model.add_callback("on_train_epoch_start", interrupt)
    with pytest.raises(Stop):
        train(model, files, tmp_path)
    trainer = model.trainer
    assert vars(trainer).keys().isdisjoint({"optimizer_step", "build_optimizer", "train"})
    assert "surefoot" not in vars(trainer.optimizer)
    again = ultralytics.YOLO(trainer.last)
    attach(again)
    again.train(resume=True)
    records = list(JournalReader(trainer.save_dir / "journal.jsonl").steps())
    assert [r.step for r in records] == [0, 1, 2, 3]
    assert (records[-1].applied_steps, records[-1].refused_steps) == (3, 1)


def test_a_run_that_diverges_stops(files, tmp_path):
    model, spoiler = small(files, Spoiler(image=1), policy=Policy.strict())
    with pytest.raises(TrainingDiverged, match="step 1: the step was refused"):
        train(model, files, tmp_path)
    assert len(spoiler.kept) == 1
    assert "surefoot" not in vars(model.trainer.optimizer)


def test_a_trainer_can_be_guarded_as_well(files, tmp_path):
    settings = {
        "model": str(files / "small.yaml"),
        "data": str(files / "data.yaml"),
        "epochs": 1,
        "imgsz": 64,
        "batch": 2,
        "nbs": 2,
        "workers": 0,
        "device": "cpu",
        "plots": False,
        "project": str(tmp_path),
    }
    trainer = ultralytics.models.yolo.detect.DetectionTrainer(overrides=settings)
    attach(trainer, clip=0.5)
    trainer.train()
    records = list(JournalReader(trainer.save_dir / "journal.jsonl").steps())
    assert [record.clip_coefficient < 1.0 for record in records] == [True, True]
    assert "train" not in vars(trainer)


def test_callbacks_that_wait_can_be_pickled_for_other_processes():
    again = pickle.loads(pickle.dumps(callbacks(clip=1.0, policy=Policy.strict())))
    assert again.keys() == callbacks().keys()


def test_misuse_is_answered_with_what_to_do():
    with pytest.raises(UsageError, match="a YOLO model or a trainer was expected, not Linear"):
        attach(torch.nn.Linear(1, 1))


def test_the_pages_snippet_runs_with_yolov8n_at_its_defaults(files, tmp_path, snippet, capsys):
    class Here(ultralytics.YOLO):
        def train(self, **settings):
            quiet = {"plots": False, "verbose": False, "workers": 0, "pretrained": False}
            super().train(**settings, **quiet, batch=2, nbs=4, device="cpu", project=str(tmp_path))

    names = snippet("Ultralytics", {"YOLO": Here, "data": str(files / "data.yaml")})
    folder = names["model"].trainer.save_dir
    (record,) = JournalReader(folder / "journal.jsonl").steps()
    assert (record.applied, record.micro_batches, len(record.sample_ids)) == (True, 2, 4)
    assert "surefoot: 1 step applied, 0 refused" in capsys.readouterr().err
