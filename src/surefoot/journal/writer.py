"""The writing side of a journal: one line at a time, each handed to the system at once."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from surefoot.errors import ConfigError, JournalError, UsageError
from surefoot.journal.format import Header, encode
from surefoot.journal.tail import Tail
from surefoot.records import StepRecord

__all__ = ["JournalWriter"]

_OWN_KINDS = ("header", "resumed", "step")
_OWN_FIELDS = ("kind", "t")


class JournalWriter:
    """Appends the records and events of a run to its journal.

    Every line goes to the operating system in one write before the call returns: a process that is
    killed, with SIGKILL too, loses at most the line it was writing. A machine that loses power
    loses what the system had not yet put on disk; ``fsync_every`` bounds that.

    Where ``path`` is a journal already, the run goes on in it: a torn last line of a killed run is
    cut off, and a ``resumed`` line says how many bytes that were. One process writes at a time.

    Args:
        path: the file; its folder must exist.
        run: what identifies the run (settings, versions), for the header. JSON values.
        fsync_every: seconds after which a line is also forced to the disk itself; 0 for every
            line, None to leave it to the system until :meth:`close`.

    Raises:
        ConfigError: a negative ``fsync_every``.
        JournalError: the file cannot be written, is no journal, or is of a newer format.

    >>> import tempfile
    >>> from surefoot.records import Verdict
    >>> path = Path(tempfile.mkdtemp()) / "journal.jsonl"
    >>> with JournalWriter(path, run={"lr": 1e-4}) as journal:
    ...     journal.write(StepRecord(step=0, verdict=Verdict.APPLIED, loss=2.5), epoch=1)
    ...     journal.event("epoch", epoch=1, st_iou=0.52)
    >>> len(path.read_text().splitlines())
    3
    """

    def __init__(
        self, path: Path | str, *, run: Mapping[str, Any], fsync_every: float | None = None
    ) -> None:
        if fsync_every is not None and not fsync_every >= 0:
            raise ConfigError(f"fsync_every={fsync_every}: seconds, 0 or more, or None.")
        self.path = Path(path)
        self._fsync_every = fsync_every
        self._torn_at: int | None = None
        header = Header(started=datetime.now(UTC), run=run)
        # Encoded before the file is touched: a run that cannot be told leaves no half a journal.
        first = header.encode()
        with self._disk("opened"):
            tail = Tail.of(self.path)
            self._file = FileIO(self.path, "ab")
        self._start = time.monotonic() - tail.elapsed(header.started)
        try:
            self._begin(tail, header, first)
        except BaseException:
            self._file.close()
            raise

    def write(self, record: StepRecord, **extra: Any) -> None:
        """Append a step, with whatever else is to be known of it.

        Args:
            record: what the guard said.
            extra: further fields of the line, JSON values; numbers may be NaN or infinite.

        Raises:
            UsageError: an extra field that the record has already, or that JSON cannot hold.
            JournalError: the disk refused; the lines before are intact.
        """
        values = record.to_dict()
        if taken := sorted(values.keys() & extra.keys()):
            raise UsageError(
                f"journal: the extra fields {taken} are fields of the record already; give them "
                "other names."
            )
        self._entry("step", values | extra)

    def event(self, kind: str, /, **fields: Any) -> None:
        """Append a line of another kind: an epoch, a validation, a checkpoint, a message.

        Args:
            kind: what happened, in a word; not ``header``, ``step`` or ``resumed``.
            fields: what is to be known of it, JSON values; numbers may be NaN or infinite.

        Raises:
            UsageError: a kind or a field that the journal uses itself, or a value that JSON
                cannot hold.
            JournalError: the disk refused; the lines before are intact.
        """
        if kind in _OWN_KINDS:
            raise UsageError(f"journal: the kind {kind!r} is the journal's own; choose another.")
        self._entry(kind, fields)

    def close(self) -> None:
        """Force everything to the disk and close the file; a second call does nothing.

        Raises:
            JournalError: the disk refused.
        """
        if self._file.closed:
            return
        try:
            self._sync()
        finally:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _begin(self, tail: Tail, header: Header, first: bytes) -> None:
        with self._disk("opened"):
            torn = os.fstat(self._file.fileno()).st_size - tail.end
        if torn:
            self._cut(tail.end)
        if tail.end == 0:
            self._append(first)
        else:
            again = {"started": header.stamp, "cut_bytes": torn, "run": header.run}
            self._entry("resumed", again)
        self._sync()

    def _entry(self, kind: str, fields: Mapping[str, Any]) -> None:
        if self._file.closed:
            raise UsageError(f"journal: {self.path} is closed; nothing can be added to it.")
        if taken := sorted(fields.keys() & set(_OWN_FIELDS)):
            raise UsageError(f"journal: the fields {taken} are the journal's own; rename them.")
        now = time.monotonic()
        self._append(encode({"kind": kind, "t": round(now - self._start, 6), **fields}))
        if self._fsync_every is not None and now - self._synced >= self._fsync_every:
            self._sync()

    def _append(self, line: bytes) -> None:
        if self._torn_at is not None:
            self._cut(self._torn_at)
        with self._disk("written"):
            self._torn_at = os.fstat(self._file.fileno()).st_size
            left = memoryview(line)
            while left:
                left = left[self._file.write(left) :]
        self._torn_at = None

    def _cut(self, end: int) -> None:
        with self._disk("written"):
            self._file.truncate(end)
        self._torn_at = None

    def _sync(self) -> None:
        with self._disk("written"):
            os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    @contextmanager
    def _disk(self, what: str) -> Generator[None]:
        try:
            yield
        except OSError as problem:
            raise JournalError(
                f"journal {self.path} could not be {what}: {problem.strerror or problem}. The "
                "lines that are in it are intact. Look at the free space and the permissions of "
                "its folder.",
                path=self.path,
            ) from problem
