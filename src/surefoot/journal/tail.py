"""What a writer has to know of the journal it goes on in."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Self

from surefoot.journal.format import MAX_LINE_BYTES, Header, decode

__all__ = ["Tail"]

_BLOCK = 64 * 2**10


@dataclass(frozen=True, kw_only=True)
class Tail:
    """Where a journal's complete lines end, and when."""

    end: int = 0
    """Bytes up to and with the last newline; what lies behind them is a torn line."""
    started: datetime | None = None
    """Start in the header; None where there is no journal yet."""
    last: float = 0.0
    """Seconds from the start to the last entry."""

    def elapsed(self, now: datetime) -> float:
        """Seconds from the journal's start to ``now``, and never before its last entry."""
        if self.started is None:
            return 0.0
        return max(self.last, (now - self.started).total_seconds())

    @classmethod
    def of(cls, path: Path) -> Self:
        """Look at a file from both ends; what lies between is not read.

        Raises:
            JournalError: the file is no journal, or one of a newer format.
        """
        if not path.exists():
            return cls()
        with path.open("rb") as file:
            first = file.readline(MAX_LINE_BYTES)
            if not first.endswith(b"\n") and Header.begins(first):
                return cls()  # killed before the first line was complete
            header = Header.decode(first, path)
            end = _last_newline(file, file.seek(0, os.SEEK_END)) + 1
            last = _time_of(_line_before(file, end)) if end > len(first) else 0.0
        return cls(end=end, started=header.started, last=last)


def _last_newline(file: BinaryIO, before: int) -> int:
    """Place of the last newline before a place; -1 where there is none."""
    while before > 0:
        start = max(0, before - _BLOCK)
        file.seek(start)
        found = file.read(before - start).rfind(b"\n")
        if found >= 0:
            return start + found
        before = start
    return -1


def _line_before(file: BinaryIO, end: int) -> bytes:
    start = _last_newline(file, end - 1) + 1
    file.seek(start)
    return file.read(min(end - start, MAX_LINE_BYTES))


def _time_of(line: bytes) -> float:
    try:
        return float(decode(line)["t"])
    except (KeyError, TypeError, ValueError):
        return 0.0  # damaged: the reader says so, and the clock still knows the time
