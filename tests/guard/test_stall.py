"""A loop that stands still is told of once, with what everything waits in."""

from __future__ import annotations

import math
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from surefoot.errors import ConfigError
from surefoot.guard import Stall, StallWatch
from surefoot.guard.waiting import waits_in


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def steps(watch: StallWatch, clock: Clock, count: int, seconds: float) -> None:
    for _ in range(count):
        clock.now += seconds
        watch.step()
        assert watch.look() is None


def test_silence_is_told_once_and_again_only_after_twice_the_time(clock):
    watch = StallWatch(timeout=60.0, clock=clock)
    steps(watch, clock, 5, 0.5)
    told = []
    for second in range(1, 1000):
        clock.now += 1.0
        if watch.look() is not None:
            told.append(second)
    assert told == [60, 120, 240, 480, 960]


def test_a_slow_loop_is_given_twenty_of_its_own_steps(clock):
    watch = StallWatch(timeout=60.0, clock=clock)
    steps(watch, clock, 9, 10.0)
    clock.now += 199.0
    assert watch.look() is None
    clock.now += 1.0
    stall = watch.look()
    assert stall is not None
    assert str(stall).startswith("no step for 3 minutes; one usually takes 10 seconds. The loop")


def test_one_slow_step_does_not_make_the_watch_patient(clock):
    watch = StallWatch(timeout=60.0, clock=clock)
    steps(watch, clock, 9, 0.1)
    steps(watch, clock, 1, 59.0)
    clock.now += 60.0
    assert watch.look() is not None


def test_a_new_step_ends_a_stall_and_the_next_one_is_told_anew(clock):
    watch = StallWatch(timeout=60.0, clock=clock)
    steps(watch, clock, 3, 1.0)
    clock.now += 500.0
    assert watch.look() is not None
    steps(watch, clock, 1, 1.0)
    clock.now += 59.0
    assert watch.look() is None
    clock.now += 1.0
    assert watch.look() is not None


def test_a_first_step_that_never_comes_is_told_without_a_usual_length(clock):
    watch = StallWatch(timeout=60.0, clock=clock)
    clock.now += 61.0
    stall = watch.look()
    assert stall is not None
    assert math.isnan(stall.usual)
    assert str(stall).startswith("no step for 61 seconds. The loop waits in ")


def test_a_validation_is_no_stall_and_no_step(clock):
    watch = StallWatch(timeout=60.0, clock=clock)
    steps(watch, clock, 5, 4.0)
    with watch.paused():
        clock.now += 5000.0
        assert watch.look() is None
    clock.now += 79.0
    assert watch.look() is None
    clock.now += 1.0
    stall = watch.look()
    assert stall is not None
    assert (stall.seconds, stall.usual) == (80.0, 4.0)


def test_the_report_holds_the_stacks_of_all_threads(clock):
    inside, leave = threading.Event(), threading.Event()

    def a_call_with_a_name_of_its_own() -> None:
        inside.set()
        leave.wait(10.0)

    thread = threading.Thread(target=a_call_with_a_name_of_its_own, name="the loader")
    thread.start()
    inside.wait(10.0)
    watch = StallWatch(timeout=60.0, clock=clock)
    clock.now += 60.0
    looked: list[Stall] = []
    looker = threading.Thread(target=lambda: looked.append(watch.look()), name="looker")
    looker.start()
    looker.join(10.0)
    leave.set()
    thread.join(10.0)
    report = looked[0].report()
    assert "Thread the loader (" in report
    assert "a_call_with_a_name_of_its_own" in report
    assert report.index("Thread MainThread (") < report.index("Thread the loader (")
    assert "Thread looker (" not in report
    assert str(looked[0]) in report
    assert looked[0].to_dict()["stacks"] in report
    assert (looked[0].to_dict()["seconds"], looked[0].to_dict()["usual"]) == (60.0, None)
    assert "the_report_holds_the_stacks" in looked[0].waiting.line


def test_the_watch_runs_in_a_thread_of_its_own_and_is_gone_when_it_ends():
    told: list[Stall] = []
    arrived = threading.Event()

    def keep(stall: Stall) -> None:
        told.append(stall)
        arrived.set()

    before = threading.active_count()
    with StallWatch(timeout=0.01, on_stall=keep) as watch:
        assert watch.running
        assert watch.start() is watch
        assert threading.active_count() == before + 1
        assert arrived.wait(10.0)
    assert threading.active_count() == before
    assert not watch.running
    watch.stop()
    assert "the_watch_runs_in_a_thread" in told[0].waiting.line
    assert told[0].seconds >= 0.01


def test_without_a_receiver_the_report_goes_to_stderr(clock, capsys):
    watch = StallWatch(timeout=60.0, clock=clock)
    clock.now += 60.0
    watch._on_stall(watch.look())
    assert capsys.readouterr().err.startswith("surefoot: no step for 60 seconds. The loop waits in")


def test_a_timeout_that_cannot_work_is_named():
    with pytest.raises(ConfigError, match=r"timeout=0\.0: seconds, above 0"):
        StallWatch(timeout=0.0)


def until(word: str, thread: threading.Thread) -> str:
    """What the thread is in, once the word comes up in it; it may be a moment yet."""
    pause, found = threading.Event(), ""
    for _ in range(1000):
        found = str(waits_in(sys._current_frames()[thread.ident]))
        if word in found:
            break
        pause.wait(0.01)
    return found


class Standing(Dataset):
    """Its second sample waits until the test lets it go."""

    def __init__(self, at: object, gate: object) -> None:
        self.at, self.gate = at, gate

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        if index == 1:
            self.at.set()
            self.gate.wait(30.0)
        return index


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # forks beside threads
def test_a_loader_whose_worker_stands_still_is_recognised():
    context = torch.multiprocessing.get_context("fork")
    at, gate, ready = context.Event(), context.Event(), threading.Event()
    loader = DataLoader(
        Standing(at, gate), batch_size=1, num_workers=1, multiprocessing_context=context
    )

    def loop() -> None:
        for _ in loader:
            ready.set()

    thread = threading.Thread(target=loop)
    thread.start()
    assert ready.wait(30.0)
    assert at.wait(30.0)
    found = until("DataLoader", thread)
    gate.set()
    thread.join(30.0)
    assert found.startswith("the DataLoader's queue: no worker has sent a batch, called at ")
    assert "in loop: for _ in loader:" in found
    assert found.endswith("num_workers=0 shows the line")


def test_a_lock_is_recognised():
    at, gate = threading.Event(), threading.Event()

    def locked() -> None:
        at.set()
        gate.wait(30.0)

    thread = threading.Thread(target=locked)
    thread.start()
    assert at.wait(30.0)
    found = until("lock", thread)
    gate.set()
    thread.join(30.0)
    assert found.startswith("a lock (threading.wait), called at ")
    assert found.endswith("in locked: gate.wait(30.0)")


@pytest.mark.parametrize(
    ("path", "name", "what"),
    [
        ("torch/distributed/distributed_c10d.py", "all_reduce", "a collective (all_reduce)"),
        ("torch/nn/parallel/distributed.py", "_sync_buffers", "DistributedDataParallel's exchange"),
        ("torch/autograd/graph.py", "_engine_run_backward", "the backward pass"),
        ("torch/cuda/__init__.py", "synchronize", "the GPU"),
        ("torch/_dynamo/convert_frame.py", "_compile", "torch.compile: it compiles"),
        ("torch/_dynamo/eval_frame.py", "_fn", "a call that is not known"),
        ("site-packages/PIL/ImageFile.py", "load", "reading a file (ImageFile)"),
        ("lib/python3.11/ssl.py", "read", "the network (ssl)"),
        ("lib/python3.11/subprocess.py", "wait", "another program"),
        ("lib/python3.11/multiprocessing/connection.py", "recv", "another process"),
        ("lib/python3.11/multiprocessing/spawn.py", "spawn_main", "a call that is not known"),
    ],
)
def test_calls_that_loops_hang_in_are_recognised_by_file_and_function(path, name, what):
    source = f"def {name}(look):\n    return look()\n"
    space: dict[str, object] = {}
    exec(compile(source, f"/usr/lib/x/{path}", "exec"), space)
    found = space[name](lambda: waits_in(sys._getframe()))
    assert str(found).startswith(what)
    assert Path(__file__).name in found.line


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("value = loss.item()", "the device: a value is read from it"),
        ("data = open(path).read()", "reading a file"),
        ("time.sleep(5)", "a sleep"),
        ("total = 1 + 1", "a call that is not known"),
    ],
)
def test_calls_that_leave_no_frame_are_recognised_by_their_line(source, what, tmp_path):
    script = tmp_path / "loop.py"
    script.write_text(f"def loop(look):\n    return look()  # {source}\n")
    space: dict[str, object] = {}
    exec(compile(script.read_text(), str(script), "exec"), space)
    found = space["loop"](lambda: waits_in(sys._getframe(1)))
    assert found.what == what
    assert found.line == f"{script}:2 in loop: return look()  # {source}"
