"""The head of a CSV file: what its columns are, and how its rows are to be taken."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass

from surefoot.journal.foreign.grammar import Field, counter_of
from surefoot.journal.foreign.numbers import NUMBER
from surefoot.journal.foreign.words import IGNORED, bag, side, tokens

__all__ = ["CsvHead", "cells_of", "head_in", "separator_in"]

_KINDS = bag("kind mode phase split stage set subset type")
_KEYS = bag("metric name tag key quantity variable event")
_VALUES = frozenset({"value", "val", "values"})
_RUN = re.compile(r"(?P<run>.+?) - (?P<name>[^-]+(?:-[^ ][^-]*)*?)$")
_BIN = re.compile(r"__(?:MIN|MAX)$")


@dataclass(frozen=True)
class CsvHead:
    """Names of the columns and what follows from them."""

    names: tuple[str, ...]
    fields: tuple[Field | None, ...]
    """One per column; None where it holds no quantity."""
    runs: tuple[str, ...]
    """For each column the run that it belongs to, in an export of several."""
    separator: str
    kind: int | None = None
    """The column that says in a word what a row is about."""
    key: int | None = None
    """The column of names, in a table with one value per row."""
    value: int | None = None
    attempted: int | None = None
    """The column of the loss scale that overflowed: each row with one is an overflow."""
    scale: int | None = None
    """The column of the loss scale after it."""


def cells_of(line: str, separator: str) -> list[str]:
    """The cells of a line; quotes are heeded where there are any.

    >>> cells_of('1,"a, b",2', ","), cells_of("1;2", ";")
    (['1', 'a, b', '2'], ['1', '2'])
    """
    if '"' not in line:
        return line.split(separator)
    try:
        return next(csv.reader([line], delimiter=separator), [])
    except csv.Error:
        return line.split(separator)


def separator_in(lines: Sequence[str]) -> str | None:
    """What separates the cells, where the first lines look like a table with a head.

    >>> separator_in(["step,loss", "1,0.5"]), separator_in(["step 1, loss 0.5"]) is None
    (',', True)
    """
    said = [line for line in lines if line.strip() and not line.startswith("#")]
    if len(said) < 2:
        return None
    for separator in (",", ";", "\t"):
        rows = [cells_of(line, separator) for line in said]
        width = len(rows[0])
        if width < 2 or not _names(rows[0]):
            continue
        rows = rows[1:-1] or rows[1:]
        fit = sum(len(row) == width for row in rows)
        if fit >= 0.8 * len(rows) and 2 * sum(_numbers(row) > 0 for row in rows) >= len(rows):
            return separator
    return None


def _names(cells: Sequence[str]) -> bool:
    """Whether the cells are names: none is a number, most are not empty."""
    named = [c.strip() for c in cells if c.strip()]
    if any(NUMBER.fullmatch(name) for name in named) or any(len(n) > 120 for n in named):
        return False
    return (
        2 * len(named) >= len(cells)
        and len(set(named)) == len(named)
        and not any(re.search(r"[{}=]|: ", name) for name in named)
    )


def _numbers(cells: Sequence[str]) -> int:
    return sum(NUMBER.fullmatch(c.strip().strip('"')) is not None for c in cells)


def head_in(line: str, separator: str, stem: str) -> CsvHead | None:
    """The head that a line is, or None.

    Args:
        line: the line.
        separator: between its cells.
        stem: the file's name, which tells the metric of TensorBoard's exports.
    """
    cells = [cell.strip().strip('"').strip() for cell in cells_of(line, separator)]
    if len(cells) < 2 or not _names(cells):
        return None
    if [c.lower() for c in cells] == ["wall time", "step", "value"]:
        cells[2] = stem.rpartition("tag-")[2] or "value"
    lower = [c.lower() for c in cells]
    split = [_RUN.fullmatch(_BIN.sub("", c)) for c in cells]
    exported = lower[0] in (
        "step",
        "_step",
        "epoch",
        "global_step",
        "relative time (process)",
    ) and any(split)
    runs = tuple(s["run"] if exported and s else "" for s in split)
    names = tuple(
        c.removeprefix(f"{s['run']} - ") if exported and s else c
        for c, s in zip(cells, split, strict=True)
    )
    value = next((i for i, c in enumerate(lower) if c in _VALUES), None)
    key = next((i for i, c in enumerate(lower) if c in _KEYS), None) if value is not None else None
    scales = [i for i, n in enumerate(names) if "scale" in tokens(n)]
    attempted = next((i for i in scales if "attempted" in tokens(names[i])), None)
    return CsvHead(
        names=names,
        fields=tuple(_field(name, i) for i, name in enumerate(names)),
        runs=runs,
        separator=separator,
        kind=next((i for i, c in enumerate(lower) if c in _KINDS), None),
        key=key,
        value=value if key is not None else None,
        attempted=attempted,
        scale=next((i for i in scales if i != attempted), None),
    )


def _field(name: str, column: int) -> Field | None:
    words = tokens(name)
    if not name or not words or set(words) <= IGNORED:
        return None
    where = "validation" if side(words) == "validation" else ""
    what = "value" if _BIN.search(name) else counter_of(name) or "value"
    return Field(column, column, name, what, where)
