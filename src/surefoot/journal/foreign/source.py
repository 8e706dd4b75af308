"""The bytes of a log as lines: any encoding, any line ends, no colours, in bounded memory."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO

import numpy as np

__all__ = ["MAX_LINE", "Lines", "text_of"]

BLOCK = 2**20
MAX_LINE = 2**20
"""Bytes of a line that are read; what is beyond is passed over."""
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_ESCAPES = re.compile(rb"\x1b(?:\[[0-9;?]*+[ -/]*+[@-~]|\][^\x07\x1b]*+(?:\x07|\x1b\\)?|[@-Z\\-_])")
_BACK = re.compile(rb"[\r\x08]+")


@dataclass
class Lines:
    """Cuts a stream into stretches of text, each at a place of its own, counted from 0.

    A line is one stretch, or several where a progress bar wrote over itself with carriage returns;
    :meth:`line_of` tells the line of the file from a place.
    """

    stream: IO[bytes] | IO[str]
    first: bytes = b""
    """What has been read of the stream already."""
    newlines: int = 0
    torn: bool = False
    """Whether the last line has no end."""
    _returns: list[np.ndarray] = field(default_factory=list)
    _places: int = 0

    def __iter__(self) -> Iterator[list[bytes]]:
        """Blocks of stretches, without their ends."""
        left = b""
        for block in self._blocks():
            data = left + block
            whole = data.rstrip(b"\r\x08")  # what comes next may belong to what was cut off
            end = max(whole.rfind(b"\n"), whole.rfind(b"\r"), whole.rfind(b"\x08")) + 1
            if end == 0:
                left = data[:MAX_LINE]
                continue
            left, data = data[end:], data[:end]
            yield self._stretches(data)
        if left:
            self.torn = True
            stretches = self._stretches(left + b"\n")
            self.newlines -= 1
            yield stretches

    @property
    def lines(self) -> int:
        """Lines read so far, a torn one included."""
        return self.newlines + self.torn

    def line_of(self, places: np.ndarray) -> np.ndarray:
        """The lines, from 1, of N places."""
        if not self._returns:
            return places + 1
        returns = np.concatenate(self._returns)
        return places + 1 - np.searchsorted(returns, places, side="left")

    def _stretches(self, data: bytes) -> list[bytes]:
        if b"\x1b" in data:
            data = _ESCAPES.sub(b"", data)
        if b"\0" in data:
            data = data.replace(b"\0", b"")
        if b"\r" in data or b"\x08" in data:
            data = _BACK.sub(b"\r", data.replace(b"\r\n", b"\n"))
        stretches = data.replace(b"\r", b"\n").split(b"\n") if b"\r" in data else data.split(b"\n")
        stretches.pop()
        if not _is_utf8(data):
            stretches = [s if _is_utf8(s) else s.decode("latin-1").encode() for s in stretches]
        if b"\r" in data:
            ends = np.frombuffer(data, np.uint8)
            ends = ends[(ends == 10) | (ends == 13)]
            self._returns.append(np.flatnonzero(ends == 13) + self._places)
        self.newlines += data.count(b"\n")
        self._places += len(stretches)
        return stretches

    def _blocks(self) -> Iterator[bytes]:
        raw = self._raw()
        start = next(raw, b"")
        coding = _coding_of(start)
        if coding is None:
            yield start.removeprefix(codecs.BOM_UTF8)
            yield from raw
            return
        decoder = codecs.getincrementaldecoder(coding)("replace")
        yield decoder.decode(start).removeprefix("\ufeff").encode("utf-8", "replace")
        for block in raw:
            yield decoder.decode(block).encode("utf-8", "replace")

    def _raw(self) -> Iterator[bytes]:
        if self.first:
            yield self.first
        while block := self.stream.read(BLOCK):
            yield block.encode("utf-8", "replace") if isinstance(block, str) else block


def _coding_of(start: bytes) -> str | None:
    """The encoding where it is not one that holds ASCII as it is."""
    for mark, coding in _MARKS:
        if start.startswith(mark):
            return coding
    sample = start[:512]
    if len(sample) >= 4 and sample.count(0) >= len(sample) // 3:
        even, odd = sample[::2].count(0), sample[1::2].count(0)
        if min(even, odd) * 8 < max(even, odd):
            return "utf-16-be" if even > odd else "utf-16-le"
    return None


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def text_of(line: bytes) -> str:
    """A line as text: UTF-8, or Latin-1 where it is no UTF-8.

    >>> text_of("Größe: 3".encode("latin-1")), text_of("Größe: 3".encode())
    ('Größe: 3', 'Größe: 3')
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        return line.decode("latin-1")
