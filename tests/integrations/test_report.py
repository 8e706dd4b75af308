"""What becomes of the records: a journal that may fail, warnings that grow fewer, one line."""

from __future__ import annotations

import logging
import math
import resource
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch

from integrations.conftest import net
from surefoot.guard import attach
from surefoot.integrations.losses import innermost
from surefoot.integrations.report import RunReport
from surefoot.journal import JournalReader
from surefoot.records import Cause, Event, StepRecord, Verdict


def refused(step, cause=Cause.NONFINITE_LOSS, **more):
    return StepRecord(step=step, verdict=Verdict.REFUSED, cause=cause, **more)


@contextmanager
def files_no_longer_than(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_journal_that_cannot_be_opened_does_not_stop_the_training(tmp_path, caplog, capsys):
    (tmp_path / "file").touch()
    report = RunReport(tmp_path / "file" / "journal.jsonl", run={})
    report.write(StepRecord(step=0, verdict=Verdict.APPLIED))
    report.close()
    assert "The training goes on without it." in caplog.text
    assert capsys.readouterr().err == "surefoot: 1 step applied, 0 refused, 0 rollbacks\n"


def test_lines_that_find_no_room_are_counted_and_the_journal_goes_on(tmp_path, caplog):
    report = RunReport(tmp_path / "journal.jsonl", run={})
    report.write(StepRecord(step=0, verdict=Verdict.APPLIED))
    with files_no_longer_than((tmp_path / "journal.jsonl").stat().st_size):
        report.write(StepRecord(step=1, verdict=Verdict.APPLIED))
        report.write(StepRecord(step=2, verdict=Verdict.APPLIED))
    report.write(StepRecord(step=3, verdict=Verdict.APPLIED))
    report.close()
    assert caplog.text.count("The training goes on without it.") == 1
    assert [record.step for record in JournalReader(report.path).steps()] == [0, 3]
    (missing,) = [entry for entry in JournalReader(report.path) if entry.kind == "missing"]
    assert missing.values["lines"] == 2
    assert report.applied == 4


def test_refusals_are_told_ever_less_often_and_overflows_not_at_all(caplog):
    report = RunReport(None, run={})
    for step in range(20):
        report.write(refused(step))
    told = [record.message for record in caplog.records]
    assert [line.split(":")[0] for line in told] == [f"step {n}" for n in (0, 1, 3, 7, 15)]
    caplog.clear()
    report = RunReport(None, run={})
    for step in range(4):
        report.write(refused(step, Cause.OVERFLOW))
    assert caplog.records == []
    report.write(StepRecord(step=4, verdict=Verdict.APPLIED, events=(Event.ROLLED_BACK,)))
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert report.summary == ("surefoot: 1 step applied, 4 refused (4 overflow), 1 rollback")


def test_a_rollback_that_is_undone_does_not_count():
    report = RunReport(None, run={})
    for event in (Event.ROLLED_BACK, Event.ROLLBACK_UNDONE):
        report.write(StepRecord(step=0, verdict=Verdict.APPLIED, events=(event,)))
    assert report.summary.endswith("2 steps applied, 0 refused, 0 rollbacks")


@pytest.mark.parametrize("framework", ["lightning", "transformers", "accelerate"])
def test_without_its_framework_a_module_says_what_to_install(framework):
    code = (
        f"import sys; sys.modules[{framework!r}] = None\nimport surefoot.integrations.{framework}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    said = done.stderr.splitlines()[-1]
    assert said.startswith(f"ModuleNotFoundError: surefoot.integrations.{framework} needs the pack")
    assert said.endswith(f"pip install 'surefoot[{framework}]'.")


def test_importing_surefoot_or_the_package_imports_no_framework():
    frameworks = "'lightning', 'transformers', 'accelerate', 'ultralytics'"
    code = (
        "import sys, surefoot, surefoot.integrations, surefoot.integrations.ultralytics\n"
        f"assert sys.modules.keys().isdisjoint({{{frameworks}}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_state_of_a_guarded_optimizer_loads_into_one_without_a_guard():
    model, other = net(), net()
    optimizer = torch.optim.AdamW(model.parameters())
    attach(optimizer, model)
    model(torch.full((4, 6), math.nan)).sum().backward()
    optimizer.step()
    bare = torch.optim.AdamW(other.parameters())
    bare.load_state_dict(optimizer.state_dict())
    assert "surefoot" not in bare.state_dict()
    assert innermost(bare) is bare
