"""How a line that nobody foresaw is read: every number in it, and what it is called."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace

from surefoot.journal.foreign.masks import blanked, masks, payload_of
from surefoot.journal.foreign.names import Name, name_before
from surefoot.journal.foreign.numbers import FRACTION, NO_UNIT, NUMBER, Unit, unit_of
from surefoot.journal.foreign.words import (
    BATCH,
    EPOCH,
    IGNORED,
    STEP,
    TRAIN,
    VALIDATION,
    bag,
    side,
    tokens,
)

__all__ = ["COUNTERS", "Field", "Reading", "counter_of", "read_line"]

COUNTERS = ("epoch", "step", "batch", "lead")
"""What a field may count; ``lead`` is a bare number at the beginning of a line."""
MOST = 64
"""Numbers that are taken from one line."""
_REACH = 160
_PLAIN_WORDS = bag("num global current cur no n number index i of opt optimizer count")
_AVERAGE = re.compile(r"\s*\(\s*(?:avg|mean|ema|smooth(?:ed)?|global_avg)?[.:= ]*$")
_LIST = re.compile(r"[\s\[\](){}]*,[\s\[\](){}]*$")
_COUNTED = re.compile(r"\s*[\[(]\s*\d+\s*/\s*\d+")
_STATISTICS = bag("min max mean median std avg var range x y p50 p95 p99 sum norm")
_MODE = re.compile(
    r"(?<![\w./-])(?:val|valid|validation|eval|evaluation|test|testing|dev|VAL|TEST|EVAL|Val|Valid"
    r"|Validation|Eval|Evaluation|Test|Testing|VALID|VALIDATION)(?:_inner)?(?![\w./=-])"
)
_JSON_MODE = re.compile(
    r"[\"'](?:mode|phase|split|stage|kind)[\"']\s*:\s*[\"'](?:val|valid|eval|test)"
)
_MEMORY = bag("mem memory vram ram rss allocated reserved")


@dataclass(frozen=True)
class Field:
    """A number in a line."""

    start: int
    end: int
    name: str
    what: str = "value"
    """``value``, a member of :data:`COUNTERS`, ``total`` (of the counter before it), or nothing."""
    side: str = ""
    unit: Unit = NO_UNIT
    comma: bool = False
    """Whether it is written with commas in it."""
    section: str = ""


@dataclass(frozen=True)
class Reading:
    """A line and what was found in it."""

    text: str
    fields: tuple[Field, ...]
    masked: tuple[tuple[int, int, str], ...] = ()

    @property
    def values(self) -> tuple[Field, ...]:
        """The fields that are measurements."""
        return tuple(f for f in self.fields if f.what == "value")


def counter_of(name: str) -> str:
    """What a name counts, or nothing.

    >>> counter_of("Epoch(train)"), counter_of("global_step"), counter_of("step_time")
    ('epoch', 'step', '')
    """
    words = set(tokens(name))
    words -= {w for w in words if side((w,))} | _PLAIN_WORDS
    if not words:
        return ""
    if words == {"total", "timesteps"}:
        return "step"
    for what, known in (("epoch", EPOCH), ("step", STEP), ("batch", BATCH)):
        if words <= known or (words <= STEP | BATCH and words & known and what == "batch"):
            return what
    return ""


def read_line(text: str) -> Reading:
    """Find the numbers of a line and their names.

    >>> [(f.name, f.what) for f in read_line("Epoch 3 [10/50] loss: 0.5 (0.6) lr 1e-4").fields]
    ... # doctest: +NORMALIZE_WHITESPACE
    [('Epoch', 'epoch'), ('', 'batch'), ('', 'total'), ('loss', 'value'),
     ('loss (average)', 'value'), ('lr', 'value')]
    """
    spans = masks(text)
    scan = _Scan(blanked(text, spans), payload_of(text))
    return Reading(text, scan.fields(), tuple(spans))


class _Scan:
    """One line, from left to right."""

    def __init__(self, text: str, payload: int) -> None:
        self.text = text
        self.payload = payload
        self.found = list[Field]()
        self.names = list[Name]()
        self.side = ""
        self.heading = ""

    def fields(self) -> tuple[Field, ...]:
        end = place = 0
        while (number := NUMBER.search(self.text, place)) is not None and len(self.found) < MOST:
            begin, stop = number.span("number")
            stop -= number["number"][-1] == "." and not self.text[stop : stop + 1].strip()
            comma = number["comma"]
            name = name_before(self.text[max(end, begin - _REACH) : begin])
            if comma and "," in comma[1:] and not name.sure and comma[0] == "0":
                stop, comma = begin + number["number"].index(","), None
            self._take(
                number["unit"] if stop == number.end("number") else "",
                name,
                begin,
                stop,
                bool(comma),
                end,
            )
            place = end = max(stop, number.end() if stop == number.end("number") else stop)
            if self.found and self.found[-1].what in COUNTERS and self.found[-1].end == stop:
                end = place = self._total(end)
        return self._settled()

    def _take(
        self, unit: str | None, name: Name, begin: int, stop: int, comma: bool, end: int
    ) -> None:
        left = self.text[end:begin]
        if name.label and (told := _MODE.search(name.label)) is not None:
            self.side = side(tokens(told.group()))
        field = self._named(name, left, begin, stop, unit or "")
        if field is not None:
            self.found.append(replace(field, comma=comma))
            self.names.append(name)

    def _named(self, name: Name, left: str, begin: int, stop: int, unit: str) -> Field | None:
        before = self.found[-1] if self.found else None
        if before is not None and before.what == "value" and not name.text:
            if _AVERAGE.match(left) and self.text[stop : stop + 24].lstrip().startswith(")"):
                return Field(
                    begin, stop, f"{before.name} (average)", "value", before.side, before.unit
                )
            listed = self.names[-1].opened and (self.names[-1].sure or not self.names[-1].text)
            if listed and _LIST.match(left) and "[" not in before.name[-2:]:
                return Field(begin, stop, _next_of(before.name), "value", before.side, before.unit)
        words = frozenset(tokens(name.text))
        if words and words <= TRAIN | VALIDATION and not unit:
            return self._sided(name, begin, stop)
        counted = unit_of(unit, memory=bool(words & _MEMORY))
        if not name.text:
            return self._nameless(left, begin, stop, unit, counted)
        if words and words <= IGNORED:
            return None
        own = side(tuple(words))
        what = counter_of(name.text) if not unit else ""
        if what and not self._counts(begin, stop, what):
            what = ""
        return Field(begin, stop, self._in_full(name), what or "value", own or self.side, counted)

    def _in_full(self, name: Name) -> str:
        """``Grad stats min`` where a line begins ``Grad stats: min=``."""
        if not name.sure or not frozenset(tokens(name.text)) <= _STATISTICS:
            return name.text
        if name.label.strip(" ,\x01"):
            self.heading = name_before(name.label.rpartition(":")[0] + ":").text
        return f"{self.heading} {name.text}".strip()

    def _counts(self, begin: int, stop: int, what: str) -> bool:
        said = self.text[begin:stop]
        return said.lstrip("+").isdigit() or (
            what == "epoch" and re.fullmatch(r"\d+\.\d+", said) is not None
        )

    def _sided(self, name: Name, begin: int, stop: int) -> Field | None:
        """``Test: [10/97]`` counts batches, ``Train: 3 [10/97]`` epochs, and others nothing."""
        if not self.text[begin:stop].isdigit():
            return Field(begin, stop, name.text, "value", side(tokens(name.text)))
        if FRACTION.match(self.text, stop) is not None:
            return Field(begin, stop, name.text, "batch", side(tokens(name.text)))
        if _COUNTED.match(self.text, stop) is not None:
            return Field(begin, stop, name.text, "epoch", side(tokens(name.text)))
        return None

    def _nameless(self, left: str, begin: int, stop: int, unit: str, counted: Unit) -> Field | None:
        if counted.kind == "per second" and counted.name:
            return Field(begin, stop, counted.name, "value", self.side, counted)
        if unit or not self.text[begin:stop].isdigit():
            return None
        if FRACTION.match(self.text, stop) is not None:
            if re.match(r"\s*/\s*\d+\s*(?:tok|it|s\b|img|samples|[KMG]i?B)", self.text[stop:]):
                return None
            return Field(begin, stop, "", "batch")
        if re.fullmatch(r"\s*\[?\s*", self.text[self.payload : begin]) and begin >= self.payload:
            return Field(begin, stop, "", "lead")
        return None

    def _total(self, end: int) -> int:
        """Take what stands behind a slash as the total of the counter before it."""
        found = FRACTION.match(self.text, end)
        if found is None:
            return end
        self.found.append(Field(*found.span(1), self.found[-1].name, "total"))
        self.names.append(Name())
        return found.end()

    def _settled(self) -> tuple[Field, ...]:
        """The fields, each with its side: the line's own, or that of a name before it."""
        first = self.found[0].start if self.found else len(self.text)
        said = self.text[self.payload : first]
        told = _MODE.search(said) or _JSON_MODE.search(self.text)
        whole = "validation" if told else ""
        fields, seen, sticky = list[Field](), Counter[str](), ""
        for field in self.found:
            own = side(tokens(field.name)) or field.side
            sticky = own or sticky
            repeated = field.what == "value" and seen[field.name] > 0 and not own
            mine = sticky if repeated else own or whole
            seen[field.name] += 1
            fields.append(replace(field, side="validation" if mine == "validation" else ""))
        return tuple(fields)


def _next_of(name: str) -> str:
    """``lr[1]`` behind ``lr``, ``lr[2]`` behind ``lr[1]``."""
    found = re.fullmatch(r"(.*)\[(\d+)\]", name)
    return f"{found[1]}[{int(found[2]) + 1}]" if found else f"{name}[1]"
