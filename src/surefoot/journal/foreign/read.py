"""Any log in, runs out: looks at how a file begins and hands it to the reader for that."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np

from surefoot.errors import JournalError
from surefoot.journal.foreign.assemble import runs_of
from surefoot.journal.foreign.csv_head import separator_in
from surefoot.journal.foreign.csv_table import CsvTable
from surefoot.journal.foreign.engine import LineReader
from surefoot.journal.foreign.events import EventFile, is_event_file
from surefoot.journal.foreign.json_file import JsonFile, is_json_file
from surefoot.journal.foreign.ledger import Ledger
from surefoot.journal.foreign.own import OwnJournal, is_own_journal
from surefoot.journal.foreign.source import BLOCK, Lines, text_of
from surefoot.journal.series import LoggedRun

__all__ = ["read_log"]

_SNIFFED = 2**16
_BINARY = {
    b"PK\x03\x04": "a zip archive, as PyTorch's checkpoints are",
    b"\x80\x02": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\x1f\x8b": "compressed with gzip; unpack it first",
    b"BZh": "compressed with bzip2; unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed with zstd; unpack it first",
    b"\x7fELF": "a program",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a NumPy array",
}


def read_log(source: Path | str | IO[bytes] | IO[str]) -> list[LoggedRun]:
    """The runs that a log tells of, at least one; it has no columns where nothing was found.

    The format is found out: our journal, TensorBoard's event files, CSV, JSON, and lines of text
    of any kind. The file is read once, in blocks; memory is bounded by the numbers in it (of more
    than 16 million every second one is let go), not by its length.

    Args:
        source: a path, or an open file or stream, binary or text.

    Raises:
        JournalError: the file cannot be read, is no log but something binary, or is an event file
            that is damaged.

    >>> run, = read_log(io.StringIO("step 10: loss 2.5, lr 1e-3\\nstep 20: loss 2.4, lr 1e-3\\n"))
    >>> [(c.name, c.role.value, c.values.tolist(), c.steps.tolist()) for c in run.columns]
    [('loss', 'loss', [2.5, 2.4], [10.0, 20.0]),
     ('lr', 'learning_rate', [0.001, 0.001], [10.0, 20.0])]
    """
    with ExitStack() as opened:
        if isinstance(source, str | Path):
            path = Path(source)
            try:
                stream: IO[bytes] | IO[str] = opened.enter_context(path.open("rb"))
                return _Reading(stream, str(path)).runs()
            except OSError as problem:
                raise JournalError(
                    f"log {path} could not be read: {problem.strerror or problem}. Give a file "
                    f"that "
                    "is there and that you may read.",
                    path=path,
                ) from problem
        return _Reading(source, str(getattr(source, "name", "<stream>"))).runs()


class _Reading:
    """One file that is being read."""

    def __init__(self, stream: IO[bytes] | IO[str], name: str) -> None:
        self.stream, self.name = stream, name
        self.start = self._start()

    def runs(self) -> list[LoggedRun]:
        """Choose the reader by the beginning of the file, and read it."""
        start = self.start.removeprefix(b"\xef\xbb\xbf")
        ledger = Ledger(self.name)
        ledger.columns = is_own_journal(start) or is_json_file(start) or is_event_file(start)
        if is_event_file(start):
            return self._events(ledger)
        self._refuse_binary(start)
        if is_own_journal(start):
            return self._lines(ledger, OwnJournal(ledger))
        if is_json_file(start) and (found := self._json(ledger)) is not None:
            return found
        separator = self._separator(start)
        if separator is not None:
            return self._csv(separator)
        return self._lines(ledger, LineReader(ledger))

    def _start(self) -> bytes:
        block = self.stream.read(BLOCK)
        return block.encode("utf-8", "replace") if isinstance(block, str) else block

    def _blocks(self) -> Iterator[bytes]:
        yield self.start
        while block := self.stream.read(BLOCK):
            yield block.encode("utf-8", "replace") if isinstance(block, str) else block

    def _refuse_binary(self, start: bytes) -> None:
        kind = next((kind for magic, kind in _BINARY.items() if start.startswith(magic)), None)
        sample = start[:4096]
        strange = sum(0 < byte < 8 or 13 < byte < 27 or 27 < byte < 32 for byte in sample)
        wide = start[:2] in (b"\xff\xfe", b"\xfe\xff") or sample.count(0) > 0.3 * len(sample)
        if kind is None and not wide and strange > 0.1 * len(sample) and len(sample) >= 32:
            kind = "binary"
        if kind is not None:
            raise JournalError(
                f"{self.name}: is no log but {kind}; it begins {start[:8]!r}. Give a log: text, "
                "CSV, JSON, an event file of TensorBoard, or a journal.",
                path=self.name,
                line=1,
            )

    def _separator(self, start: bytes) -> str | None:
        if b"\0" in start[:64] and start[:2] not in (b"\xff\xfe", b"\xfe\xff"):
            return None
        first = Lines(io.BytesIO(start[:_SNIFFED]))
        lines = next(iter(first), [])[:40]
        return separator_in([text_of(line) for line in lines])

    def _lines(self, ledger: Ledger, reader: LineReader | OwnJournal) -> list[LoggedRun]:
        lines = Lines(self.stream, self.start)
        place = 0
        for block in lines:
            reader.feed(block, place, torn=lines.torn)
            place += len(block)
        return runs_of(ledger, lines.line_of, lines.lines)

    def _csv(self, separator: str) -> list[LoggedRun]:
        table = CsvTable(self.name, separator, Path(self.name).stem)
        lines = Lines(self.stream, self.start)
        place = 0
        for block in lines:
            table.feed(block, place)
            place += len(block)
        runs = list[LoggedRun]()
        for ledger in table.ledgers.values():
            runs += runs_of(ledger, lines.line_of, lines.lines)
        return runs or runs_of(Ledger(self.name), lines.line_of, lines.lines)

    def _json(self, ledger: Ledger) -> list[LoggedRun] | None:
        file = JsonFile(ledger)
        kept = _Kept(self._blocks())
        if not file.read(kept):
            self.start = b"".join(kept.blocks)
            ledger.columns = False
            return None
        return runs_of(ledger, file.line_of, kept.newlines + 1)

    def _events(self, ledger: Ledger) -> list[LoggedRun]:
        file = EventFile(ledger)
        file.read(self._blocks())
        return runs_of(ledger, _next_number, file.records)


class _Kept:
    """Blocks of a file that are kept until it is clear that they are not needed again."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self.blocks = list[bytes]()
        self.newlines = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        block = next(self._blocks)
        self.newlines += block.count(b"\n")
        self.blocks.append(block)
        return block


def _next_number(places: np.ndarray) -> np.ndarray:
    return places + 1
