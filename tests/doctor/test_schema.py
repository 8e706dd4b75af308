"""``surefoot doctor --json``: the schema that docs/doctor.md promises to programs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from cases import PAIRS

from surefoot import cli
from surefoot.doctor import RootCause, Severity, examine
from surefoot.journal import JournalWriter
from surefoot.records import StepRecord, Verdict

FINDING: dict[str, type | tuple[type, ...]] = {
    "code": str,
    "title": str,
    "cause": str,
    "severity": str,
    "confidence": float,
    "first_line": (int, type(None)),
    "step": (int, float, type(None)),
    "evidence": list,
    "not_this": list,
    "remedy": list,
    "log_next": list,
    "explains": list,
}
RUN = {"source", "format", "lines", "verdict", "explained", "checks", "notes"}
CAUSES, SEVERITIES = {c.value for c in RootCause}, {s.value for s in Severity}


def assert_finding(finding: dict[str, Any]) -> None:
    assert finding.keys() == FINDING.keys()
    for name, kind in FINDING.items():
        assert isinstance(finding[name], kind), name
    assert finding["cause"] in CAUSES
    assert finding["severity"] in SEVERITIES
    assert 0 <= finding["confidence"] <= 1
    for fact in finding["evidence"]:
        assert fact.keys() == {"name", "value", "text"}
        assert isinstance(fact["value"], int | float | str)


@pytest.mark.parametrize("code", PAIRS)
def test_a_finding_has_these_fields_and_no_others(code: str) -> None:
    told = json.loads(json.dumps(examine(PAIRS[code].fires).to_dict(), allow_nan=False))
    for finding in told["findings"]:
        assert_finding(finding)
    for explained in told["explained"]:
        assert explained.keys() == {"by", "finding"}
        assert_finding(explained["finding"])


def report(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    cli.main(["doctor", *arguments, "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """As a training leaves it: settings, a journal, a checkpoint's manifest."""
    folder = tmp_path / "run"
    (folder / "checkpoints" / "00001-step-9").mkdir(parents=True)
    (folder / "config.json").write_text('{"lr": 0.1, "loss": 3}', "utf-8")
    (folder / "checkpoints" / "00001-step-9" / "manifest.json").write_text('{"step": 9}', "utf-8")
    with JournalWriter(folder / "journal.jsonl", run={"lr": 0.1}) as journal:
        for step in range(60):
            loss = 2 / (1 + step) if step < 40 else math.nan
            verdict = Verdict.APPLIED if step < 40 else Verdict.REFUSED
            journal.write(StepRecord(step=step, verdict=verdict, loss=loss))
    return folder


def test_the_report_of_a_run_folder_is_that_of_its_journal(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = report(capsys, str(run_folder))
    assert told.keys() == {"version", "verdict", "findings", "runs", "unread"}
    assert (told["version"], told["verdict"], told["unread"]) == (1, "sick", [])
    (run,) = told["runs"]
    assert run.keys() == RUN
    assert run["source"].endswith("journal.jsonl")
    assert {"code", "title", "ran", "why_not"} == run["checks"][0].keys()
    for finding in told["findings"]:
        assert finding.pop("run") == 0
        assert finding.pop("source") == run["source"]
        assert_finding(finding)
    assert (told["findings"][0]["step"], told["findings"][0]["first_line"]) == (40, 42)


def test_findings_of_several_runs_are_ranked_together(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    healthy = run_folder.parent / "a.log"
    healthy.write_text("".join(f"step {i}: loss {2 / (1 + i):.4f}\n" for i in range(60)), "utf-8")
    told = report(capsys, str(healthy), str(run_folder))
    ranks = [(f["severity"] == "note", -f["confidence"]) for f in told["findings"]]
    assert ranks == sorted(ranks)
    assert told["findings"][0]["run"] == 1


def test_it_is_documented(root: Path) -> None:
    text = (root / "docs" / "doctor.md").read_text("utf-8")
    for name in (*FINDING, *RUN, "version", "unread", "why_not", *CAUSES, *SEVERITIES):
        assert f"`{name}`" in text, name
