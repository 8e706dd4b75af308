"""A run that is asked to stop, by real signals: it saves, says so, and loses nothing."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.kill import difference
from torch import nn

from surefoot import cli
from surefoot.checkpoint import (
    RESUMABLE,
    Checkpoint,
    CheckpointStore,
    Interrupted,
    Interruption,
)
from surefoot.errors import ConfigError
from surefoot.journal import Entry, JournalReader
from surefoot.recipes.averages import average_of
from surefoot.recipes.refdet import TrainConfig
from surefoot.recipes.refdet.train import train_on_folders
from surefoot.recipes.session import Session

ASKED_IN = """
import os, sys
from importlib import import_module
module, path, count, to, number = {moment!r}
*owners, name = path.split(".")
owner = import_module(module)
for one in owners:
    owner = getattr(owner, one)
real, calls = getattr(owner, name), []
def asked(*given, **named):
    calls.append(1)
    if len(calls) == count:
        os.kill(os.getpid() if to == "it" else 0, number)
    return real(*given, **named)
setattr(owner, name, asked)
from surefoot.cli import main
sys.exit(main({arguments!r}))
"""
MOMENTS: dict[str, tuple[tuple[str, str, int, str, int], int, list[str]]] = {
    "the start": (("surefoot.recipes.refdet.build", "build_model", 1, "it", signal.SIGTERM), 0, []),
    "a save": (("surefoot.checkpoint.store", "write_weights", 1, "it", signal.SIGUSR1), 3, []),
    "a validation": (
        ("surefoot.recipes.refdet.validate", "Detector.predict", 2, "it", signal.SIGTERM),
        3,
        [],
    ),
    "a step, and Ctrl-C reaches the loader's worker as well": (
        ("surefoot.recipes.refdet.learner", "Learner.terms", 5, "all", signal.SIGINT),
        5,
        ["--num_workers", "1"],
    ),
}


def newest(folder: Path) -> Checkpoint:
    found = CheckpointStore(folder / "checkpoints").newest()
    assert found is not None
    return found


def entries(folder: Path, kind: str) -> list[Entry]:
    return [entry for entry in JournalReader(folder / "journal.jsonl") if entry.kind == kind]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_flags: Callable[..., Any]) -> Path:
    """A run of 2 epochs of 3 steps that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole") / "a"
    assert cli.main(["train", "refdet", *tiny_flags(folder, "--epochs", "2")]) == 0
    return folder


@pytest.mark.parametrize("when", MOMENTS)
def test_a_run_asked_to_stop_saves_says_so_and_ends_as_if_it_had_not_been(
    when: str, whole: Path, tmp_path: Path, tiny_flags: Callable[..., Any]
) -> None:
    moment, step, more = MOMENTS[when]
    folder, name = tmp_path / "a", signal.Signals(moment[-1]).name
    arguments = ["train", "refdet", *tiny_flags(folder, "--epochs", "2", *more)]
    code = ASKED_IN.format(moment=(*moment[:-1], int(moment[-1])), arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True
    )
    assert done.returncode == RESUMABLE == 75, done.stderr
    assert done.stderr == ""
    saved = newest(folder)
    said = f"  {name}: step {step} is saved in {saved.path}. Go on with: surefoot train refdet"
    assert f"{said} --resume {folder}\n" in done.stdout
    assert saved.step == step
    assert [r.step for r in JournalReader(folder / "journal.jsonl").steps()] == list(range(step))
    (told,) = entries(folder, "interrupted")
    assert told.values | {"by": name, "step": step, "checkpoint": saved.path.name} == told.values
    assert not entries(folder, "stopped")
    assert cli.main(["train", "refdet", "--resume", str(folder)]) == 0
    assert difference(folder, whole) == ""
    assert len(entries(folder, "evaluation")) == 2


def test_a_run_that_is_over_is_not_interrupted(
    tmp_path: Path, tiny_config: Callable[..., TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    save = CheckpointStore.try_write

    def asked(self: CheckpointStore, *given: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return save(self, *given)

    monkeypatch.setattr(CheckpointStore, "try_write", asked)
    config = tiny_config(tmp_path / "a", max_steps=3)
    config = replace(config, data=replace(config.data, val_data_root=None))
    train_on_folders(config, stream=io.StringIO())
    assert newest(tmp_path / "a").step == 3


def test_without_room_for_the_checkpoint_the_older_one_is_named(
    tmp_path: Path,
    tiny_config: Callable[..., TrainConfig],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = io.StringIO()
    save = CheckpointStore.try_write
    failing = iter([False, True])

    def full_later(self: CheckpointStore, *given: Any) -> Any:
        if next(failing):
            self._check_space = no_space
        return save(self, *given)

    def no_space(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def asked(self: Any, *given: Any) -> Any:
        if next(steps) == 1:
            signal.raise_signal(signal.SIGUSR1)
        return write(self, *given)

    steps, write = iter(range(9)), Session.step
    monkeypatch.setattr(CheckpointStore, "try_write", full_later)
    monkeypatch.setattr(Session, "step", asked)
    config = tiny_config(tmp_path / "a", save_steps=1)
    with pytest.raises(Interrupted) as stopped:
        train_on_folders(config, stream=said)
    assert stopped.value.code == 75
    assert "checkpoint of step 2 could not be saved" in said.getvalue()
    assert re.search(
        r"SIGUSR1: step 1 is saved in .* \(1 step lost after it\)\. Go on", said.getvalue()
    )


# -- the class -----------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_second_signal_is_given_to_whoever_had_it_before() -> None:
    clock = Clock()
    with Interruption(clock=clock) as stop:
        signal.raise_signal(signal.SIGINT)
        clock.now = 0.9
        signal.raise_signal(signal.SIGTERM)  # a launcher that passes on what the terminal sent
        assert stop.requested
        assert stop.signal_name == "SIGINT"
        clock.now = 1.1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_handlers_from_before_are_back_whatever_happens() -> None:
    def own(*_: Any) -> None:
        raise AssertionError

    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        signal.signal(signal.SIGUSR1, own)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with Interruption() as stop:
            assert stop.armed
            signal.raise_signal(signal.SIGTERM)
            assert not stop.requested  # it was ignored, and is
        assert signal.getsignal(signal.SIGUSR1) is own
        with Interruption():
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # somebody else's, later
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_in_another_thread_it_warns_and_can_be_asked() -> None:
    found: list[Any] = []

    def elsewhere() -> None:
        with pytest.warns(RuntimeWarning, match="in the thread 'loop'.*request\\(\\)"):
            stop = Interruption().__enter__()
        found.extend([stop.armed, stop.requested])
        stop.request()
        found.extend([stop.requested, stop.signal_name])
        stop.__exit__(None, None, None)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=elsewhere, name="loop")
    thread.start()
    thread.join()
    assert found == [False, False, True, "SIGTERM"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_may_be_left_at_any_moment_is_left_at_once() -> None:
    with Interruption() as stop:
        with pytest.raises(Interrupted, match="SIGTERM"), stop.at_once():
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted), stop.at_once():
            pytest.fail("it was asked before")
        assert stop.requested
    with pytest.raises(ConfigError, match="ask_every=0"):
        Interruption(ask_every=0)


CHILDREN = """
import os, signal
from surefoot.checkpoint.signals import Interruption
def ends(*numbers):
    child = os.fork()
    if child == 0:
        for number in numbers:
            signal.raise_signal(number)
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
with Interruption(again_after=0.0) as stop:
    print(ends(signal.SIGINT, signal.SIGUSR1), ends(signal.SIGTERM), stop.requested, flush=True)
    signal.raise_signal(signal.SIGTERM)
    print(stop.requested, flush=True)
    signal.raise_signal(signal.SIGTERM)
    print("never")
"""


def test_children_are_left_alone_and_a_second_sigterm_ends_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", CHILDREN], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["7 -15 False", "True"]
    assert done.returncode == -signal.SIGTERM, done.stderr


RANKS = """
import os, signal, sys
import torch.distributed as dist
from surefoot.checkpoint.signals import Interruption
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)
stopped = {}
for every in (1, 4):
    with Interruption(ask_every=every) as stop:
        for step in range(20):
            if rank == 1 and step == 5:
                os.kill(os.getpid(), signal.SIGUSR1)
            if stop.requested:
                break
        print(step, stop.signal_name)
dist.destroy_process_group()
"""


def test_all_processes_stop_at_the_step_at_which_one_was_asked(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANKS, str(rank), str(tmp_path / "meet")],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(2)
    ]
    said = [rank.communicate(timeout=60)[0].splitlines() for rank in ranks]
    assert said == [["5 SIGUSR1", "7 SIGUSR1"]] * 2


# -- settings of saving --------------------------------------------------------------------------


@pytest.mark.parametrize("background", [False, True])
def test_checkpoints_come_every_so_many_steps_and_those_stay_that_were_asked_for(
    background: bool, whole: Path, tmp_path: Path, tiny_config: Callable[..., TrainConfig]
) -> None:
    config = tiny_config(
        tmp_path / "a", save_steps=2, keep_last=2, keep_every=4, save_in_background=background
    )
    train_on_folders(config, stream=io.StringIO())
    told = entries(tmp_path / "a", "checkpoint")
    assert [entry.values["step"] for entry in told] == [2, 3, 4, 6, 6]
    assert all(entry.values["failures"] == 0 for entry in told)
    kept = CheckpointStore(tmp_path / "a" / "checkpoints").listing(verify=True)
    steps = [one.manifest.step for one in kept if one.manifest and not one.problem]
    best = [one.manifest.step for one in kept if one.manifest and one.manifest.best]
    assert [step for step in steps if step not in best[:-1]][-3:] in ([4, 6, 6], [6, 6])
    assert 4 in steps
    assert difference(tmp_path / "a", whole) == ""


def test_the_average_s_decay_rises_only_where_it_is_asked_to() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    values: dict[bool, list[float]] = {}
    for warmup in (True, False):
        averaged = average_of(model, 0.9, warmup=warmup)
        averaged.update_parameters(model)
        values[warmup] = []
        for _ in range(2):
            moved = nn.Linear(1, 1, bias=False)
            nn.init.ones_(moved.weight)
            averaged.update_parameters(moved)
            values[warmup].append(averaged.module.weight.item())
    assert values[False] == pytest.approx([0.1, 0.19])
    assert values[True] == pytest.approx([1 - 2 / 11, 1 - 2 / 11 * 3 / 12])


def test_every_setting_of_saving_has_its_line_of_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "refdet", "--help"])
    said = re.sub(r"\s+", " ", re.sub(r"[│╭╮╰╯─]", " ", capsys.readouterr().out))
    for flag, words in {
        "--save-steps": "Optimizer steps between checkpoints",
        "--keep-last": "Newest checkpoints that are kept",
        "--keep-every": "kept for good",
        "--save-in-background": "in a thread while the training goes on",
        "--ema-warmup": "Let the decay rise",
    }.items():
        assert flag in said
        assert words in said


def test_a_setting_of_saving_that_cannot_work_is_refused() -> None:
    for flag, value in (("--save-steps", "-1"), ("--keep-last", "0"), ("--keep-every", "-5")):
        assert cli.main(["train", "refdet", flag, value]) == 2
