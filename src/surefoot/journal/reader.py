"""The reading side of a journal: any length, in the memory of one line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from surefoot.errors import JournalError
from surefoot.journal.format import MAX_LINE_BYTES, Header, decode
from surefoot.records import RECORD_VERSION, StepRecord

__all__ = ["Entry", "JournalReader"]


@dataclass(frozen=True)
class Entry:
    """One line of a journal below the header.

    >>> Entry("epoch", {"t": 3.5, "loss": "inf"}, line=2).number("loss")
    inf
    """

    kind: str
    """``step``, ``epoch``, ``resumed``, or whatever the run called it."""
    values: Mapping[str, Any]
    """The line's other fields; ``t`` is in seconds since the run started."""
    line: int
    """Line of the file, from 1."""

    def number(self, name: str) -> float:
        """A field as a float; ``"nan"``, ``"inf"`` and ``"-inf"`` become what they mean.

        Raises:
            KeyError: no such field.
            ValueError, TypeError: it is no number.
        """
        return float(self.values[name])


class JournalReader:
    """Iterates over the entries of a journal, in their order.

    The file is read line by line, from its beginning for every iteration, and may be written to
    meanwhile. A last line without its newline is what a killed run leaves: it is passed over, and
    :attr:`torn_line` is its number.

    After a ``resumed`` entry the step numbers may go back: the run went on from a checkpoint, and
    steps of the same number before that entry are not part of what it became.

    Args:
        path: the file.

    Raises:
        JournalError: no such file, no journal, or a newer format; while iterating: damage, with
            its line.

    >>> import tempfile
    >>> from surefoot.journal import JournalWriter
    >>> path = Path(tempfile.mkdtemp()) / "journal.jsonl"
    >>> with JournalWriter(path, run={"seed": 1}) as journal:
    ...     journal.event("epoch", st_iou=0.52)
    >>> reader = JournalReader(path)
    >>> reader.run
    {'seed': 1}
    >>> [(entry.kind, entry.values["st_iou"]) for entry in reader]
    [('epoch', 0.52)]
    """

    torn_line: int | None
    """Line that a killed run left unfinished, once the iteration has come to it."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.torn_line = None
        with self._open() as file:
            first = self._line(file, 1)
            if not first.endswith(b"\n") and Header.begins(first):
                raise JournalError(
                    f"{self.path}: holds no complete header; the run was killed before it wrote "
                    "anything.",
                    path=self.path,
                    line=1,
                )
            self._header = Header.decode(first, self.path)

    @property
    def run(self) -> Mapping[str, Any]:
        """What identifies the run, as the writer was given it."""
        return self._header.run

    @property
    def started(self) -> str:
        """When the run started: ISO 8601 with the time zone."""
        return self._header.stamp

    @property
    def version(self) -> int:
        """Format version of the file."""
        return self._header.version

    def __iter__(self) -> Iterator[Entry]:
        self.torn_line = None
        with self._open() as file:
            self._line(file, 1)
            number = 1
            while line := self._line(file, number := number + 1):
                if not line.endswith(b"\n"):
                    self.torn_line = number
                    return
                yield self._entry(line, number)

    def steps(self) -> Iterator[StepRecord]:
        """The steps alone, as the guard gave them.

        Raises:
            JournalError: a step that is damaged, or of a record version this surefoot cannot read.
        """
        for entry in self:
            if entry.kind == "step":
                yield self._record(entry)

    def _open(self) -> BinaryIO:
        try:
            return self.path.open("rb")
        except OSError as problem:
            raise JournalError(
                f"journal {self.path} could not be opened: {problem.strerror}. Give the "
                "journal.jsonl of a run folder.",
                path=self.path,
            ) from problem

    def _line(self, file: BinaryIO, number: int) -> bytes:
        try:
            line = file.readline(MAX_LINE_BYTES + 1)
        except OSError as problem:
            raise self._damaged(number, f"could not be read: {problem.strerror}") from problem
        if len(line) > MAX_LINE_BYTES:
            raise self._damaged(number, f"is longer than {MAX_LINE_BYTES:,} bytes")
        return line

    def _entry(self, line: bytes, number: int) -> Entry:
        try:
            values = decode(line)
        except ValueError as damage:
            raise self._damaged(number, f"is no entry ({damage})") from damage
        return Entry(values.pop("kind"), values, number)

    def _record(self, entry: Entry) -> StepRecord:
        try:
            return StepRecord.from_dict(entry.values)
        except (KeyError, TypeError, ValueError) as damage:
            version = entry.values.get("version")
            if isinstance(version, int) and version > RECORD_VERSION:
                raise JournalError(
                    f"{self.path}, line {entry.line}: a step record of version {version}; this "
                    f"surefoot reads up to {RECORD_VERSION}. Update surefoot.",
                    path=self.path,
                    line=entry.line,
                ) from damage
            raise self._damaged(entry.line, f"is no step record ({damage!r})") from damage

    def _damaged(self, line: int, what: str) -> JournalError:
        return JournalError(
            f"{self.path}, line {line}: {what}. The journal is damaged there; the lines before "
            "are intact. Restore the file from a copy, or take that line out.",
            path=self.path,
            line=line,
        )
