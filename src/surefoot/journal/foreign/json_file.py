"""Files that are one JSON value: ``trainer_state.json``, lists of records, histories of lists."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from surefoot.journal.foreign.grammar import Field, counter_of
from surefoot.journal.foreign.json_lines import JsonLines
from surefoot.journal.foreign.ledger import Ledger
from surefoot.journal.foreign.settings import settings_in
from surefoot.journal.foreign.source import text_of
from surefoot.journal.foreign.words import side, tokens

__all__ = ["JsonFile", "is_json_file"]

MAX_WHOLE = 2**26
"""Bytes of a file that is parsed at once; a list of records is read piece by piece."""
_MAX_RECORD = 2**24
_LIST = re.compile(r'"(log_history|history|logs|records|metrics|data)"\s*:\s*\[(?=\s*\{)')


def is_json_file(start: bytes) -> bool:
    """Whether a file that begins so is one JSON value over many lines.

    >>> is_json_file(b'[{"loss": 1}, '), is_json_file(b'{"loss": 1}\\n{"loss": 2}\\n')
    (True, False)
    """
    said = start.lstrip()
    if said[:1] == b"[":
        return re.match(rb"\[\s*[{\]]", said) is not None
    if said[:1] != b"{":
        return False
    line, _, rest = said.partition(b"\n")
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return (
            re.match(rb'\{\s*["}]', said) is not None
            and line.rstrip()[-1:] in b'{[,"' + b"}]0123456789el"
        )
    return not rest.strip()


class JsonFile:
    """Reads such a file; its records stand at the places 0, 1, 2... in their order."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._lines = list[int]()
        self._records = JsonLines(ledger, "json")

    def line_of(self, places: np.ndarray) -> np.ndarray:
        """The lines, from 1, of N places."""
        lines = np.array(self._lines or [1], np.int64)
        return lines[np.minimum(places, len(lines) - 1)]

    def read(self, blocks: Iterator[bytes]) -> bool:
        """Read all of it; False where it is no JSON after all, with nothing taken."""
        text, line = text_of(next(blocks, b"")), 1
        begin = self._list_in(text)
        if begin is None:
            return self._whole(text, blocks)
        self._head(text[:begin])
        line += text.count("\n", 0, begin)
        text, more, ended = text[begin:], True, False
        while more:
            text, line, ended = self._take(text, line)
            block = next(blocks, None)
            more = block is not None and not ended and len(text) < _MAX_RECORD
            if block is not None and more:
                text += text_of(block)
        if text.strip(" \r\n\t,") and not ended:
            self._ledger.note("the file ends within a record, which was left out")
        self._ledger.flush()
        return True

    def _list_in(self, text: str) -> int | None:
        if text.lstrip()[:1] == "[":
            return text.index("[") + 1
        found = _LIST.search(text)
        return found.end() if found is not None else None

    def _head(self, text: str) -> None:
        said = re.sub(r'["{}\[\]]', "", text)[:20_000].replace("\n", " ")
        self._ledger.set(0, settings_in(said))

    def _take(self, text: str, line: int) -> tuple[str, int, bool]:
        """Take the records that are complete; returns what is left, its line, whether it ended."""
        decoder, place = json.JSONDecoder(), 0
        while True:
            begin = place
            while begin < len(text) and text[begin] in " \r\n\t,":
                begin += 1
            line += text.count("\n", place, begin)
            if begin >= len(text) or text[begin] == "]":
                return text[begin:], line, begin < len(text)
            try:
                record, end = decoder.raw_decode(text, begin)
            except (ValueError, RecursionError):
                return text[begin:], line, False
            if isinstance(record, dict):
                self._records.add(record, len(self._lines))
                self._lines.append(line)
            line += text.count("\n", begin, end)
            place = end

    def _whole(self, text: str, blocks: Iterator[bytes]) -> bool:
        parts, size = [text], len(text)
        for block in blocks:
            parts.append(text_of(block))
            size += len(block)
            if size > MAX_WHOLE:
                return False
        try:
            value = json.loads("".join(parts))
        except (ValueError, RecursionError):
            return False
        if not isinstance(value, dict):
            return False
        self._lines = [1]
        if not self._lists(value, "", 0):
            self._records.add(value, 0)
        self._ledger.flush()
        return True

    def _lists(self, values: Mapping[str, Any], prefix: str, got: int) -> int:
        """A history: lists of numbers by name, one number an epoch; returns how many epochs."""
        loose = self._ledger.loosely("json")
        for key, value in values.items():
            if isinstance(value, dict) and prefix.count("/") < 4:
                got = max(got, self._lists(value, f"{prefix}{key}/", got))
            elif isinstance(value, list) and len(value) > 1:
                numbers = [(i, v) for i, v in enumerate(value) if isinstance(v, int | float)]
                name = f"{prefix}{key}"
                where = "validation" if side(tokens(name)) == "validation" else ""
                field = Field(0, 0, name, counter_of(name) or "value", where)
                for i, number in numbers:
                    loose.add(field, i, float(number))
                for i in range(got, len(value)):
                    loose.add(Field(0, 0, "epoch", "epoch"), i, i + 1.0)
                got = max(got, len(value))
        return got
