"""What a training says of its health: findings while it runs, the verdict and the report after."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot import cli
from surefoot.doctor.live import LiveDoctor
from surefoot.errors import JournalError
from surefoot.journal import JournalReader
from surefoot.recipes.refdet.train import train_on_folders
from surefoot.recipes.session import Session
from surefoot.recipes.verdict import REPORT, Rounds, attended_by
from surefoot.records import StepRecord, Verdict
from surefoot.shapes import LossTerms


def impatient(journal: Path) -> LiveDoctor:
    """Looks at every step."""

    class Always(LiveDoctor):
        @property
        def due(self) -> bool:
            return True

    return Always(journal)


def findings(folder: Path) -> list[Mapping[str, Any]]:
    return [e.values for e in JournalReader(folder / "journal.jsonl") if e.kind == "finding"]


def test_the_command_ends_with_the_verdict_and_the_report(
    tmp_path: Path, tiny_flags: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    said, folder = io.StringIO(), tmp_path / "a"
    monkeypatch.setattr(sys, "stdout", said)
    assert cli.main(["train", "refdet", *tiny_flags(folder, "--epochs", "2")]) == 0
    lines = said.getvalue().splitlines()
    (verdict,) = (line for line in lines if line.startswith("doctor: "))
    assert "healthy" in verdict
    assert f"report: {folder / REPORT}" in lines
    assert "Nothing is wrong" in (folder / REPORT).read_text("utf-8")


def test_a_finding_is_said_once_and_written_down(
    tmp_path: Path, tiny_config: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from surefoot.recipes.refdet.learner import Learner

    terms, count = Learner.terms, 0

    def spoilt(self: Learner, episode: Any) -> Any:
        nonlocal count
        count += 1
        found = terms(self, episode)
        if count <= 2:
            return found
        return LossTerms({n: v * torch.nan for n, v in found.values.items()}, found.weights)

    monkeypatch.setattr(Learner, "terms", spoilt)
    said = io.StringIO()
    with attended_by(impatient):
        train_on_folders(tiny_config(tmp_path / "a"), stream=said)
    told = findings(tmp_path / "a")
    codes = [finding["code"] for finding in told]
    assert codes
    assert len(set(codes)) == len(codes)
    for finding in told:
        assert finding["severity"] in ("critical", "warning")
        assert said.getvalue().count(f"  {finding['code']} {finding['severity']}: ") == 1
    assert "doctor: SF" in said.getvalue()


def test_a_run_that_nobody_attends_says_nothing(
    tmp_path: Path, tiny_config: Callable[..., Any]
) -> None:
    said = io.StringIO()
    train_on_folders(tiny_config(tmp_path / "a"), stream=said)
    assert "doctor" not in said.getvalue()
    assert not (tmp_path / "a" / REPORT).exists()


class Failing:
    """A doctor who cannot."""

    due = True

    def __init__(self, journal: Path) -> None:
        self.looked = 0

    def look(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        self.looked += 1
        raise ZeroDivisionError("no number")

    def conclude(self, report: Path) -> Sequence[str]:
        raise JournalError("the journal is gone")


def test_a_doctor_that_fails_does_not_take_the_run_with_him(tmp_path: Path) -> None:
    said: list[str] = []
    with attended_by(Failing), Session(tmp_path, recipe="x", run={}, say=said.append) as session:
        for step in range(3):
            session.step(StepRecord(step=step, verdict=Verdict.APPLIED, loss=1.0))
    assert [line for line in said if "could not look" in line] == [
        "  the doctor could not look, and the run goes on without: ZeroDivisionError('no number')"
    ]
    assert len(list(JournalReader(tmp_path / "journal.jsonl").steps())) == 3


def test_a_verdict_that_fails_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    with attended_by(Failing):
        Rounds(tmp_path, said.append, print).end()
    assert said == ["doctor: no verdict: JournalError('the journal is gone')"]


def test_a_run_that_breaks_off_has_a_verdict_and_one_that_was_asked_to_stop_has_none(
    tmp_path: Path,
) -> None:
    def run_into(error: type[BaseException], folder: Path, said: list[str]) -> None:
        folder.mkdir()
        with (
            attended_by(LiveDoctor),
            Session(folder, recipe="x", run={}, say=said.append) as session,
        ):
            for step in range(30):
                session.step(StepRecord(step=step, verdict=Verdict.APPLIED, loss=2 / (1 + step)))
            raise error("broken")

    for error, told in ((ValueError, True), (KeyboardInterrupt, False), (SystemExit, False)):
        said = list[str]()
        with pytest.raises(error):
            run_into(error, tmp_path / error.__name__, said)
        assert any(line.startswith("doctor: ") for line in said) is told


def test_attendance_ends_with_the_block(tmp_path: Path) -> None:
    with attended_by(Failing):
        inside = Rounds(tmp_path, print, print)
    outside = Rounds(tmp_path, print, print)
    assert inside._doctor is not None
    assert outside._doctor is None


def test_what_the_doctor_wrote_is_no_evidence_at_the_end(tmp_path: Path) -> None:
    said: list[str] = []
    with (
        attended_by(impatient),
        Session(tmp_path, recipe="x", run={}, say=said.append) as session,
    ):
        for step in range(30):
            session.step(StepRecord(step=step, verdict=Verdict.APPLIED, loss=2 / (1 + step)))
        session.journal.event("stalled", seconds=900.0, usual=0.1, waits_in="a lock", stacks="")
        session.step(StepRecord(step=30, verdict=Verdict.APPLIED, loss=0.06))
    assert [finding["code"] for finding in findings(tmp_path)] == ["SF908"]
    assert json.dumps(findings(tmp_path)[0]["evidence"])
    assert any(line.startswith("doctor: SF908 warning") for line in said)
