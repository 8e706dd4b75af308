"""TensorBoard's event files: framed records, each with two checksums, of which scalars are read.

The format is that of TensorFlow: ``tsl/lib/io/record_writer.cc`` for the frames,
``tensorflow/core/util/event.proto`` and ``tensorflow/core/framework/summary.proto`` for what is
in them. The checksum is CRC-32C (RFC 3720, appendix B.4), rotated and offset.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from surefoot.errors import JournalError
from surefoot.journal.foreign.grammar import Field
from surefoot.journal.foreign.ledger import MAX_NUMBERS, Ledger, Points
from surefoot.journal.foreign.wire import Damaged, fields_of, scalars_of
from surefoot.journal.foreign.words import side, tokens

__all__ = ["EventFile", "crc32c", "is_event_file", "masked"]

MAX_RECORD = 2**26
"""Bytes of the longest record that is looked at; pictures are longer than scalars."""
MAX_TAGS = 2_048
_HEAD = 12
_MASK = 0xA282EAD8


def _table() -> np.ndarray:
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = np.where(values & 1, (values >> 1) ^ np.uint32(0x82F63B78), values >> 1)
    return values.astype(np.uint32)


_TABLE = _table()
_LIST = [int(v) for v in _TABLE]


def crc32c(data: bytes) -> int:
    """CRC-32C of some bytes.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    value = 0xFFFFFFFF
    for byte in data:
        value = _LIST[(value ^ byte) & 0xFF] ^ (value >> 8)
    return value ^ 0xFFFFFFFF


def masked(data: bytes) -> int:
    """The checksum as it stands in a frame."""
    value = crc32c(data)
    return ((value >> 15 | value << 17) + _MASK) & 0xFFFFFFFF


def is_event_file(start: bytes) -> bool:
    """Whether a file that begins so is an event file.

    >>> is_event_file(b"step,loss")
    False
    """
    if len(start) < _HEAD:
        return False
    length, check = struct.unpack("<QI", start[:_HEAD])
    return length <= MAX_RECORD and masked(start[:8]) == check


class EventFile:
    """Reads an event file into a ledger; its events stand at the places 0, 1, 2..."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._tags: dict[str, tuple[array[int], array[float], array[float]]] = {}
        self.records = self._numbers = 0

    def read(self, blocks: Iterator[bytes]) -> None:
        """Read all of it.

        Raises:
            JournalError: a frame whose checksum is wrong, with what was intact before it.
        """
        for record in self._frames(blocks):
            try:
                number, scalars = scalars_of(record)
            except Damaged as damage:
                raise self._damaged(f"is no event ({damage})") from damage
            for tag, value in scalars:
                self._take(tag, number, value)
        for tag, (places, steps, values) in self._tags.items():
            where = "validation" if side(tokens(tag)) == "validation" else ""
            arrays = np.array(places, np.int64), np.array(values), np.array(steps)
            field = Field(0, 0, tag, "value", where)
            self._ledger.points.append(Points(field, "tensorboard", 0, *arrays))

    def _take(self, tag: str, step: int, value: float) -> None:
        if tag not in self._tags and len(self._tags) >= MAX_TAGS:
            self._ledger.note(f"more than {MAX_TAGS:,} tags; the others were left out")
            return
        parts = self._tags.setdefault(tag, (array("q"), array("d"), array("d")))
        parts[0].append(self.records)
        parts[1].append(float(step))
        parts[2].append(value)
        self._numbers += 1
        if self._numbers > MAX_NUMBERS:
            self._ledger.note("a very long file: of the older scalars every second one was kept")
            self._tags = {t: (p[1::2], s[1::2], v[1::2]) for t, (p, s, v) in self._tags.items()}
            self._numbers //= 2

    def _frames(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        data = bytearray()
        for block in blocks:
            data += block
            begin = 0
            while (end := self._end_of(data, begin)) is not None and end <= len(data):
                body = bytes(data[begin + _HEAD : end - 4])
                if len(body) < 4096 and masked(body) != int.from_bytes(
                    data[end - 4 : end], "little"
                ):
                    raise self._damaged("does not fit its checksum")
                if _may_hold_scalars(body):
                    yield body
                self.records += 1
                begin = end
            del data[:begin]
        if data:
            self._ledger.note(
                f"the file ends within record {self.records + 1}, which a run that was killed "
                f"leaves"
            )

    def _end_of(self, data: bytearray, begin: int) -> int | None:
        """Where the frame that begins there ends, or None where its head is not complete."""
        if len(data) < begin + _HEAD:
            return None
        head = bytes(data[begin : begin + _HEAD])
        length, check = struct.unpack("<QI", head)
        if masked(head[:8]) != check:
            raise self._damaged("has a length that does not fit its checksum")
        if length > MAX_RECORD:
            raise self._damaged(f"is {length:,} bytes long; the limit is {MAX_RECORD:,}")
        return begin + _HEAD + length + 4

    def _damaged(self, what: str) -> JournalError:
        return JournalError(
            f"{self._ledger.source}, record {self.records + 1}: {what}. The event file is damaged "
            "there. Copy it again from where it was written.",
            path=Path(self._ledger.source),
            line=self.records + 1,
        )


def _may_hold_scalars(body: bytes) -> bool:
    """Whether it is short enough to be one of scalars, or of the kinds that hold no picture."""
    return len(body) < 2**20 and any(number == 5 for number, _ in fields_of(body, strict=False))
