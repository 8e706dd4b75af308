"""A kind of line: after one of them has been understood, the others are read by one match each."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from surefoot.journal.foreign.grammar import Field, Reading
from surefoot.journal.foreign.masks import blanked
from surefoot.journal.foreign.numbers import NUMBER, to_float

__all__ = ["Template", "pattern_of"]

_PLAIN = (
    rb"[-+]?+(?:(?:\d++(?:\.\d*+)?+|\.\d++)(?:[eE][-+]?+\d++)?+(?![\d.#])"
    rb"|(?i:nan|inf(?:inity)?+)|1\.#[A-Z]++\d*+)"
)
_QUICK = rb"[-+.\deEnNaAiIfF]++"
"""What numbers consist of, many times faster to match; for where no such letter follows."""
_COMMAS = rb"[-+]?+\d[\d,]*+(?:\.\d++)?+(?:[eE][-+]?+\d++)?+"
_BLANKS = rb"[ \t]*+"
_VARYING = {
    "token": rb"[^\s,;'\"\])]++",
    "bar": rb"(?:\[[=>.\-# ]*+\]|[ \t]*+\d++(?:\.\d++)?+%[ ]?\|[^|]*+\|"
    rb"|[^\x00-\x7f]++(?:[ ]?+[^\x00-\x7f]++)*+)",
}
_CAPTURED = {"plain": _PLAIN, "comma": _COMMAS, "quick": _QUICK}
_UNUSUAL = frozenset("tTyY#")
MOST = 200
"""Numbers, times and the like in a line; one with more is no kind of line but a dump."""
_LETTERS = frozenset("-+.0123456789eEnNaAiIfFtTyY#")
Match = Callable[[bytes], re.Match[bytes] | None]


def pattern_of(reading: Reading) -> bytes:
    """A pattern of every line that differs from this one in its numbers only.

    >>> import re
    >>> from surefoot.journal.foreign.grammar import read_line
    >>> pattern = re.compile(pattern_of(read_line("step 3: loss 0.5, 10 ms")))
    >>> pattern.fullmatch(b"step  12: loss nan, 9 ms").groups()
    (b'12', b'nan')
    """
    text, spans = reading.text.rstrip(), list(reading.masked)
    taken = [(f.start, f.end, "comma" if f.comma else "plain") for f in reading.fields]
    taken += spans
    covered = {i for start, end, _ in taken for i in range(start, end)}
    for number in NUMBER.finditer(blanked(text, spans)):
        start, end = number.span("number")
        if not covered.intersection(range(start, end)):
            taken.append((start, end, "grouped" if number["comma"] else "loose"))
    if len(taken) > MOST:
        return rb"(?!)"
    pattern, place = bytearray(), 0
    for start, end, kind in sorted(taken):
        if start < place or end > len(text):
            continue
        pattern += _literal(text[place:start].rstrip(" \t"))
        usual = kind == "plain" and not _UNUSUAL & set(text[start:end])
        quick = usual and text[end : end + 1] not in _LETTERS
        pattern += _varying(text[start:end], "quick" if quick else kind)
        place = end
    return bytes(pattern + _literal(text[place:]) + rb"\s*+")


def _varying(text: str, kind: str) -> bytes:
    if kind in _CAPTURED:
        return _BLANKS + b"(" + _CAPTURED[kind] + b")"
    if kind == "grouped":
        return _BLANKS + _COMMAS
    if kind == "loose":
        return _BLANKS + _PLAIN.replace(rb"(?![\d.#])", b"")
    if kind == "shape":
        return _BLANKS + re.sub(rb"\d+", rb"\\d++", re.escape(text.encode()))
    return _BLANKS + _VARYING[kind]


def _literal(text: str) -> bytes:
    parts = re.split(r"[ \t]+", text)
    return _BLANKS.join(re.escape(part.encode()) for part in parts)


@dataclass(eq=False)
class Template:
    """Lines of one kind, and the numbers in those of them that have been read.

    ``rows`` and ``places`` collect what :meth:`flush` turns into arrays.
    """

    fields: tuple[Field, ...]
    match: Match
    format: str
    context: object | None = None
    """The heading or table head that the names come from; lines under another one are not its."""
    rows: list[bytes] = field(default_factory=list)
    """Numbers as bytes, one line after the other."""
    places: list[int] = field(default_factory=list)
    """Where each line stood."""
    blocks: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    """Arrays of N places and N x F numbers."""
    ranked: bool = False
    """Whether the lines name the process that they are of."""
    after: Template | None = None
    """The template of the line that came after one of these, the last time."""

    def flush(self) -> int:
        """Turn the collected numbers into an array; returns how many there were."""
        if not self.places:
            return 0
        places = np.array(self.places, dtype=np.int64)
        values, numbers = _floats(self.rows)
        values = values.reshape(len(places), -1)
        if numbers is not None:
            whole = numbers.reshape(values.shape).all(axis=1)
            places, values = places[whole], values[whole]
        for i, one in enumerate(self.fields):
            if one.unit.factor != 1.0 or one.unit.inverse:
                values[:, i] = _scaled(values[:, i], one)
        self.blocks.append((places, values))
        self.rows, self.places = [], []
        return values.size

    def thin(self) -> int:
        """Keep every second row, of a pair the one that is not finite; returns how many numbers."""
        places, values = self.joined()
        kept = np.arange(1, len(places), 2)
        broken = np.logical_not(np.isfinite(values).all(axis=1))
        kept -= broken[kept - 1] & ~broken[kept]
        self.blocks = [(places[kept], values[kept])] if len(kept) else [(places, values)]
        return self.blocks[0][1].size

    def joined(self) -> tuple[np.ndarray, np.ndarray]:
        """All places, and all numbers by row."""
        if not self.blocks:
            return np.empty(0, np.int64), np.empty((0, len(self.fields)))
        places, values = zip(*self.blocks, strict=True)
        return np.concatenate(places), np.concatenate(values)


def _floats(texts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray | None]:
    """The numbers that texts are, and which are numbers, or None where all are."""
    try:
        return np.fromiter(map(float, texts), np.float64, len(texts)), None
    except ValueError:
        values = np.fromiter(map(to_float, texts), np.float64, len(texts))
        named = [b"n" in text.lower() for text in texts]
        return values, ~np.isnan(values) | np.array(named, bool)


def _scaled(values: np.ndarray, one: Field) -> np.ndarray:
    if not one.unit.inverse:
        return values * one.unit.factor
    with np.errstate(divide="ignore", invalid="ignore"):
        return one.unit.factor / values
