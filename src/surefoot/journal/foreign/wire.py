"""As much of the protocol buffers' wire format as scalars in an event need.

Encoding: https://protobuf.dev/programming-guides/encoding
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

__all__ = ["Damaged", "fields_of", "scalars_of"]

_Value = int | bytes
_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_FLOAT, _DOUBLE = 1, 2


class Damaged(ValueError):
    """Bytes that are no message."""


def fields_of(data: bytes, *, strict: bool = True) -> Iterator[tuple[int, _Value]]:
    """Number and value of each field: an integer, or its bytes as they are.

    Args:
        data: a message.
        strict: whether to raise where it is damaged, or to end there.

    Raises:
        Damaged: it is no message.

    >>> list(fields_of(bytes([0x10, 0x96, 0x01])))
    [(2, 150)]
    """
    place, end = 0, len(data)
    try:
        while place < end:
            key, place = _varint(data, place)
            number, kind = key >> 3, key & 7
            if kind == _VARINT:
                value, place = _varint(data, place)
                yield number, value
                continue
            if kind == _BYTES:
                size, place = _varint(data, place)
            elif kind in (_EIGHT, _FOUR):
                size = 8 if kind == _EIGHT else 4
            else:
                raise Damaged(f"a field of the unknown kind {kind}")
            if place + size > end:
                raise Damaged("a field that is longer than what is left")
            yield number, data[place : place + size]
            place += size
    except Damaged:
        if strict:
            raise


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, place
    raise Damaged("a number without an end")


def scalars_of(event: bytes) -> tuple[int, list[tuple[str, float]]]:
    """The step of an event and the scalars in it, by tag.

    Raises:
        Damaged: it is no event.
    """
    step, scalars = 0, list[tuple[str, float]]()
    for number, value in fields_of(event):
        if number == 2 and isinstance(value, int):
            step = value - 2**64 if value >= 2**63 else value
        elif number == 5 and isinstance(value, bytes):
            for inner, one in fields_of(value):
                if inner == 1 and isinstance(one, bytes):
                    scalar = _scalar(one)
                    scalars += [scalar] if scalar is not None else []
    return step, scalars


def _scalar(data: bytes) -> tuple[str, float] | None:
    tag, found = "", None
    for number, value in fields_of(data):
        if number == 1 and isinstance(value, bytes):
            tag = value.decode("utf-8", "replace")[:200]
        elif number == 2 and isinstance(value, bytes) and len(value) == 4:
            found = struct.unpack("<f", value)[0]
        elif number == 8 and isinstance(value, bytes):
            found = _tensor(value)
    return (tag, found) if tag and found is not None else None


def _tensor(data: bytes) -> float | None:
    """A tensor of one float or double; others are no scalars."""
    kind, content = 0, b""
    for number, value in fields_of(data):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number in (4, 5, 6) and isinstance(value, bytes):
            content = value
    if kind == _FLOAT and len(content) == 4:
        return struct.unpack("<f", content)[0]
    if kind == _DOUBLE and len(content) == 8:
        return struct.unpack("<d", content)[0]
    return None
