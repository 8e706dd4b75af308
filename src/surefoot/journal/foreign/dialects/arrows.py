"""Notes by hand: ``Memory: 32 GB → 45 GB → 62 GB``, one quantity as it went."""

from __future__ import annotations

import re
from dataclasses import replace

from surefoot.journal.foreign.dialect import Dialect
from surefoot.journal.foreign.grammar import Field, Reading, read_line
from surefoot.journal.foreign.names import name_before
from surefoot.journal.foreign.numbers import NUMBER, unit_of
from surefoot.journal.foreign.words import bag, tokens

__all__ = ["ARROWS"]

_ARROW = re.compile(r"\s*(?:→|⇒|➜|⟶|->|=>)\s*(?P<words>[A-Za-z ]{0,24}?)\s*$")
_MEMORY = bag("mem memory vram ram")


def _read(text: str) -> Reading | None:
    """The numbers between arrows, all under the name before the first."""
    reading = read_line(text)
    fields, end, name, left = list[Field](), 0, "", ""
    for number in NUMBER.finditer(text):
        begin, stop = number.span("number")
        between = text[end:begin]
        arrow = _ARROW.fullmatch(between)
        if arrow is not None and name:
            words = arrow["words"].strip()
            left = f"{name} {words}" if words else name
        else:
            name = left = name_before(between).text
        end = number.end()
        if left:
            unit = unit_of(number["unit"] or "", memory=bool(_MEMORY & set(tokens(name))))
            fields.append(Field(begin, stop, left, "value", "", unit, bool(number["comma"])))
    counters = {f.start: f for f in reading.fields if f.what != "value"}
    named = [counters.get(f.start, f) for f in fields]
    sides = {f.start: f.side for f in reading.fields}
    return Reading(
        text, tuple(replace(f, side=sides.get(f.start, f.side)) for f in named), reading.masked
    )


ARROWS = Dialect(
    name="arrows",
    sign=re.compile(
        r"[:=]\s*[-+]?\d[\d.,]*(?:[eE][-+]?\d+)?\s?[A-Za-z%]{0,4}\s*(?:→|⇒|➜|⟶|->|=>)\s*\D{0,24}\d"
    ),
    read=_read,
)
