"""A journal outlives what happens to its run: kills, resumes, full disks."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from surefoot.errors import ConfigError, JournalError, UsageError
from surefoot.journal import JournalReader, JournalWriter
from surefoot.records import StepRecord, Verdict

ENDLESS_RUN = """
import itertools, sys
from surefoot.journal import JournalWriter
from surefoot.records import StepRecord, Verdict
journal = JournalWriter(sys.argv[1], run={"seed": 1})
for step in itertools.count():
    journal.write(StepRecord(step=step, verdict=Verdict.APPLIED, loss=float("nan")))
"""


def record(step: int) -> StepRecord:
    return StepRecord(step=step, verdict=Verdict.APPLIED)


def killed_run(path: Path, at_least: int) -> None:
    """Let a process write to ``path`` and kill it once it is well under way."""
    run = subprocess.Popen([sys.executable, "-c", ENDLESS_RUN, str(path)])
    try:
        deadline = time.monotonic() + 30
        while not path.exists() or path.stat().st_size < at_least:
            assert run.poll() is None, "the writer ended by itself"
            assert time.monotonic() < deadline, "the writer wrote nothing"
            time.sleep(0.001)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    assert run.returncode == -signal.SIGKILL


def test_a_killed_run_loses_at_most_the_line_it_was_writing(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    killed_run(path, at_least=50_000)
    reader = JournalReader(path)
    steps = [r.step for r in reader.steps()]
    complete = path.read_bytes().count(b"\n") - 1
    assert steps == list(range(complete))
    assert len(steps) > 50
    assert reader.run == {"seed": 1}

    with JournalWriter(path, run={"seed": 1}) as journal:
        journal.write(record(len(steps)))
    assert [r.step for r in JournalReader(path).steps()] == list(range(complete + 1))


@pytest.mark.parametrize("torn", [b"{", b'{"kind": "step", "t": 0.5', b"\0" * 4096, b"\xff\xfe"])
def test_a_torn_last_line_is_passed_over_and_cut_off_on_resume(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "journal.jsonl"
    with JournalWriter(path, run={}) as journal:
        journal.write(record(0))
    with path.open("ab") as file:
        file.write(torn)

    reader = JournalReader(path)
    assert [entry.kind for entry in reader] == ["step"]
    assert reader.torn_line == 3

    with JournalWriter(path, run={"again": True}) as journal:
        journal.write(record(1))
    reader = JournalReader(path)
    entries = list(reader)
    assert [entry.kind for entry in entries] == ["step", "resumed", "step"]
    assert entries[1].values["cut_bytes"] == len(torn)
    assert entries[1].values["run"] == {"again": True}
    assert reader.torn_line is None


def test_a_line_counts_once_its_newline_is_there(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with JournalWriter(path, run={}) as journal:
        journal.write(record(0))
        journal.write(record(1))
    path.write_bytes(path.read_bytes()[:-1])
    assert [r.step for r in JournalReader(path).steps()] == [0]
    JournalWriter(path, run={}).close()
    assert [r.step for r in JournalReader(path).steps()] == [0]


@pytest.mark.parametrize("size", [0, 1, 20, 70])
def test_a_run_killed_in_its_header_starts_anew(tmp_path: Path, size: int) -> None:
    path = tmp_path / "journal.jsonl"
    JournalWriter(path, run={}).close()
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(JournalError, match="no complete header; the run was killed before"):
        JournalReader(path)
    with JournalWriter(path, run={"second": 2}) as journal:
        journal.write(record(0))
    reader = JournalReader(path)
    assert [entry.kind for entry in reader] == ["step"]
    assert reader.run == {"second": 2}


def test_every_line_is_with_the_system_before_the_call_returns(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with JournalWriter(path, run={}) as journal:
        for step in range(3):
            journal.write(record(step))
            assert [r.step for r in JournalReader(path).steps()] == list(range(step + 1))


def test_time_goes_on_after_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with JournalWriter(path, run={}) as journal:
        journal.event("epoch", epoch=1)
    header, entry = (json.loads(line) for line in path.read_text().splitlines())
    header["started"] = (datetime.now(UTC) - timedelta(hours=1)).isoformat(timespec="seconds")
    path.write_text(json.dumps(header) + "\n" + json.dumps(entry) + "\n")
    JournalWriter(path, run={}).close()
    assert 3600 <= list(JournalReader(path))[-1].number("t") < 3660


def test_time_does_not_go_back_when_the_clock_was_put_back(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    JournalWriter(path, run={}).close()
    with path.open("a") as file:
        file.write('{"kind": "epoch", "t": 7200.0}\n')
    JournalWriter(path, run={}).close()
    assert 7200.0 <= list(JournalReader(path))[-1].number("t") < 7260.0


def test_the_tail_is_found_behind_a_line_longer_than_a_block(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with JournalWriter(path, run={}) as journal:
        journal.event("note", text="x" * 200_000)
    with path.open("ab") as file:
        file.write(b"y" * 150_000)
    JournalWriter(path, run={}).close()
    assert [entry.kind for entry in JournalReader(path)] == ["note", "resumed"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The disk refuses to let any file of this process grow beyond ``size`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_an_error_and_leaves_no_half_line_in_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with JournalWriter(path, run={}) as journal:
        journal.write(record(0))
        with (
            largest_file(path.stat().st_size + 40),
            pytest.raises(JournalError, match=r"written: File too large\. The lines"),
        ):
            journal.write(record(1))
        assert path.read_bytes()[-1:] != b"\n"
        journal.write(record(2))
    assert [r.step for r in JournalReader(path).steps()] == [0, 2]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "no" / "journal.jsonl"
    with pytest.raises(JournalError, match="could not be opened: No such file") as caught:
        JournalWriter(path, run={})
    assert caught.value.path == path


def test_lines_are_forced_to_the_disk_as_often_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    counts: dict[float | None, int] = {}
    for interval in (None, 3600.0, 0.0):
        with JournalWriter(tmp_path / f"{interval}.jsonl", run={}, fsync_every=interval) as journal:
            synced.clear()
            for step in range(5):
                journal.write(record(step))
            counts[interval] = len(synced)
    assert counts == {None: 0, 3600.0: 0, 0.0: 5}
    with pytest.raises(ConfigError, match=r"fsync_every=-1: seconds, 0 or more"):
        JournalWriter(tmp_path / "journal.jsonl", run={}, fsync_every=-1)


def test_a_closed_journal_takes_nothing_more(tmp_path: Path) -> None:
    journal = JournalWriter(tmp_path / "journal.jsonl", run={})
    journal.close()
    journal.close()
    with pytest.raises(UsageError, match="is closed; nothing can be added"):
        journal.event("epoch")
