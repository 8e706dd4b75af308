"""The doctor beside a run that goes on: looks at its journal now and then, and at its end."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.doctor.examine import Examination, examine
from surefoot.doctor.finding import Finding
from surefoot.doctor.html import write_report
from surefoot.errors import ConfigError, JournalError
from surefoot.journal.foreign import read_log
from surefoot.journal.foreign.assemble import runs_of
from surefoot.journal.foreign.ledger import Ledger
from surefoot.journal.foreign.own import OwnJournal
from surefoot.journal.series import LoggedRun

__all__ = ["LiveDoctor"]

_LEAST_SECONDS = 30.0
_SHARE = 0.01
"""Of the run's time that looking may take."""
_AT_THE_END = ("SF207", "SF803", "SF904", "SF905")
"""Of where a log ends, or how short it is, which is said of a run that goes on in vain."""
_OFF_A_CURVE = ("SF3", "SF4", "SF5", "SF8")
"""Codes begin so that tell of a curve's last values, which may be a spike that comes back."""
_MOST_NUMBERS = 2**21
"""That are held of a journal, 32 MiB; of more, every second one is let go."""
_BLOCK = 2**20


class LiveDoctor:
    """Tries every rule on a journal that is still being written to.

    Only what was added since the last look is read. A look takes some tenths of a second; the
    next one is due after a hundred times as long as the last one took, and after half a minute at
    the earliest, so that looking takes at most a hundredth of the run's time.

    Args:
        journal: its file; it need not be there yet.
        every: seconds between two looks, at least.
        clock: seconds, for tests.

    >>> import tempfile
    >>> from surefoot.journal import JournalWriter
    >>> from surefoot.records import StepRecord, Verdict
    >>> good, bad = {"verdict": Verdict.APPLIED}, {"verdict": Verdict.REFUSED, "loss": math.nan}
    >>> path = Path(tempfile.mkdtemp()) / "journal.jsonl"
    >>> doctor = LiveDoctor(path)
    >>> with JournalWriter(path, run={}) as journal:
    ...     for i in range(40):
    ...         what = {"loss": 2.0 / (i + 1), **good} if i < 20 else bad
    ...         journal.write(StepRecord(step=i, **what))
    ...     [fields["code"] for _, fields in doctor.look()]
    ['SF106']
    >>> doctor.look()
    []
    """

    def __init__(
        self,
        journal: Path,
        *,
        every: float = _LEAST_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.journal = journal
        self._every, self._clock = every, clock
        self._ledger = Ledger(str(journal), columns=True)
        self._reader = OwnJournal(self._ledger)
        self._offset = self._lines = 0
        self._told: set[str] = set()
        self._seen: set[str] = set()
        self._due = clock() + every
        self._held = 0

    @property
    def due(self) -> bool:
        """Whether it is time for a look; costs one look at the clock."""
        return self._clock() >= self._due

    def look(self) -> list[tuple[str, dict[str, Any]]]:
        """What holds now and was not told before: a line for a person, and fields for a journal.

        Only findings that are warnings or worse, and none that is about the end of a log. What is
        read off a curve has to hold at two looks, one after the other.

        Raises:
            JournalError: the journal cannot be read.
        """
        began = self._clock()
        findings = self._findings()
        new = [finding for finding in findings if self._is_new(finding)]
        self._seen = {finding.code for finding in findings}
        now = self._clock()
        self._due = now + max(self._every, (now - began) / _SHARE)
        return [(_line(finding), finding.to_dict()) for finding in new]

    def _is_new(self, finding: Finding) -> bool:
        """Whether it is to be told; of several causes at one place only the likeliest is."""
        if not finding.sick or finding.code in _AT_THE_END or finding.code in self._told:
            return False
        if finding.code.startswith(_OFF_A_CURVE) and finding.code not in self._seen:
            return False
        self._told.add(finding.code)
        place = "" if finding.first_line is None else f"line {finding.first_line}"
        new = not place or place not in self._told
        self._told.add(place)
        return new

    def conclude(self, report: Path) -> list[str]:
        """Examine the whole journal; gives the verdict in a line, and where the report is.

        Args:
            report: HTML file to write; a line says why where it could not be.

        Raises:
            JournalError: the journal cannot be read.
        """
        run = read_log(self.journal)[-1]
        examination = examine(run)
        said = [f"doctor: {_verdict(examination)}"]
        try:
            said.append(f"report: {write_report(report, [examination])}")
        except ConfigError as problem:
            said.append(f"report: not written; {problem}")
        return said

    def _findings(self) -> tuple[Finding, ...]:
        for lines in self._new_lines():
            self._reader.feed(lines, self._lines)
            self._lines += len(lines)
            self._bound()
        if not self._lines:
            return ()
        runs: list[LoggedRun] = runs_of(self._ledger, _next_number, self._lines)
        return examine(runs[-1]).findings

    def _new_lines(self) -> Iterator[list[bytes]]:
        """The complete lines that were added, in blocks."""
        try:
            with self.journal.open("rb") as file:
                if file.seek(0, io.SEEK_END) < self._offset:
                    raise JournalError(
                        f"{self.journal} has become shorter while the run goes on; leave it to "
                        "the run.",
                        path=self.journal,
                    )
                file.seek(self._offset)
                while lines := file.readlines(_BLOCK):
                    if not lines[-1].endswith(b"\n"):
                        lines.pop()
                    if not lines:
                        return
                    self._offset += sum(map(len, lines))
                    yield lines
        except OSError as problem:
            raise JournalError(
                f"journal {self.journal} could not be read: {problem.strerror or problem}. The "
                "doctor looks again later.",
                path=self.journal,
            ) from problem

    def _bound(self) -> None:
        parts = self._ledger.loose.values()
        self._held = sum(
            values.size for part in parts for b in part.blocks.values() for _, values in b
        )
        if self._held > _MOST_NUMBERS:
            self._held = sum(part.thin() for part in parts)


def _next_number(places: np.ndarray) -> np.ndarray:
    return places + 1


def _line(finding: Finding) -> str:
    return f"{_words(finding)}; surefoot rules {finding.code} tells more"


def _words(finding: Finding) -> str:
    step = f" (from step {finding.step:g} on)" if math.isfinite(finding.step) else ""
    return f"{finding.code} {finding.severity.value}: {finding.title}{step}"


def _verdict(examination: Examination) -> str:
    if not examination.judged:
        return "there is nothing in the journal to judge"
    first = examination.findings[0]
    ran = sum(not check.skipped for check in examination.checks)
    if examination.healthy:
        return f"healthy: {first.title}; {ran} checks ran"
    others = sum(finding.sick for finding in examination.findings) - 1
    more = f" ({others} more in the report)" if others else ""
    return f"{_words(first)}{more}. Most likely cause: {first.cause.sentence}"
