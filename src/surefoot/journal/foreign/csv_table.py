"""CSV files: one row a step, or one row a value, exports of several runs, rows with gaps."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from surefoot.journal.foreign.csv_head import CsvHead, cells_of, head_in
from surefoot.journal.foreign.dialects.known import format_of_names
from surefoot.journal.foreign.grammar import Field
from surefoot.journal.foreign.ledger import Ledger
from surefoot.journal.foreign.messages import rule_for
from surefoot.journal.foreign.numbers import NUMBER, to_float, unit_of
from surefoot.journal.foreign.source import text_of
from surefoot.journal.foreign.words import side, tokens

__all__ = ["CsvTable"]

_COMMA = re.compile(r"[-+]?[\d.]*\d,\d+(?:[eE][-+]?\d+)?")
_EMPTY = frozenset(("", "none", "null", "na", "n/a", "-", "--"))


class CsvTable:
    """Takes the lines of a CSV file in their order and writes into ledgers what is in them.

    Args:
        name: path of the file.
        separator: between cells.
        stem: the file's name without its ending.
    """

    def __init__(self, name: str, separator: str, stem: str) -> None:
        self.ledgers = dict[str, Ledger]()
        self._name, self._separator, self._stem = name, separator, stem
        self._head: CsvHead | None = None
        self._format = "csv"
        self._sides = dict[str, str]()

    def feed(self, lines: list[bytes], place: int) -> None:
        """Read lines, the first of which stands at ``place``."""
        if self._head is not None and self._regular(lines, place):
            return
        rows, places = list[list[str]](), list[int]()
        for here, line in enumerate(lines, place):
            said = text_of(line)
            cells = cells_of(said, self._separator)
            head = self._head
            if (
                head is None
                or not any(map(_digit, cells))
                or (len(cells) == len(head.names) and cells[0] == head.names[0])
            ):
                self._take(rows, places)
                rows, places = [], []
                self._open(said, here)
            elif len(cells) != len(head.names):
                self._take(rows, places)
                rows, places = [], []
                self._odd(cells, here)
            else:
                rows.append(cells)
                places.append(here)
        self._take(rows, places)
        for ledger in self.ledgers.values():
            ledger.flush()

    def _regular(self, lines: list[bytes], place: int) -> bool:
        """Whether all lines were plain rows of the head's width, which have then been taken."""
        head, text = self._head, text_of(b"\n".join(lines))
        if head is None or '"' in text:
            return False
        rows = [line.split(self._separator) for line in text.split("\n")]
        if any(len(row) != len(head.names) for row in rows):
            return False
        if any(row[0] == head.names[0] for row in rows):
            return False
        self._take(rows, list(range(place, place + len(rows))))
        for ledger in self.ledgers.values():
            ledger.flush()
        return True

    def _open(self, said: str, place: int) -> None:
        """A line without numbers: a head, or words."""
        head = head_in(said, self._separator, self._stem)
        if head is not None and (self._head is None or len(head.names) == len(self._head.names)):
            if self._head is not None:
                for ledger in self.ledgers.values():
                    ledger.starts.append(place)
            self._head = head
            format = format_of_names(head.names)
            self._format = "csv" if format == "text" else format
        elif self._head is not None and said.strip():
            self._odd(cells_of(said, self._separator), place)

    def _ledger(self, run: str) -> Ledger:
        if run not in self.ledgers:
            source = f"{self._name} [{run}]" if run else self._name
            self.ledgers[run] = Ledger(source, columns=True)
        return self.ledgers[run]

    def _take(self, rows: list[list[str]], places: list[int]) -> None:
        head = self._head
        if head is None or not rows:
            return
        if head.key is not None or head.kind is not None or head.attempted is not None:
            for cells, place in zip(rows, places, strict=True):
                self._row(cells, place, head)
            return
        for i, column in enumerate(zip(*rows, strict=True)):
            field = head.fields[i]
            if field is not None:
                for run in _runs_for(head, i):
                    self._column(self._ledger(run), field, column, places)

    def _column(
        self, ledger: Ledger, field: Field, column: Sequence[str], places: list[int]
    ) -> None:
        loose = ledger.loosely(self._format)
        try:
            values = list(map(float, column))
        except ValueError:
            self._ragged(ledger, field, column, places)
            return
        loose.extend(field, places, values)

    def _ragged(
        self, ledger: Ledger, field: Field, column: Sequence[str], places: list[int]
    ) -> None:
        """A column with gaps, units or words in it."""
        loose = ledger.loosely(self._format)
        for cell, place in zip(column, places, strict=True):
            if not cell:
                continue
            try:
                loose.add(field, place, float(cell))
                continue
            except ValueError:
                said = cell.strip().strip('"')
            if said.lower() in _EMPTY:
                continue
            value = self._number(said)
            if value is not None:
                loose.add(field, place, value)
            elif (rule := rule_for(said)) is not None:
                ledger.messages.add(place, rule, said)

    def _number(self, said: str) -> float | None:
        if self._separator == ";" and _COMMA.fullmatch(said):
            return to_float(said.replace(".", "").replace(",", "."))
        found = NUMBER.fullmatch(said)
        if found is None:
            return None
        unit = unit_of(found["unit"] or "", memory=True)
        value = to_float(found["number"])
        return unit.factor / value if unit.inverse and value else value * unit.factor

    def _row(self, cells: list[str], place: int, head: CsvHead) -> None:
        """A row whose own words say what it is about."""
        ledger = self._ledger("")
        loose = ledger.loosely(self._format)
        kind = cells[head.kind].strip() if head.kind is not None else ""
        where = self._side(kind)
        self._said(cells, place, head, kind)
        for i, (cell, field) in enumerate(zip(cells, head.fields, strict=True)):
            if field is None or i in (head.kind, head.key):
                continue
            value = self._number(cell.strip())
            if value is None:
                continue
            if i == head.value and head.key is not None:
                field = self._keyed(cells[head.key].strip(), field)
            if field is not None:
                loose.add(replace(field, side=where or field.side), place, value)

    def _side(self, kind: str) -> str:
        if kind not in self._sides:
            found = side(tokens(kind))
            self._sides[kind] = found if found == "validation" else ""
        return self._sides[kind]

    def _keyed(self, name: str, field: Field) -> Field | None:
        if not name or len(name) > 120:
            return None
        words = tokens(name)
        where = "validation" if side(words) == "validation" else field.side
        return Field(field.start, field.end, name, "value", where)

    def _said(self, cells: list[str], place: int, head: CsvHead, kind: str) -> None:
        """Messages that are rows: an overflow, an exception, the end."""
        ledger = self._ledger("")
        text = ", ".join(
            f"{n} {c.strip()}" for n, c in zip(head.names, cells, strict=True) if c.strip()
        )
        tried = self._number(cells[head.attempted].strip()) if head.attempted is not None else None
        scale = self._number(cells[head.scale].strip()) if head.scale is not None else None
        if tried is not None or "overflow" in kind.lower():
            told = {"attempted": tried, "scale": scale}
            known = {name: value for name, value in told.items() if value is not None}
            ledger.messages.say(place, "overflow", text, known)
            return
        for cell in cells:
            if not _number_like(cell) and (rule := rule_for(cell)) is not None:
                ledger.messages.add(place, rule, cell)
                return

    def _odd(self, cells: list[str], place: int) -> None:
        """A row that is too short or too long: torn, or words."""
        ledger = self._ledger("")
        head = self._head
        rule = rule_for(" ".join(cells))
        if rule is not None:
            ledger.messages.add(place, rule, " ".join(cells))
            return
        if head is None or len(cells) > len(head.names) or not any(c.strip() for c in cells):
            return
        ledger.note(
            "a row has fewer cells than the head; its last cell, which may be cut, was left out"
        )
        for i, cell in enumerate(cells[:-1]):
            field, value = head.fields[i], self._number(cell.strip())
            if field is not None and value is not None and head.key is None:
                for run in _runs_for(head, i):
                    self._ledger(run).loosely(self._format).add(field, place, value)


def _runs_for(head: CsvHead, column: int) -> tuple[str, ...]:
    """The runs that a column belongs to: a column of no run, such as the step, belongs to all."""
    runs = tuple(dict.fromkeys(run for run in head.runs if run))
    if not runs:
        return ("",)
    return (head.runs[column],) if head.runs[column] else runs


def _digit(cell: str) -> bool:
    return any(c.isdigit() for c in cell)


def _number_like(cell: str) -> bool:
    return re.fullmatch(r"\s*[-+\d.eE%:]*\s*", cell) is not None
