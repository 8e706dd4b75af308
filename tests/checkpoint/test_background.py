"""Saving in a thread: the same bytes, of the moment of the call, and nothing silent."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from surefoot.checkpoint import BackgroundSaver, CheckpointStore, SaveOutcome
from surefoot.checkpoint import store as store_module
from surefoot.checkpoint.draft import Draft
from surefoot.checkpoint.staging import Staging
from surefoot.errors import CheckpointError, UsageError

Weights = dict[str, dict[str, Tensor]]
SMALL: Weights = {"model": {"w": torch.ones(3)}}


def a_run() -> tuple[nn.Module, torch.optim.Optimizer, dict[str, Any], dict[str, Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
    model[2].bias = model[0].bias  # tied
    model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    state = {
        "optimizer": optimizer.state_dict(),
        "nested": OrderedDict(a=[torch.arange(3), (torch.tensor(True), None)], b="text"),
        "counter": Counter("abca"),
        "rng": torch.get_rng_state(),
        "part": torch.arange(10.0)[2:5],
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "parameter": nn.Parameter(torch.ones(2), requires_grad=False),
        "empty": torch.empty(0, 3),
    }
    return model, optimizer, state, {"model": model.state_dict()}


def test_it_is_the_checkpoint_that_would_have_been_written_at_once(tmp_path: Path) -> None:
    model, optimizer, state, weights = a_run()
    at_once, later = CheckpointStore(tmp_path / "a"), CheckpointStore(tmp_path / "b")
    for _ in range(2):  # the second time into the memory of the first
        at_once.save(7, state, weights=weights, metric=0.5, best=True)
        with BackgroundSaver(later) as saver:
            saver.save(7, state, weights=weights, metric=0.5, best=True)
            before = {name: value.clone() for name, value in model.state_dict().items()}
            model(torch.randn(2, 3, 8, 8)).sum().backward()
            optimizer.step()
        one, other = at_once.newest(), later.newest()
        assert one is not None
        assert other is not None
        assert (one.metric, one.manifest.best) == (other.metric, other.manifest.best)
        assert_same(other.load_state(), one.load_state())
        loaded = other.load_weights()
        assert_same(loaded, one.load_weights())
        torch.testing.assert_close(loaded, before, rtol=0, atol=0)
        assert loaded["0.bias"] is loaded["2.bias"]


def assert_same(got: Any, expected: Any) -> None:
    assert type(got) is type(expected)
    if isinstance(expected, Tensor):
        assert got.stride() == expected.stride()
        assert torch.equal(got, expected)
    elif isinstance(expected, dict):
        assert list(got) == list(expected)
        for name in expected:
            assert_same(got[name], expected[name])
    elif isinstance(expected, list | tuple):
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other)
    else:
        assert got == expected


def test_what_is_staged_no_longer_changes_and_uses_the_same_memory_again() -> None:
    _, _, state, weights = a_run()
    state["itself"] = state
    staging = Staging()
    places = []
    for number in range(3):
        state["part"].fill_(number)
        copied = staging.copy(Draft(state, weights, {"step": number}))
        state["part"].fill_(99)
        assert copied.state["part"].tolist() == [number] * 3
        assert copied.state["itself"]["itself"] is copied.state["itself"]
        assert copied.weights["model"]["0.bias"] is copied.weights["model"]["2.bias"]
        assert isinstance(copied.state["parameter"], nn.Parameter)
        places.append(copied.weights["model"]["0.weight"].data_ptr())
    assert len(set(places)) == 1
    assert places[0] != weights["model"]["0.weight"].data_ptr()
    grown = {"model": {"0.weight": torch.ones(9)}}
    assert staging.copy(Draft({}, grown, {"step": 9})).weights["model"]["0.weight"].shape == (9,)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Nothing is written until it is set."""
    gate = threading.Event()
    write = store_module.write_state

    def wait_and_write(*arguments: Any) -> None:
        assert gate.wait(10)
        write(*arguments)

    monkeypatch.setattr(store_module, "write_state", wait_and_write)
    return gate


def test_the_training_goes_on_and_the_next_save_waits(
    store: CheckpointStore, held: threading.Event
) -> None:
    told: list[SaveOutcome] = []
    saver = BackgroundSaver(store, on_outcome=told.append)
    saver.save(1, {}, weights=SMALL)
    assert not list(store.folder.glob("0*"))
    saver.poll()
    assert told == []
    threading.Timer(0.05, held.set).start()
    saver.save(2, {}, weights=SMALL)
    assert [outcome.step for outcome in told] == [1]
    saver.close()
    saver.close()
    assert [outcome.step for outcome in told] == [1, 2]
    assert all(outcome.saved for outcome in told)


def test_a_save_that_failed_is_raised_at_the_next_one_or_at_the_end(store: CheckpointStore) -> None:
    store.folder.write_text("in the way")
    saver = BackgroundSaver(store)
    saver.save(1, {}, weights=SMALL)
    with pytest.raises(CheckpointError, match=r"checkpoint of step 1 could not be saved.*exists"):
        saver.save(2, {}, weights=SMALL)
    saver.save(3, {}, weights=SMALL)
    with pytest.raises(CheckpointError, match="checkpoint of step 3"):
        saver.close()
    store.folder.unlink()
    with saver:
        saver.save(4, {}, weights=SMALL)
    assert store.newest() is not None


def test_whoever_wants_to_be_told_goes_on(tmp_path: Path) -> None:
    now = [0.0]
    store = CheckpointStore(tmp_path / "file", clock=lambda: now[0])
    store.folder.write_text("in the way")
    told: list[SaveOutcome] = []
    saver = BackgroundSaver(store, on_outcome=told.append)
    saver.save(1, {}, weights=SMALL)
    saver.wait()
    assert not saver.retry_due
    now[0] = 10.0
    assert saver.retry_due
    store.folder.unlink()
    saver.save(1, {}, weights=SMALL)
    saver.close()
    assert [(one.saved, one.failures) for one in told] == [(False, 1), (True, 0)]
    assert not saver.retry_due


def test_values_that_are_not_finite_are_found_in_the_copy(store: CheckpointStore) -> None:
    saver = BackgroundSaver(store)
    weight = torch.tensor([float("nan")])
    saver.save(1, {}, weights={"model": {"w": weight}})
    weight.zero_()
    with pytest.raises(CheckpointError, match="1 of the 1 tensors of weights 'model' are not fin"):
        saver.close()


def test_wrong_arguments_are_an_error_at_once(store: CheckpointStore) -> None:
    saver = BackgroundSaver(store)
    with pytest.raises(UsageError, match="cannot be loaded again"):
        saver.save(1, {"path": Path("x")}, weights=SMALL)
    saver.close()


FORGOTTEN = """
import sys, torch
from surefoot.checkpoint import BackgroundSaver, CheckpointStore
saver = BackgroundSaver(CheckpointStore(sys.argv[1]))
saver.save(1, {}, weights={"model": {"w": torch.ones(100_000)}})
"""


def test_a_process_that_ends_without_closing_it_ends_with_the_checkpoint(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", FORGOTTEN, str(tmp_path)], check=True)
    newest = CheckpointStore(tmp_path).newest()
    assert newest is not None
    assert newest.step == 1


SAVING_FOR_EVER = """
import itertools, sys, torch
from surefoot.checkpoint import BackgroundSaver, CheckpointStore
saver = BackgroundSaver(
    CheckpointStore(sys.argv[1], keep_last=2), on_outcome=lambda one: print(one.step, flush=True)
)
weight = torch.zeros(20_000)
for step in itertools.count(1):
    weight += 1
    saver.save(step, {"step": step}, weights={"model": {"w": weight}})
"""


def test_a_kill_while_the_thread_writes_leaves_the_last_good_one(tmp_path: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", SAVING_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    killed_in_a_save = False
    with run.stdout as said:
        for _ in range(3):
            said.readline()
        deadline = time.monotonic() + 10
        while not killed_in_a_save and time.monotonic() < deadline:
            killed_in_a_save = any(tmp_path.glob(".saving-*"))
        run.send_signal(signal.SIGKILL)
        run.wait()
        told = [int(line) for line in said.read().split()]
    assert killed_in_a_save
    store = CheckpointStore(tmp_path)
    newest = store.newest()
    assert newest is not None
    assert store.rejected == ()
    assert newest.step >= max([3, *told])
    assert torch.all(newest.load_weights()["w"] == newest.step)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_model_on_a_gpu_is_saved_as_it_was_when_asked(store: CheckpointStore) -> None:
    weight = torch.ones(10_000_000, device="cuda")
    with BackgroundSaver(store) as saver:
        saver.save(1, {"m": weight}, weights={"model": {"w": weight}})
        weight.zero_()
    newest = store.newest()
    assert newest is not None
    assert bool((newest.load_weights()["w"] == 1).all())
