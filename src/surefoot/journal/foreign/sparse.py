"""Lines that are never twice alike: only the names that are known by now are looked for in them."""

from __future__ import annotations

import re

from surefoot.journal.foreign.grammar import Field
from surefoot.journal.foreign.ledger import Ledger
from surefoot.journal.foreign.numbers import to_float

__all__ = ["KnownNames"]

_NUMBER = rb"([-+]?(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][-+]?\d++)?|(?i:[-+]?nan|[-+]?inf))"


class KnownNames:
    """Searches a line for ``name: value`` of the names that other lines had."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._fields = dict[bytes, Field]()
        self._pattern: re.Pattern[bytes] | None = None

    def search(self, line: bytes, place: int) -> None:
        """Take the numbers of the known names in a line."""
        if self._pattern is None:
            self._pattern = self._compiled()
        loose = self._ledger.loosely("text")
        for name, value in self._pattern.findall(line):
            loose.add(self._fields[name], place, to_float(value))

    def _compiled(self) -> re.Pattern[bytes]:
        self._ledger.note(
            "the lines differ in ever new ways; of the later ones only the numbers behind names "
            "that came before were read"
        )
        for template in self._ledger.templates:
            for field in template.fields:
                if field.name and field.what != "total" and not field.section:
                    self._fields.setdefault(field.name.encode(), field)
        names = sorted(self._fields, key=len, reverse=True)[:256] or [b"(?!)"]
        named = b"|".join(re.escape(name) for name in names if self._fields)
        return re.compile(
            rb"(?<![\w.])[\"']?("
            + (named or b"(?!)")
            + rb")[\"']?\s*[:= ]\s*[\"']?"
            + _NUMBER
            + rb"(?!\w)"
        )
