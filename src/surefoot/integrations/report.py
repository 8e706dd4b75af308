"""What becomes of a run's records where the loop is not ours: journal, warnings, a last line."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from surefoot.errors import JournalError
from surefoot.journal import JournalWriter
from surefoot.records import Cause, Event, StepRecord

__all__ = ["JOURNAL", "RunReport", "journal_path"]

JOURNAL = "journal.jsonl"

_log = logging.getLogger("surefoot")


def journal_path(wanted: Path | str | bool, folder: Path | str | None) -> Path | None:
    """Where the journal goes.

    Args:
        wanted: True for the framework's own output folder, False for none, or a file.
        folder: that output folder, None where the framework has none.

    >>> journal_path(True, "runs/a").as_posix()
    'runs/a/journal.jsonl'
    """
    if isinstance(wanted, bool):
        return Path(folder) / JOURNAL if wanted and folder is not None else None
    return Path(wanted)


class RunReport:
    """Takes every record: into the journal, on the log if it was refused, into the last line.

    Lines that cannot be written are counted and left out, with an error on the log; the training is
    worth more, and the disk may have room again later. Each further process of a distributed run
    writes a file of its own (``journal.rank1.jsonl``) and keeps silent.

    Args:
        path: the journal; None for no journal. Its folder is made.
        run: what the journal's header says of the run.

    >>> from surefoot.records import Verdict
    >>> report = RunReport(None, run={})
    >>> report.write(StepRecord(step=0, verdict=Verdict.APPLIED))
    >>> report.summary
    'surefoot: 1 step applied, 0 refused, 0 rollbacks'
    """

    def __init__(self, path: Path | None, *, run: Mapping[str, Any]) -> None:
        ready = torch.distributed.is_available() and torch.distributed.is_initialized()
        self._rank = torch.distributed.get_rank() if ready else 0
        self.path = path
        if path is not None and self._rank:
            self.path = path.with_name(f"{path.stem}.rank{self._rank}{path.suffix}")
        self.applied = self.refused = self.rollbacks = 0
        self._causes = Counter[str]()
        self._missing = 0
        self._closed = False
        self._journal = self._open({**run, "rank": self._rank})

    def write(self, record: StepRecord, **extra: Any) -> None:
        """Take a record, with whatever else is to be known of it."""
        self.applied += record.applied
        self.rollbacks += (Event.ROLLED_BACK in record.events) - (
            Event.ROLLBACK_UNDONE in record.events
        )
        if self._journal is not None:
            self._append(self._journal, record, extra)
        if record.refused:
            self.refused += 1
            self._causes[record.cause.value] += 1
        self._tell(record)

    @property
    def summary(self) -> str:
        """One line on the whole run."""
        steps = "step" if self.applied == 1 else "steps"
        why = ", ".join(f"{n} {cause}" for cause, n in sorted(self._causes.items()))
        line = f"surefoot: {self.applied} {steps} applied, {self.refused} refused"
        line += f" ({why})" if why else ""
        line += f", {self.rollbacks} rollback" + ("" if self.rollbacks == 1 else "s")
        return line + (f"; the records are in {self.path}" if self._journal is not None else "")

    def close(self, error: BaseException | None = None) -> None:
        """Print the line and close the journal; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._rank == 0:
            print(self.summary, file=sys.stderr)
        if self._journal is None:
            return
        try:
            if error is not None:
                name = type(error).__name__
                self._journal.event("stopped", error=name, message=str(error))
            self._journal.close()
        except JournalError as problem:
            self._complain(problem)

    def _append(self, journal: JournalWriter, record: StepRecord, extra: dict[str, Any]) -> None:
        try:
            if self._missing:
                journal.event("missing", lines=self._missing)
                self._missing = 0
            journal.write(record, **extra)
        except JournalError as problem:
            if not self._missing:
                self._complain(problem)
            self._missing += 1

    def _open(self, run: Mapping[str, Any]) -> JournalWriter | None:
        if self.path is None:
            return None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return JournalWriter(self.path, run=run)
        except (JournalError, OSError) as problem:
            self._complain(problem)
            return None

    def _complain(self, problem: Exception) -> None:
        _log.error("%s. The training goes on without it.", str(problem).rstrip("."))

    def _tell(self, record: StepRecord) -> None:
        """The first refusals, then ever fewer; overflows of a loss scale are how it works."""
        told = record.refused and record.cause is not Cause.OVERFLOW
        seldom = self.refused & (self.refused - 1) == 0
        rolled = Event.ROLLED_BACK in record.events or Event.ROLLBACK_UNDONE in record.events
        if rolled or (told and seldom):
            _log.warning("%s", record)
