"""JSON objects, one a line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from surefoot.journal.foreign.dialects.known import format_of_names
from surefoot.journal.foreign.grammar import Field, counter_of
from surefoot.journal.foreign.ledger import Ledger
from surefoot.journal.foreign.numbers import NUMBER, to_float
from surefoot.journal.foreign.settings import settings_in
from surefoot.journal.foreign.words import IGNORED, side, tokens

__all__ = ["JsonLines", "numbers_in"]

MAX_KEYS = 512
_STABLE = 24
"""Kinds of lines that may be matched by a pattern each, before all are parsed."""
_SIDES = ("mode", "phase", "split", "stage", "kind")


class JsonLines:
    """Parses those JSON lines that no pattern fits: nested ones, and ones with texts in them."""

    def __init__(self, ledger: Ledger, format: str = "text") -> None:
        self._ledger, self._format = ledger, format
        self._plain = 0
        self._fields = dict[tuple[str, str], Field | None]()

    def takes(self, line: bytes, place: int) -> bool:
        """Whether it was a JSON object that had to be parsed; then the ledger has its numbers."""
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            return False
        if not isinstance(values, dict):
            return False
        if _flat(values):
            self._plain += 1
            if self._plain <= _STABLE:
                return False
        self.add(values, place)
        return True

    def add(self, values: Mapping[str, Any], place: int) -> None:
        """Take the numbers of an object that stands at a place."""
        where = side(tuple(str(values.get(name, "")) for name in _SIDES))
        format = format_of_names(values)
        loose = self._ledger.loosely(self._format if format == "text" else format)
        got = False
        for name, value in numbers_in(values):
            field = self._field(name, where)
            if field is not None:
                loose.add(field, place, value)
                got = got or field.what == "value"
        if not got:
            said = ", ".join(f"{k}: {v}" for k, v in values.items() if isinstance(v, str | bool))
            self._ledger.set(place, settings_in(said))

    def _field(self, name: str, where: str) -> Field | None:
        key = (name, where)
        if key not in self._fields and len(self._fields) < 8 * MAX_KEYS:
            words = tokens(name)
            own = "validation" if "validation" in (side(words), where) else ""
            field = Field(0, 0, name, counter_of(name) or "value", own)
            self._fields[key] = None if words and set(words) <= IGNORED else field
        return self._fields.get(key)


def _flat(values: Mapping[str, Any]) -> bool:
    """Whether a pattern of such a line is likely to fit the next one."""
    for value in values.values():
        if isinstance(value, dict | list):
            return False
        wordy = isinstance(value, str) and NUMBER.fullmatch(value) is None
        if wordy and (len(value) > 32 or any(c.isdigit() or c == " " for c in value)):
            return False
    return True


def numbers_in(
    values: Mapping[str, Any], prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, float]]:
    """The numbers of an object with their names, those of inner objects as ``outer/inner``.

    >>> dict(numbers_in({"loss": "16.4", "train": {"acc": 0.5}, "lr": [0.1, 0.2], "ok": True}))
    {'loss': 16.4, 'train/acc': 0.5, 'lr': 0.1, 'lr[1]': 0.2}
    """
    for count, (key, value) in enumerate(values.items()):
        name = f"{prefix}{key}"
        if count >= MAX_KEYS:
            return
        if isinstance(value, bool) or value is None:
            continue
        if isinstance(value, int | float):
            yield name, _float(value)
        elif isinstance(value, str) and len(value) < 40 and NUMBER.fullmatch(value):
            yield name, to_float(value)
        elif isinstance(value, dict) and depth < 4:
            yield from numbers_in(value, f"{name}/", depth + 1)
        elif isinstance(value, list) and len(value) <= 16:
            for i, one in enumerate(value):
                if isinstance(one, int | float) and not isinstance(one, bool):
                    yield (f"{name}[{i}]" if i else name), _float(one)


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")
