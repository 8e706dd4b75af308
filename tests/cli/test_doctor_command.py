"""``surefoot doctor`` and ``surefoot rules``: paths, formats, schema, exit statuses."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from surefoot import cli

HEALTHY = "".join(f"step {i * 10}: loss {2.0 + 5.0 / (1 + i):.4f} lr 3e-4\n" for i in range(60))
SICK = HEALTHY + "".join(f"step {600 + i * 10}: loss nan lr 3e-4\n" for i in range(5))


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    (tmp_path / "healthy.log").write_text(HEALTHY, "utf-8")
    (tmp_path / "sick.log").write_text(SICK, "utf-8")
    (tmp_path / "empty.log").write_text("hello\n", "utf-8")
    return tmp_path


def told(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("name", "status"), [("healthy", 0), ("sick", 1), ("empty", 2)])
def test_the_exit_status_is_the_verdict(logs: Path, name: str, status: int) -> None:
    assert cli.main(["doctor", str(logs / f"{name}.log")]) == status


def test_a_file_that_is_not_there_is_status_2_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["doctor", str(tmp_path / "none.log")]) == 2
    assert "none.log" in capsys.readouterr().err


def test_an_unreadable_file_does_not_hide_a_sick_one(logs: Path) -> None:
    assert cli.main(["doctor", str(logs / "none.log"), str(logs / "sick.log")]) == 1
    assert cli.main(["doctor", str(logs / "none.log"), str(logs / "healthy.log")]) == 2


def test_json_has_the_promised_fields(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", str(logs / "sick.log"), "--json"]) == 1
    report = told(capsys)
    assert report["version"] == 1
    assert report["verdict"] == "sick"
    finding = report["findings"][0]
    assert finding["first_line"] == 61
    assert finding["step"] == 600
    assert {"code", "cause", "severity", "confidence", "evidence", "remedy", "source"} <= set(
        finding
    )
    assert report["runs"][0]["checks"]


def test_a_folder_is_every_log_below_it(logs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", str(logs), "--json"]) == 1
    report = told(capsys)
    assert [Path(run["source"]).name for run in report["runs"]] == [
        "empty.log",
        "healthy.log",
        "sick.log",
    ]
    assert report["findings"][0]["source"].endswith("sick.log")


def test_a_folder_without_logs_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", str(tmp_path)]) == 2
    assert "no log in this folder" in capsys.readouterr().err


def test_the_standard_input_is_a_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(SICK.encode())))
    assert cli.main(["doctor", "-"]) == 1
    assert "standard input" in capsys.readouterr().out


def test_series_shows_how_each_column_was_read(
    logs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["doctor", str(logs / "healthy.log"), "--series"])
    shown = capsys.readouterr().out
    assert "loss: loss" in shown
    assert "60 values" in shown
    cli.main(["doctor", str(logs / "healthy.log"), "--series", "--json"])
    series = told(capsys)["runs"][0]["series"]
    assert {"name": "lr", "role": "learning_rate"}.items() <= series[-1].items()


def test_a_rules_page_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rules", "sf801"]) == 0
    assert capsys.readouterr().out.startswith("# SF801: A loss that leaves its valley")


def test_an_unknown_rule_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rules", "SF000"]) == 2
    assert "no rule has that code" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--json"], ["--checks", "--series"]])
def test_a_pipe_that_nobody_reads_any_more_is_no_failure(logs: Path, options: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    called = [sys.executable, "-m", "surefoot", "doctor", str(logs / "sick.log"), *options]
    done = subprocess.run(called, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 1
    # With somebody at the other end the same call says the same status.
    heard = subprocess.run(called, capture_output=True, text=True, check=False)
    assert heard.returncode == 1
    assert "nan" in heard.stdout.lower()
