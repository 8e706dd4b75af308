"""Which device and which precision a run takes, and what it says of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from surefoot.checkpoint import CheckpointStore
from surefoot.errors import ConfigError
from surefoot.guard import Growth
from surefoot.journal import JournalReader
from surefoot.recipes.hardware import choose_amp, choose_device
from surefoot.recipes.refdet import TrainConfig
from surefoot.recipes.refdet.learner import Learner
from surefoot.recipes.refdet.train import train_on_folders
from surefoot.shapes import Episode, LossTerms

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def machine(monkeypatch: pytest.MonkeyPatch, name: str, *, bf16: bool) -> None:
    """As if there were this GPU, and a processor that has bf16 or not."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(ConfigError, match="--device gpu: is no device"):
        choose_device("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing")
def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="--device cuda:3: 0 CUDA devices are visible"):
        choose_device("cuda:3")


@pytest.mark.parametrize(
    ("bf16", "amp", "why"),
    [(True, "bf16", "this CPU computes in bf16"), (False, None, "this CPU has no bf16 of its own")],
)
def test_a_cpu_takes_bf16_only_where_it_has_it(
    monkeypatch: pytest.MonkeyPatch, bf16: bool, amp: str | None, why: str
) -> None:
    machine(monkeypatch, "", bf16=bf16)
    assert choose_amp("auto", CPU) == (amp, why)


@pytest.mark.parametrize(
    ("name", "bf16", "amp"),
    [
        ("NVIDIA H200", True, "bf16"),
        ("NVIDIA T4", False, "fp16"),
        ("Tesla T4", False, "fp16"),
        ("Tesla V100-SXM2-16GB", False, "fp16"),
        ("Quadro RTX 4000", False, "fp16"),
        ("NVIDIA GeForce RTX 2060", False, "fp16"),
        ("NVIDIA GeForce GTX 1080 Ti", False, "fp16"),
        ("NVIDIA GeForce GTX 1650", False, None),
        ("NVIDIA GeForce GTX 1660 SUPER", False, None),
        ("GeForce GTX 1630", False, None),
        ("NVIDIA T400 4GB", False, None),
        ("NVIDIA T550 Laptop GPU", False, None),
        ("NVIDIA T600", False, None),
        ("Quadro T1000 with Max-Q Design", False, None),
        ("NVIDIA T1200 Laptop GPU", False, None),
        ("Quadro T2000", False, None),
        ("NVIDIA GeForce MX450", False, None),
        ("Tesla K40m", False, None),
    ],
)
def test_a_gpu_takes_bf16_else_fp16_and_never_fp16_where_it_is_broken(
    monkeypatch: pytest.MonkeyPatch, name: str, bf16: bool, amp: str | None
) -> None:
    machine(monkeypatch, name, bf16=bf16)
    chosen = choose_amp("auto", CUDA)
    assert chosen.amp == amp
    assert name in chosen.reason
    assert ("its convolutions in fp16 give NaN" in chosen.reason) == (amp is None)


def test_what_is_asked_for_is_taken_and_its_price_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "NVIDIA GeForce GTX 1650", bf16=False)
    assert choose_amp("fp32", CUDA) == (None, "as asked")
    fp16, bf16 = choose_amp("fp16", CUDA), choose_amp("bf16", CPU)
    assert (fp16.amp, bf16.amp) == ("fp16", "bf16")
    assert "as asked, but convolutions in fp16 give NaN on NVIDIA GeForce GTX 1650" in fp16.reason
    assert bf16.reason == "as asked, but this CPU only emulates it, and float32 is faster there"
    assert choose_amp("fp16", CPU).reason == "as asked"


def entries(folder: Path, kind: str) -> list[dict[str, Any]]:
    journal = JournalReader(folder / "journal.jsonl")
    return [dict(entry.values) for entry in journal if entry.kind == kind]


def asking(config: TrainConfig, precision: str, **more: Any) -> TrainConfig:
    return replace(config, hardware=replace(config.hardware, precision=precision, **more))


def without_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if an operation of the model did not exist in half precision."""
    terms = Learner.terms

    def in_float32_only(learner: Learner, episode: Episode) -> LossTerms:
        if torch.is_autocast_enabled("cpu"):
            raise NotImplementedError("\"roi_align\" not implemented for 'Half'")
        return terms(learner, episode)

    monkeypatch.setattr(Learner, "terms", in_float32_only)


def finished(config: TrainConfig) -> tuple[str, dict[str, Tensor]]:
    """What the run said, and the weights and averages that it left."""
    said = io.StringIO()
    outcome = train_on_folders(config, stream=said)
    newest = CheckpointStore(outcome.folder / "checkpoints").newest()
    assert newest is not None
    return said.getvalue(), {
        f"{kind} {name}": tensor
        for kind in ("model", "ema")
        for name, tensor in newest.load_weights(kind).items()
    }


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_the_pocket_model_is_healthy_in_half_precision_and_the_journal_says_how_near(
    tmp_path: Path, tiny_config: Callable[..., TrainConfig], precision: str
) -> None:
    said, _ = finished(asking(tiny_config(tmp_path / "a", max_steps=1), precision))
    (event,) = entries(tmp_path / "a", "precision")
    assert (event["asked"], event["chosen"], len(event["trials"])) == (precision, precision, 1)
    assert event["trials"][0]["deviation"]["cosine"] > 0.98
    assert f"\nPrecision {precision}: {precision} agrees with float32 on the first batch" in said
    assert f"on cpu in {precision} (as asked" in said


def test_a_run_that_falls_back_is_the_run_in_float32_to_the_bit(
    tmp_path: Path, tiny_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, exact = finished(tiny_config(tmp_path / "exact"))
    without_half(monkeypatch)
    monkeypatch.setattr("surefoot.guard.precision.has_bf16", lambda device: False)
    said, weights = finished(asking(tiny_config(tmp_path / "fell"), "fp16"))
    assert 'Precision fp32 instead of fp16: fp16 cannot be computed ("roi_align" not' in said
    assert "bf16 is only emulated on this CPU" in said
    (event,) = entries(tmp_path / "fell", "precision")
    assert (event["chosen"], event["why"]) == ("fp32", "as asked")
    assert same(weights, exact)
    records = list(JournalReader(tmp_path / "fell" / "journal.jsonl").steps())
    assert [(r.applied, r.loss_scale) for r in records] == [(True, 1.0)] * 6


def test_a_resumed_run_falls_back_again_and_goes_on_where_it_was(
    tmp_path: Path, tiny_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_half(monkeypatch)
    monkeypatch.setattr("surefoot.guard.precision.has_bf16", lambda device: False)
    whole = asking(tiny_config(tmp_path / "whole"), "fp16")
    _, expected = finished(whole)
    first, *_ = sorted(p for p in (tmp_path / "whole" / "checkpoints").iterdir() if p.is_dir())
    resumed = replace(whole, run=replace(whole.run, resume=first, save_dir=tmp_path / "resumed"))
    _, weights = finished(resumed)
    assert same(weights, expected)
    assert len(entries(tmp_path / "resumed", "precision")) == 1
    records = list(JournalReader(tmp_path / "resumed" / "journal.jsonl").steps())
    assert [(r.step, r.applied_steps) for r in records] == [(3, 4), (4, 5), (5, 6)]


def test_the_check_can_be_turned_off_and_float32_needs_none(
    tmp_path: Path, tiny_config: Callable[..., TrainConfig]
) -> None:
    unchecked = asking(tiny_config(tmp_path / "a", max_steps=1), "bf16", check_precision=False)
    said, _ = finished(unchecked)
    assert entries(tmp_path / "a", "precision") == []
    assert "\nPrecision" not in said
    finished(tiny_config(tmp_path / "b", max_steps=1))
    assert entries(tmp_path / "b", "precision") == []


def test_growing_memory_is_printed_once_and_written_to_the_journal(
    tmp_path: Path, tiny_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    growth = Growth("host", 2.0**21, 900.0, 600.0, became_more=("8 more Tensor in a list",))

    class Grows:
        def __init__(self, *, allowance: float) -> None:
            self.warnings = iter([None, growth])
            assert allowance == 512 * 2**20

        def step(self) -> Growth | None:
            return next(self.warnings, None)

    monkeypatch.setattr("surefoot.recipes.program.MemoryWatch", Grows)
    said, _ = finished(tiny_config(tmp_path / "a"))
    assert said.count("host memory grows by 2.00 MB a step") == 1
    (event,) = entries(tmp_path / "a", "memory")
    assert (event["where"], event["steps_left"]) == ("host", 900.0)
    assert event["became_more"] == ["8 more Tensor in a list"]
