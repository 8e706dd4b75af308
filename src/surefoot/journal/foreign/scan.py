"""One line from left to right: each number, and what the words before it make of it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from surefoot.journal.foreign.field import COUNTERS, Field, counter_of
from surefoot.journal.foreign.names import Name, name_before
from surefoot.journal.foreign.numbers import FRACTION, NO_UNIT, NUMBER, Unit, unit_of
from surefoot.journal.foreign.words import IGNORED, METRICS, TRAIN, VALIDATION, bag, side, tokens

__all__ = ["scan"]

MOST = 64
"""Numbers that are taken from one line."""
_REACH = 160
"""Characters before a number in which its name is looked for."""
_AVERAGE = re.compile(r"\s*\(\s*(?:avg|mean|ema|smooth(?:ed)?|global_avg)?[.:= ]*$")
_LIST = re.compile(r"[\s\[\](){}]*,[\s\[\](){}]*$")
_COUNTED = re.compile(r"\s*[\[(]\s*\d+\s*/\s*\d+")
_RATED = re.compile(r"\s*/\s*\d+\s*(?:tok|it|s\b|img|samples|[KMG]i?B)")
_ANOTHER = re.compile(r"\s+[-+]?(?:\d+\.\d+|nan|inf)", re.IGNORECASE)
_STATISTICS = bag("min max mean median std avg var range x y p50 p95 p99 sum norm")
_MODE = re.compile(
    r"(?<![\w./-])(?:val|valid|validation|eval|evaluation|test|testing|dev|VAL|TEST|EVAL|Val|Valid"
    r"|Validation|Eval|Evaluation|Test|Testing|VALID|VALIDATION)(?:_inner)?(?![\w./=-])"
)
_JSON_MODE = re.compile(
    r"[\"'](?:mode|phase|split|stage|kind)[\"']\s*:\s*[\"'](?:val|valid|eval|test)"
)
_MEMORY = bag("mem memory vram ram rss allocated reserved cpumem gpumem")


@dataclass(frozen=True)
class _Number:
    """A number, and what stands around it."""

    begin: int
    end: int
    said: str
    unit: str
    comma: bool
    left: str
    """What stands between the number before and this one."""
    name: Name

    @property
    def whole(self) -> bool:
        """Whether it is written as a whole number, or as one with zeros behind the point."""
        return re.fullmatch(r"\+?\d+(?:\.0*)?", self.said) is not None


def scan(text: str, payload: int) -> tuple[Field, ...]:
    """The fields of a line.

    Args:
        text: the line, with blanks where it holds times, paths and the like.
        payload: where what was logged begins.
    """
    return _Scan(text, payload).fields()


class _Scan:
    def __init__(self, text: str, payload: int) -> None:
        self.text = text
        self.payload = payload
        self.found = list[Field]()
        self.last = Name()
        self.side = self.heading = self.pending = ""

    def fields(self) -> tuple[Field, ...]:
        for number in self._numbers():
            label = number.name.label
            if label and (told := _MODE.search(label)) is not None:
                self.side = side(tokens(told.group()))
            field = self._field(number)
            if field is not None:
                self.found.append(replace(field, comma=number.comma))
                self.last = number.name
        self._nested_counters()
        return self._sided()

    def _numbers(self) -> Iterator[_Number]:
        place = 0
        while (found := NUMBER.search(self.text, place)) is not None and len(self.found) < MOST:
            begin, end = found.span("number")
            name = name_before(self.text[max(place, begin - _REACH) : begin])
            said, unit, comma = found["number"], found["unit"] or "", found["comma"] or ""
            if said[-1] == "." and not self.text[end : end + 1].strip():
                said = said[:-1]  # the end of a sentence
            if comma[:2] == "0," and not name.sure:
                said, unit, comma = said.partition(",")[0], "", ""
                end = begin + len(said)
            left = self.text[place:begin]
            place = end if comma != (found["comma"] or "") else found.end()
            yield _Number(begin, end, said, unit, bool(comma), left, name)
            if self.found and self.found[-1].what in COUNTERS and self.found[-1].end == end:
                place = self._total(place)

    def _total(self, place: int) -> int:
        """Take what stands behind a slash as the total of the counter before it."""
        found = FRACTION.match(self.text, place)
        if found is None:
            return place
        self.found.append(Field(*found.span(1), self.found[-1].name, "total"))
        return found.end()

    def _field(self, one: _Number) -> Field | None:
        name = one.name.text
        if not name:
            return self._follower(one) or self._nameless(one)
        words = frozenset(tokens(name))
        if words and words <= TRAIN | VALIDATION and not one.unit:
            return self._of_a_side(one)
        counted = unit_of(one.unit, memory=bool(words & _MEMORY))
        if words and words <= IGNORED and counted.kind != "bytes":
            return None
        own = side(tuple(words)) or self.side
        what = "" if one.unit else counter_of(name)
        if what and not (one.whole or ((what == "epoch" or "kimg" in words) and "." in one.said)):
            what = ""
        if not one.name.sure and not what and one.whole and _ANOTHER.match(self.text, one.end):
            self.pending = name  # "Train loss 12 3.4567": the step, then the value
            return Field(one.begin, one.end, "iteration", "step", own)
        if not what and words & METRICS and (total := FRACTION.match(self.text, one.end)):
            counted = Unit("", 1.0 / max(float(total[1]), 1.0))  # "Accuracy: 9660/10000"
        return Field(one.begin, one.end, self._in_full(one.name), what or "value", own, counted)

    def _in_full(self, name: Name) -> str:
        """``Grad stats min`` where a line begins ``Grad stats: min=``."""
        if not name.sure or not frozenset(tokens(name.text)) <= _STATISTICS:
            return name.text
        if name.label.strip(" ,\x01"):
            self.heading = name_before(name.label.rpartition(":")[0] + ":").text
        return f"{self.heading} {name.text}".strip()

    def _follower(self, one: _Number) -> Field | None:
        """An average in brackets, the next of a list, or the value behind a name and its step."""
        before = self.found[-1] if self.found else None
        if before is None or before.what not in ("value", "step"):
            return None
        if self.pending and not one.left.strip():
            name, self.pending = self.pending, ""
            return Field(one.begin, one.end, name, "value", before.side)
        if before.what != "value":
            return None
        closed = self.text[one.end : one.end + 24].lstrip().startswith(")")
        if closed and _AVERAGE.match(one.left) and not before.name.endswith("(average)"):
            name = f"{before.name} (average)"
            return Field(one.begin, one.end, name, "value", before.side, before.unit)
        listed = self.last.opened and (self.last.sure or not self.last.text)
        if listed and _LIST.match(one.left):
            name = _next_of(before.name)
            return Field(one.begin, one.end, name, "value", before.side, before.unit)
        return None

    def _of_a_side(self, one: _Number) -> Field | None:
        """``Test: [10/97]`` counts batches, ``Train: 3 [10/97]`` epochs; ``Val: 0.4`` measures."""
        where, name = side(tokens(one.name.text)), one.name.text
        if not one.said.isdigit():
            return Field(one.begin, one.end, name, "value", where)
        if FRACTION.match(self.text, one.end) is not None:
            return Field(one.begin, one.end, name, "batch", where)
        if _COUNTED.match(self.text, one.end) is not None:
            return Field(one.begin, one.end, name, "epoch", where)
        return None

    def _nameless(self, one: _Number) -> Field | None:
        counted = unit_of(one.unit)
        if counted.kind == "per second" and counted.name:
            return Field(one.begin, one.end, counted.name, "value", self.side, counted)
        if one.unit or not one.said.isdigit():
            return None
        if FRACTION.match(self.text, one.end) is not None:
            rated = _RATED.match(self.text, one.end)
            return None if rated else Field(one.begin, one.end, "", "batch")
        before = self.text[self.payload : one.begin]
        if one.begin >= self.payload and re.fullmatch(r"\s*\[?\s*", before):
            return Field(one.begin, one.end, "", "lead", unit=NO_UNIT)
        return None

    def _nested_counters(self) -> None:
        """Of ``[3/5][10/1563]`` and ``[3][10/1563]`` the first counts epochs."""
        if [f.what for f in self.found[:2]] == ["lead", "batch"] and not self.found[1].name:
            between = self.text[self.found[0].end : self.found[1].start]
            if between.replace(" ", "") == "][":
                self.found[0] = replace(self.found[0], what="epoch")
        bare = [i for i, f in enumerate(self.found) if f.what == "batch" and not f.name]
        if (
            len(bare) == 2
            and bare[1] == bare[0] + 2
            and not any(f.what == "epoch" for f in self.found)
        ):
            between = self.text[self.found[bare[0] + 1].end : self.found[bare[1]].start]
            if not between.strip(" []()"):
                self.found[bare[0]] = replace(self.found[bare[0]], what="epoch")

    def _sided(self) -> tuple[Field, ...]:
        """The fields, each with its side: the line's own, or that of a name before it."""
        first = self.found[0].start if self.found else len(self.text)
        told = _MODE.search(self.text[self.payload : first]) or _JSON_MODE.search(self.text)
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
