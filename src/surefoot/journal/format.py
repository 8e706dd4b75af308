"""What writer and reader of a journal agree on: the header, a line, and its values.

    {"kind": "header", "format": "surefoot-journal", "version": 1, "started": "...", "run": {...}}
    {"kind": "step", "t": 0.41, "step": 0, "verdict": "applied", "loss": 2.37, ...}
    {"kind": "epoch", "t": 345.2, "epoch": 1, "st_iou": 0.52}
    {"kind": "resumed", "t": 401.9, "started": "...", "cut_bytes": 0, "run": {...}}

``t`` is in seconds from the start in the header; it never decreases from line to line.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NoReturn, Self, cast

from surefoot.errors import JournalError, UsageError

__all__ = ["FORMAT_VERSION", "MAX_LINE_BYTES", "Header", "decode", "encode"]

FORMAT_VERSION = 1
"""Version of the lines' layout; a reader of today reads every older one."""
MAX_LINE_BYTES = 16 * 2**20
"""Longest line; it bounds the reader's memory, whatever lies in the file."""
_JSON = json.JSONEncoder(allow_nan=False)
_FORMAT = "surefoot-journal"
_SIGNATURE = f'{{"kind": "header", "format": "{_FORMAT}", "version": '.encode()


@dataclass(frozen=True, kw_only=True)
class Header:
    """The first line: what file this is, of which run, and since when."""

    started: datetime
    """With its time zone."""
    run: Mapping[str, Any]
    """What identifies the run, as it was given to the writer."""
    version: int = FORMAT_VERSION
    """Layout of the lines below."""

    @property
    def stamp(self) -> str:
        """The start in ISO 8601 with its time zone."""
        return self.started.isoformat(timespec="seconds")

    def encode(self) -> bytes:
        """The header as a line; it begins with the same bytes in every journal."""
        values = {"kind": "header", "format": _FORMAT, "version": self.version}
        return encode({**values, "started": self.stamp, "run": self.run})

    @classmethod
    def decode(cls, line: bytes, path: Path) -> Self:
        """The inverse of :meth:`encode`.

        Raises:
            JournalError: no header, a damaged one, or one of a newer format.
        """
        if not line.startswith(_SIGNATURE):
            raise JournalError(
                f"{path}: is no journal of surefoot; its first line begins {line[:40]!r} where a "
                "journal has its header. Give the journal.jsonl of a run folder.",
                path=path,
                line=1,
            )
        try:
            values = decode(line)
            version = int(values["version"])
            if version <= FORMAT_VERSION:
                started = datetime.fromisoformat(values["started"]).astimezone()
                return cls(started=started, run=dict(values["run"]), version=version)
        except (KeyError, TypeError, ValueError) as damage:
            raise JournalError(
                f"{path}, line 1: the header is damaged ({damage!r}); restore the file from a "
                "copy, or give the run a new journal.",
                path=path,
                line=1,
            ) from damage
        raise JournalError(
            f"{path}: is a journal of format version {version}; this surefoot reads up to "
            f"{FORMAT_VERSION}. Update surefoot.",
            path=path,
            line=1,
        )

    @staticmethod
    def begins(start: bytes) -> bool:
        """Whether ``start``, which has no newline, can be the beginning of a header."""
        return start.startswith(_SIGNATURE) or _SIGNATURE.startswith(start)


def encode(values: Mapping[str, Any]) -> bytes:
    r"""One line, with its newline.

    >>> encode({"kind": "epoch", "loss": float("nan")})
    b'{"kind": "epoch", "loss": "nan"}\n'

    Raises:
        UsageError: a value that JSON cannot hold, or a line beyond :data:`MAX_LINE_BYTES`.
    """
    line = _JSON.encode(_plain(values, ())).encode("ascii") + b"\n"
    if len(line) > MAX_LINE_BYTES:
        longest = max(values, key=lambda name: len(str(values[name])))
        raise UsageError(
            f"journal: a line of {len(line):,} bytes; the limit is {MAX_LINE_BYTES:,}. Most of it "
            f"is {longest!r}: write that to a file of its own and its path to the journal."
        )
    return line


def decode(line: bytes) -> dict[str, Any]:
    """The inverse of :func:`encode`.

    Raises:
        ValueError: no JSON object with a ``kind``.
    """
    try:
        values = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError as deep:
        raise ValueError("JSON nested too deep") from deep
    if not isinstance(values, dict) or not isinstance(values.get("kind"), str):
        raise ValueError('expected a JSON object with a "kind"')
    return cast(dict[str, Any], values)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"a bare {name}, which is no JSON")


def _plain(value: Any, place: tuple[str, ...]) -> Any:
    """``value`` in JSON's own types; ``place`` is where it stands, for the error."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return _plain_float(float(value))
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, Mapping):
        return {_key(k, place): _plain(v, (*place, str(k))) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return [_plain(v, (*place, str(i))) for i, v in enumerate(value)]
    raise UsageError(
        f"journal: {'.'.join(place) or 'the entry'} is a {type(value).__name__}; a journal holds "
        "numbers, strings, booleans, None, paths, and lists and dicts of them. Turn a tensor or "
        "an array into a number with .item(), or into a list with .tolist()."
    )


def _plain_float(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def _key(key: Any, place: tuple[str, ...]) -> str:
    if not isinstance(key, str):
        raise UsageError(
            f"journal: {'.'.join(place) or 'the entry'} has the key {key!r}; JSON knows only "
            "strings as keys, so that another one would come back changed."
        )
    return str.__str__(key)
