"""``surefoot train refdet`` end to end, at a size of seconds."""

from __future__ import annotations

import io
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from surefoot import cli
from surefoot.checkpoint import CheckpointStore
from surefoot.errors import CheckpointError, ConfigError, DataError, TrainingDiverged
from surefoot.journal import Entry, JournalReader, JournalWriter
from surefoot.recipes.refdet.build import Plan, warmup_cosine
from surefoot.recipes.refdet.sources import open_sources
from surefoot.recipes.refdet.train import Run, train, train_on_folders
from surefoot.records import StepRecord
from surefoot.shapes import Episode

KILLED_AT = """
import os, signal
from surefoot.journal import JournalWriter
write = JournalWriter.write
def kill_later(self, record, **more):
    write(self, record, **more)
    if record.step == {step}:
        os.kill(os.getpid(), signal.SIGKILL)
JournalWriter.write = kill_later
import torch
torch.set_num_threads(1)
from surefoot.cli import main
main({arguments!r})
"""


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_flags: Callable[..., Any]
) -> tuple[Path, str]:
    """A run of 2 epochs through the real command, and what it said."""
    folder = tmp_path_factory.mktemp("run") / "a"
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", said)
        assert cli.main(["train", "refdet", *tiny_flags(folder, "--epochs", "2")]) == 0
    return folder, said.getvalue()


def entries(folder: Path, kind: str) -> list[Entry]:
    return [entry for entry in JournalReader(folder / "journal.jsonl") if entry.kind == kind]


def test_a_run_leaves_settings_a_journal_and_checkpoints(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    assert json.loads((folder / "config.json").read_text("utf-8"))["episode"]["n_way"] == 2
    records = list(JournalReader(folder / "journal.jsonl").steps())
    assert [record.step for record in records] == [0, 1, 2, 3, 4, 5]
    assert all(record.applied for record in records)
    assert {term.name for term in records[0].terms} == {"bbox", "cls", "dfl", "supcon", "obj"}
    assert records[0].sample_ids[0].startswith("Object")
    newest = CheckpointStore(folder / "checkpoints").newest()
    assert newest is not None
    assert set(newest.weights) == {"model", "ema"}
    assert (newest.step, newest.measured_on) == (6, "ema")


def test_what_is_said_is_the_bar_of_the_original_and_every_figure(
    finished: tuple[Path, str],
) -> None:
    _, said = finished
    bar = r"Epoch 2/2: 100% 3/3 \[\d\d:\d\d<00:00, loss=[\d.]+, grad=[\d.]+\]"
    assert re.search(bar, said)
    assert re.search(r"loss \S+ = bbox \S+ x 2 = \S+  cls ", said)
    assert "(true, before clipping): mean" in said
    assert re.search(r"learning rate: rest \S+  rest.1d \S+ \| memory: host", said)
    assert re.search(r"held out \(ema weights, .*\): ST-IoU 0\.\d+, mAP50 ", said)


def test_every_epoch_and_measurement_is_in_the_journal(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    epochs, measured = entries(folder, "epoch"), entries(folder, "evaluation")
    assert [entry.values["epoch"] for entry in epochs] == [1, 2]
    for name in ("terms", "grad_norm_mean", "grad_norm_max", "learning_rates", "host_memory_mb"):
        assert name in epochs[0].values
    assert [entry.values["weights"] for entry in measured] == ["ema", "ema"]
    assert set(measured[0].values["right"]["per_video"]) == {"Object0_0", "Object1_0"}
    assert 0 < measured[0].values["threshold"] < 1


def test_the_best_checkpoint_is_the_one_with_the_best_held_out_figure(
    finished: tuple[Path, str],
) -> None:
    folder, _ = finished
    best = CheckpointStore(folder / "checkpoints").best()
    assert best is not None
    figures = [entry.values["right"]["st_iou"] for entry in entries(folder, "evaluation")]
    assert best.metric == pytest.approx(max(figures))


def weights(folder: Path, name: str) -> dict[str, Tensor]:
    newest = CheckpointStore(folder / "checkpoints").newest()
    assert newest is not None
    return newest.load_weights(name)


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
    """Bit for bit, through dicts and lists."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, Tensor):
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}[{key!r}]")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    else:
        assert ours == theirs, where


def test_a_run_killed_in_its_second_epoch_goes_on_as_if_nothing_had_been(
    tmp_path: Path, finished: tuple[Path, str], tiny_flags: Callable[..., Any]
) -> None:
    killed = tmp_path / "killed"
    flags = tiny_flags(killed, "--epochs", "2", "--seed", "0")
    code = KILLED_AT.format(step=4, arguments=["train", "refdet", *flags])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    with (killed / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"kind":"step","t":1.0,"st')  # as a kill within a write leaves it
    assert cli.main(["train", "refdet", "--resume", str(killed)]) == 0
    whole, _ = finished
    for name in ("model", "ema"):
        assert_same(weights(killed, name), weights(whole, name), name)
    ends = [CheckpointStore(f / "checkpoints").newest() for f in (killed, whole)]
    states = [end.load_state() for end in ends if end is not None]
    for part in ("epoch", "best", "learner", "rng"):
        assert_same(states[0][part], states[1][part], part)
    steps = [record.step for record in JournalReader(killed / "journal.jsonl").steps()]
    assert steps == [0, 1, 2, 3, 4, 3, 4, 5]
    assert [entry.values["epoch"] for entry in entries(killed, "continued")] == [1]


def damage(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_passed_over_and_said_so(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    damage(copy / "checkpoints" / "00002-step-6")
    assert cli.main(["train", "refdet", "--resume", str(copy)]) == 0
    said = capsys.readouterr().out
    assert re.search(r"passed over .*00002-step-6: ", said)
    assert "after epoch 1" in said
    assert_same(weights(copy, "model"), weights(finished[0], "model"))


def test_a_run_without_a_whole_checkpoint_cannot_go_on(
    finished: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished[0], copy)
    for checkpoint in (copy / "checkpoints").iterdir():
        damage(checkpoint)
    assert cli.main(["train", "refdet", "--resume", str(copy)]) == 2
    assert "every checkpoint is damaged" in capsys.readouterr().err
    shutil.rmtree(copy / "checkpoints")
    assert cli.main(["train", "refdet", "--resume", str(copy)]) == 2
    assert "the run has no checkpoint yet" in capsys.readouterr().err


def test_one_checkpoint_can_be_named(finished: tuple[Path, str], tmp_path: Path) -> None:
    first = finished[0] / "checkpoints" / "00001-step-3"
    flags = ["--resume", str(first), "--save_dir", str(tmp_path / "b")]
    assert cli.main(["train", "refdet", *flags]) == 0
    assert_same(weights(tmp_path / "b", "ema"), weights(finished[0], "ema"))


def test_a_file_that_is_no_checkpoint_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_flags: Callable[..., Any]
) -> None:
    (tmp_path / "best_model.pth").write_bytes(b"x")
    flags = tiny_flags(tmp_path / "a", "--checkpoint", str(tmp_path / "best_model.pth"))
    assert cli.main(["train", "refdet", *flags]) == 2
    assert "best_model.pth" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


def test_the_number_of_workers_changes_no_weight(
    tmp_path: Path, finished: tuple[Path, str], tiny_flags: Callable[..., Any]
) -> None:
    folder = tmp_path / "workers"
    flags = tiny_flags(folder, "--epochs", "2", "--num_workers", "2")
    assert cli.main(["train", "refdet", *flags]) == 0
    assert_same(weights(folder, "model"), weights(finished[0], "model"))


def test_a_finished_run_says_that_there_is_nothing_to_go_on_with(
    finished: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["train", "refdet", "--resume", str(finished[0])]) == 2
    assert "its 2 epochs are done, and --epochs" in capsys.readouterr().err


def test_a_run_goes_on_in_another_folder_with_other_settings(
    finished: tuple[Path, str], tmp_path: Path
) -> None:
    flags = ["--resume", str(finished[0]), "--save_dir", str(tmp_path / "b")]
    assert cli.main(["train", "refdet", *flags, "--epochs", "3", "--lr", "5e-4"]) == 0
    reader = JournalReader(tmp_path / "b" / "journal.jsonl")
    first, *_, last = reader.steps()
    assert (first.step, last.step) == (6, 8)
    assert max(first.learning_rates) == pytest.approx(5e-4 * warmup_cosine(Plan(3, 9, 4))(6))
    assert reader.run["changed"] == ["--epochs: 2 -> 3", "--lr: 0.001 -> 0.0005"]


def test_a_run_starts_from_the_weights_of_a_checkpoint_alone(
    finished: tuple[Path, str], tmp_path: Path, tiny_config: Callable[..., Any]
) -> None:
    config = tiny_config(tmp_path / "b", checkpoint=finished[0])
    run = Run(config, open_sources(config), io.StringIO())
    best = CheckpointStore(finished[0] / "checkpoints").best()
    assert best is not None
    with run.open():
        assert_same(dict(run.learner.weights()["model"]), best.load_weights("ema"))
    assert run.finished_epochs == 0
    assert run.learner.schedule.last_epoch == 0


def test_weights_of_another_network_are_refused(
    finished: tuple[Path, str], tmp_path: Path, tiny_config: Callable[..., Any]
) -> None:
    config = tiny_config(tmp_path / "b")
    run = Run(config, open_sources(config), io.StringIO())
    with pytest.raises(CheckpointError, match=r"1 are unknown to it .*--preset"):
        run.learner.load_weights(weights(finished[0], "model") | {"more": torch.zeros(1)})


def test_a_folder_with_a_run_is_not_written_over(
    finished: tuple[Path, str], tiny_config: Callable[..., Any]
) -> None:
    with pytest.raises(ConfigError, match=r"holds a run already\. Go on with it by --resume"):
        train_on_folders(tiny_config(finished[0]), stream=io.StringIO())


class Poisoned(torch.utils.data.Dataset[Episode]):
    """Episodes whose images are NaN where asked."""

    def __init__(self, inner: Any, bad: set[int]) -> None:
        self.inner, self.bad = inner, bad

    def __len__(self) -> int:
        return len(self.inner)

    def set_epoch(self, epoch: int) -> None:
        self.inner.set_epoch(epoch)

    def __getitem__(self, index: int) -> Episode:
        episode = self.inner[index]
        return replace(episode, images=episode.images * torch.nan) if index in self.bad else episode


def test_a_bad_episode_is_refused_counted_and_leaves_no_trace(
    tmp_path: Path, tiny_config: Callable[..., Any]
) -> None:
    config, said = tiny_config(tmp_path / "a"), io.StringIO()
    sources = open_sources(config)
    sources = replace(sources, episodes=Poisoned(sources.episodes, {1}))
    train(config, sources, stream=said)
    assert "skipped=1]" in said.getvalue()
    assert "refused 1 of 3 steps (1 x nonfinite_loss)" in said.getvalue()
    for tensor in weights(tmp_path / "a", "model").values():
        assert torch.isfinite(tensor).all()
    refused = [r for r in JournalReader(tmp_path / "a" / "journal.jsonl").steps() if r.refused]
    assert [record.step for record in refused] == [1, 4]
    assert all(record.sample_ids for record in refused)


def test_a_run_that_diverges_says_where_to_go_on(
    tmp_path: Path, tiny_config: Callable[..., Any]
) -> None:
    config = tiny_config(tmp_path / "a")
    sources = open_sources(config)
    run = Run(
        config, replace(sources, episodes=Poisoned(sources.episodes, {0, 1, 2})), io.StringIO()
    )
    object.__setattr__(run.learner.guard.policy, "max_consecutive_refusals", 3)

    def go() -> None:
        with run.open():
            run.train_epoch(0)

    with pytest.raises(TrainingDiverged) as stopped:
        go()
    assert "There is no checkpoint in" in stopped.value.__notes__[0]
    assert entries(tmp_path / "a", "stopped")[0].values["error"] == "TrainingDiverged"


def test_an_interrupt_says_where_to_go_on_and_leaves_a_whole_run(
    tmp_path: Path,
    tiny_flags: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write = JournalWriter.write

    def interrupted(self: JournalWriter, record: StepRecord, **more: Any) -> None:
        write(self, record, **more)
        if record.step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(JournalWriter, "write", interrupted)
    flags = tiny_flags(tmp_path / "a", "--epochs", "2")
    assert cli.main(["train", "refdet", *flags]) == 130
    said = capsys.readouterr().err
    assert "surefoot: interrupted: The last checkpoint is" in said
    assert f"surefoot train refdet --resume {tmp_path / 'a'}" in said
    assert entries(tmp_path / "a", "stopped")[0].values["error"] == "KeyboardInterrupt"


def test_max_steps_ends_the_run_within_an_epoch(
    tmp_path: Path, tiny_config: Callable[..., Any]
) -> None:
    config = tiny_config(tmp_path / "a", max_steps=4)
    train_on_folders(config, stream=io.StringIO())
    records = list(JournalReader(tmp_path / "a" / "journal.jsonl").steps())
    assert len(records) == 4


def test_accumulation_makes_a_step_of_the_last_partial_window(
    tmp_path: Path, tiny_config: Callable[..., Any]
) -> None:
    config = tiny_config(tmp_path / "a")
    config = replace(config, optimizer=replace(config.optimizer, gradient_accumulation=2))
    train_on_folders(config, stream=io.StringIO())
    verdicts = [r.verdict.value for r in JournalReader(tmp_path / "a" / "journal.jsonl").steps()]
    assert verdicts == ["accumulated", "applied", "applied"] * 2


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_trains_and_fp16_tells_its_loss_scale(
    tmp_path: Path, tiny_config: Callable[..., Any], precision: str
) -> None:
    config, said = tiny_config(tmp_path / "a"), io.StringIO()
    config = replace(config, hardware=replace(config.hardware, precision=precision))
    train_on_folders(config, stream=said)
    records = list(JournalReader(tmp_path / "a" / "journal.jsonl").steps())
    assert all(record.applied for record in records)
    assert ("loss scale 1024" in said.getvalue()) == (precision == "fp16")


def test_one_video_can_be_held_out_by_name(
    videos: Path, tmp_path: Path, tiny_config: Callable[..., Any]
) -> None:
    config = tiny_config(tmp_path / "a")
    data = replace(config.data, val_data_root=None, held_out=("Object1_0",))
    sources = open_sources(replace(config, data=data))
    assert sources.held_out is not None
    assert [video.id for video in sources.held_out.videos] == ["Object1_0"]
    assert sources.calibration is not None
    assert [video.id for video in sources.calibration.videos] == ["Object0_0", "Object2_0"]
    with pytest.raises(ConfigError, match="--held-out names every video"):
        open_sources(
            replace(config, data=replace(data, held_out=("Object0_0", "Object1_0", "Object2_0")))
        )


def test_a_missing_folder_is_named(tmp_path: Path, tiny_config: Callable[..., Any]) -> None:
    config = tiny_config(tmp_path / "a")
    config = replace(config, data=replace(config.data, data_root=tmp_path / "nothing"))
    with pytest.raises(DataError, match=r"nothing: no such folder"):
        train_on_folders(config)


def test_without_held_out_videos_nothing_is_measured_and_no_checkpoint_is_best(
    tmp_path: Path, tiny_config: Callable[..., Any]
) -> None:
    config = tiny_config(tmp_path / "a")
    config = replace(config, data=replace(config.data, val_data_root=None))
    outcome = train_on_folders(config, stream=io.StringIO())
    assert outcome.evaluation is None
    assert CheckpointStore(tmp_path / "a" / "checkpoints").best() is None
    assert weights(tmp_path / "a", "ema")
