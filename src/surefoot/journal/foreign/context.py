"""What stands above a line and gives its numbers their names: a heading, or the head of a table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from surefoot.journal.foreign.grammar import Field, Reading, counter_of
from surefoot.journal.foreign.masks import blanked, masks
from surefoot.journal.foreign.numbers import FRACTION, NUMBER, unit_of
from surefoot.journal.foreign.words import IGNORED, KNOWN, bag, side, tokens

__all__ = ["Head", "Heading", "head_of", "heading_of", "row_of"]

_RULERS = "=-—–*#~─━_ \t[]"
_CAPITALS = re.compile(r"[A-Z][A-Z0-9/&() _-]{5,59}")
_SHORT = {"E": "epoch", "#": "step"}
_STARTS = re.compile(r"(?:^|[\s(])[-+.]?\d")
_WIDE = re.compile(r"\S {2,}\S")
_BARS = re.compile(r"[|│┃]")
_MEMORY = bag("mem memory vram ram")


@dataclass(frozen=True, eq=False)
class Heading:
    """A line that says what the lines below it are about."""

    name: str
    indent: int


@dataclass(frozen=True, eq=False)
class Head:
    """The first line of a table."""

    names: tuple[str, ...]
    separator: str
    """What is between two cells: ``|``, a tab, a comma, or blanks."""
    format: str


def heading_of(text: str, payload: int) -> Heading | None:
    """The heading that a line is, or None.

    >>> heading_of("  Gradient Norms:", 0).name, heading_of("Epoch 3:", 0), heading_of("a b", 0)
    ('Gradient Norms', None, None)
    """
    said = text[payload:].rstrip()
    indent = len(said) - len(said.lstrip())
    bare = said.strip(_RULERS)
    if bare.startswith("Traceback") or len(bare) > 60 or not any(c.isalpha() for c in bare):
        return None
    if bare.endswith(":") and not any(c.isdigit() for c in bare) and len(bare.split()) <= 8:
        return Heading(re.sub(r"^[^\w(]+", "", bare[:-1]), indent)
    capitals = bare.rpartition("] ")[2]
    if _CAPITALS.fullmatch(capitals) and " " in capitals:
        return Heading(capitals, indent)
    return None


def head_of(text: str, payload: int, format: str) -> Head | None:
    """The head of a table that a line is, or None.

    >>> head_of("epoch   train_loss   valid_loss", 0, "text").names
    ('epoch', 'train_loss', 'valid_loss')
    """
    spans = masks(text)
    bar = next((start for start, _, kind in spans if kind == "bar"), len(text))
    blank = blanked(text, spans)[payload : max(bar, payload)]
    said = blank.rstrip(" \t\x01:")
    separator = _separator(said)
    if separator == " " and blank.rstrip().endswith(":") and not _WIDE.search(said):
        return None
    cells = [cell.strip() for _, cell in _cells(said, 0, separator)]
    if sum(cell.endswith(":") for cell in cells[:-1]) == 1:
        return None  # a name and its value in words: "Scheduler: LambdaLR"
    names = tuple(cell.rstrip(":").strip() for cell in cells)
    if len(names) < 2 or len(names) > 256 or any(len(n) > 60 or n.count(" ") > 4 for n in names):
        return None
    if any(_STARTS.search(name) for name in names):
        return None
    words = [set(tokens(name)) for name in names]
    if not any(w & KNOWN or counter_of(n) for w, n in zip(words, names, strict=True)):
        return None
    return Head(names, separator, format)


def row_of(text: str, payload: int, head: Head) -> Reading | None:
    """A line as a row below a head, or None where it is none."""
    spans = masks(text)
    blank = blanked(text, spans)
    cells = list(_cells(blank, payload, head.separator))
    if len(cells) < len(head.names) or (head.separator != " " and len(cells) > len(head.names)):
        return None
    fields, label = list[Field](), ""
    for i, ((start, cell), name) in enumerate(zip(cells, head.names, strict=False)):
        found = NUMBER.match(blank, start + len(cell) - len(cell.lstrip()))
        if found is None or found.end("number") > start + len(cell):
            if i and cell.strip("\x01 -–:"):
                return None
            label = cell.strip() if i == 0 and cell.strip() != "all" else label
            continue
        fields += _cell_fields(blank, found, f"{label} {name}".strip())
    values = [f for f in fields if f.what in ("value", "epoch", "step")]
    if 2 * len(values) < len(head.names) or not values:
        return None
    return Reading(text, tuple(fields), tuple(spans))


def _cell_fields(text: str, found: re.Match[str], name: str) -> Iterator[Field]:
    begin, stop = found.span("number")
    words = frozenset(tokens(name))
    if words and words <= IGNORED:
        return
    counts = found["number"].lstrip("+").isdigit() or "." in found["number"]
    what = (_SHORT.get(name) or counter_of(name)) if counts else ""
    unit = unit_of(found["unit"] or "", memory=bool(words & _MEMORY))
    where = side(tuple(words))
    where = where if where == "validation" else ""
    yield Field(begin, stop, name, what or "value", where, unit, bool(found["comma"]))
    if what and (total := FRACTION.match(text, stop)) is not None:
        yield Field(*total.span(1), name, "total")


def _separator(said: str) -> str:
    if _BARS.search(said):
        return "|"
    if "\t" in said.strip():
        return "\t"
    if "," in said and not re.search(r"\S\s{2,}\S", said):
        return ","
    return " "


def _cells(text: str, begin: int, separator: str) -> Iterator[tuple[int, str]]:
    """Each cell with the place where it begins."""
    if separator == " ":
        said = text[begin:]
        wide = re.search(r"\S {2,}\S", said) and not any(c.isdigit() for c in said[:1])
        pattern = r"\S+(?: \S+)*" if wide and not NUMBER.search(said) else r"\S+"
        for found in re.finditer(pattern, said):
            yield begin + found.start(), found.group()
        return
    place, cut = begin, _BARS if separator == "|" else re.compile(re.escape(separator))
    end = len(text.rstrip())
    if separator == "|":
        place += len(text[begin:]) - len(text[begin:].lstrip(" |│┃"))
        end = len(text.rstrip(" |│┃"))
    for found in cut.finditer(text, place, end):
        yield place, text[place : found.start()]
        place = found.end()
    yield place, text[place:end]
