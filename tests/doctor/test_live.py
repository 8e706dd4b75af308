"""The doctor beside a run: what it tells while the journal grows, once, and at what rate."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from surefoot.doctor import live
from surefoot.doctor.live import LiveDoctor
from surefoot.errors import JournalError
from surefoot.journal import JournalWriter
from surefoot.records import Cause, StepRecord, Verdict

NAN = math.nan


class Clock:
    """Seconds that pass when they are told to, and a little at each look."""

    def __init__(self, per_look: float = 0.0) -> None:
        self.now, self.per_look = 0.0, per_look

    def __call__(self) -> float:
        self.now += self.per_look
        return self.now


def record(step: int, loss: float | None = None) -> StepRecord:
    value = 2.0 / (1 + step / 10) + 0.4 if loss is None else loss
    if math.isnan(value):
        cause = Cause.NONFINITE_LOSS
        return StepRecord(step=step, verdict=Verdict.REFUSED, cause=cause, loss=NAN, grad_norm=NAN)
    return StepRecord(
        step=step,
        verdict=Verdict.APPLIED,
        loss=value,
        grad_norm=1 + step % 7 / 9,
        learning_rates=(1e-3,),
    )


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[JournalWriter]:
    with JournalWriter(tmp_path / "journal.jsonl", run={"precision": "fp32"}) as writer:
        yield writer


def codes(doctor: LiveDoctor) -> list[str]:
    return [fields["code"] for _, fields in doctor.look()]


def test_a_healthy_run_is_left_in_peace(journal: JournalWriter) -> None:
    doctor = LiveDoctor(journal.path)
    for step in range(300):
        journal.write(record(step))
        if step % 20 == 0:
            assert codes(doctor) == []


def test_a_finding_is_told_once_when_it_first_holds(journal: JournalWriter) -> None:
    doctor = LiveDoctor(journal.path)
    told: list[tuple[int, str]] = []
    for step in range(120):
        journal.write(record(step, NAN if step >= 60 else None))
        told += [(step, code) for code in codes(doctor)]
    assert len(told) == 1
    assert 60 <= told[0][0] <= 64
    assert told[0][1].startswith("SF1")


def test_the_line_names_the_code_the_step_and_where_to_read_on(journal: JournalWriter) -> None:
    for step in range(60):
        journal.write(record(step))
    journal.event("stalled", seconds=900.0, usual=0.4, waits_in="a lock", stacks="")
    ((line, fields),) = LiveDoctor(journal.path).look()
    assert line.startswith("SF908 warning: no step for 900 s")
    assert "(from step 59 on)" in line
    assert line.endswith("surefoot rules SF908 tells more")
    assert fields["severity"] == "warning"


def test_that_a_log_ends_is_no_finding_while_it_is_written(journal: JournalWriter) -> None:
    doctor = LiveDoctor(journal.path)
    for step in range(60):
        journal.write(record(step, 9.0 if step > 57 else None))
    assert codes(doctor) == []


def test_what_is_read_off_a_curve_has_to_hold_at_two_looks(journal: JournalWriter) -> None:
    doctor = LiveDoctor(journal.path)
    for step in range(120):
        journal.write(record(step, 2.0 + step / 20 if step > 60 else None))
    assert codes(doctor) == []
    assert codes(doctor) == ["SF801"]
    assert codes(doctor) == []


def test_a_torn_line_is_read_when_it_is_whole(journal: JournalWriter) -> None:
    doctor = LiveDoctor(journal.path)
    for step in range(60):
        journal.write(record(step))
    assert codes(doctor) == []
    whole = journal.path.read_bytes()
    line = b'{"kind": "stalled", "t": 9.0, "seconds": 900.0, "usual": 0.4, "waits_in": "x"}\n'
    journal.path.write_bytes(whole + line[:30])
    assert codes(doctor) == []
    journal.path.write_bytes(whole + line)
    assert codes(doctor) == ["SF908"]


def test_it_reads_only_what_is_new_and_sees_what_a_whole_reading_sees(
    journal: JournalWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_BLOCK", 1000)  # several blocks for each look
    doctor, fed = LiveDoctor(journal.path), 0
    feed = doctor._reader.feed

    def counting(lines: list[bytes], place: int, *, torn: bool = False) -> None:
        nonlocal fed
        fed += len(lines)
        feed(lines, place, torn=torn)

    monkeypatch.setattr(doctor._reader, "feed", counting)
    found: list[str] = []
    for step in range(200):
        journal.write(record(step, NAN if step >= 150 else None))
        if step % 10 == 9:
            found += codes(doctor)
    assert fed == 201
    assert found == codes(LiveDoctor(journal.path))


def test_a_look_is_due_after_the_pause_and_not_before(journal: JournalWriter) -> None:
    clock = Clock()
    doctor = LiveDoctor(journal.path, every=30.0, clock=clock)
    assert not doctor.due
    clock.now = 30.0
    assert doctor.due
    doctor.look()
    assert not doctor.due
    clock.now = 60.0
    assert doctor.due


def test_a_look_that_takes_long_makes_the_next_one_wait(journal: JournalWriter) -> None:
    clock = Clock(per_look=2.0)  # between the beginning and the end of a look
    doctor = LiveDoctor(journal.path, every=30.0, clock=clock)
    doctor.look()
    clock.per_look, ended = 0.0, clock.now
    clock.now = ended + 199.0
    assert not doctor.due
    clock.now = ended + 200.0
    assert doctor.due


def test_what_it_holds_is_bounded(journal: JournalWriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "_MOST_NUMBERS", 4_000)
    doctor = LiveDoctor(journal.path)
    for step in range(3000):
        journal.write(record(step, NAN if step >= 2500 else None))
        if step % 250 == 0:
            doctor.look()
    doctor.look()
    assert doctor._held <= 4_000
    assert {"SF102", "SF103", "SF106"} & doctor._told


def test_a_journal_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="could not be read"):
        LiveDoctor(tmp_path / "none.jsonl").look()


def test_a_journal_that_became_shorter_is_said(journal: JournalWriter) -> None:
    doctor = LiveDoctor(journal.path)
    for step in range(9):
        journal.write(record(step))
    doctor.look()
    journal.path.write_bytes(b"")
    with pytest.raises(JournalError, match="has become shorter"):
        doctor.look()


def test_the_verdict_of_a_healthy_run_is_one_line_and_the_report(
    journal: JournalWriter, tmp_path: Path
) -> None:
    for step in range(60):
        journal.write(record(step))
    verdict, report = LiveDoctor(journal.path).conclude(tmp_path / "report.html")
    assert verdict.startswith("doctor: healthy: nothing is wrong with what this log shows; ")
    assert report == f"report: {tmp_path / 'report.html'}"
    assert "Nothing is wrong" in (tmp_path / "report.html").read_text("utf-8")


def test_the_verdict_of_a_sick_run_names_the_cause(journal: JournalWriter, tmp_path: Path) -> None:
    for step in range(90):
        journal.write(record(step, NAN if step >= 60 else None))
    verdict, _ = LiveDoctor(journal.path).conclude(tmp_path / "report.html")
    assert verdict.startswith("doctor: SF10")
    assert "becomes NaN at step 60" in verdict
    assert "Most likely cause: " in verdict


def test_without_matplotlib_the_verdict_stands_and_a_line_says_why_no_report(
    journal: JournalWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for step in range(60):
        journal.write(record(step))
    verdict, report = LiveDoctor(journal.path).conclude(tmp_path / "report.html")
    assert verdict.startswith("doctor: healthy")
    assert report.startswith("report: not written; ")
    assert "surefoot[report]" in report
    assert not (tmp_path / "report.html").exists()
