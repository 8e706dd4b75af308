"""Reads lines of any format: each kind of line is understood once and matched from then on."""

from __future__ import annotations

import re
from dataclasses import replace

from surefoot.journal.foreign.context import Head, Heading, head_of, heading_of, row_of
from surefoot.journal.foreign.dialects.known import dialect_of
from surefoot.journal.foreign.grammar import COUNTERS, Reading, read_line
from surefoot.journal.foreign.json_lines import JsonLines
from surefoot.journal.foreign.ledger import Ledger
from surefoot.journal.foreign.masks import payload_of
from surefoot.journal.foreign.messages import Rule, rule_for
from surefoot.journal.foreign.numbers import to_float
from surefoot.journal.foreign.ranks import names_a_rank
from surefoot.journal.foreign.settings import is_start, settings_in
from surefoot.journal.foreign.source import text_of
from surefoot.journal.foreign.sparse import KnownNames
from surefoot.journal.foreign.template import Template, pattern_of
from surefoot.journal.foreign.words import LOSSES, bag, tokens

__all__ = ["LineReader"]

MAX_LEARNED = 2_500
"""Lines that are looked at closely; what is still unlike all others then is searched for names."""
PATIENCE, ONE_IN = 800, 16
"""After so many lines, where most were unlike all others, only one in some is looked at closely."""
MAX_READ = 8_192
_NO_LETTERS = bytes(c for c in range(256) if not (65 <= c <= 90 or 97 <= c <= 122))
_BLANK = "blank"
_NOWHERE = "below no heading"
_MEASURED = bag("worker_killed refused nan_gradient nan_warning out_of_memory")
_FEW = 4
"""Numbers of a line that a heading above may belong to."""
_TIMES_IN_VAIN = 3
_Known = list[Template] | Rule | Heading | Head | str | int


class LineReader:
    """Takes the lines of a file in their order and writes into a ledger what is in them."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.heading: Heading | None = None
        self.head: Head | None = None
        self._headings = dict[tuple[str, int], Heading]()
        self._known = dict[bytes, _Known]()
        self._by_pattern = dict[tuple[bytes, int], Template]()
        self._json = JsonLines(ledger)
        self._names = KnownNames(ledger)
        self._learned = self._counted = self._scanned = 0
        self._torn = False
        self._last = Template((), re.compile(rb"(?!)").fullmatch, "")

    def feed(self, lines: list[bytes], place: int, *, torn: bool = False) -> None:
        """Read lines, the first of which stands at ``place``.

        Args:
            lines: without their ends.
            place: of the first.
            torn: whether the last one has no end, so that a count at its end may be cut.
        """
        self._torn = torn
        guess = self._last.after or self._last
        last = self._last
        for here, line in enumerate(lines, place):
            found = guess.match(line)
            if found is None or (guess.context is not None and not self._current(guess)):
                other = self._other(line, here)
                if other is None:
                    continue
                guess, found = other
            guess.rows += found.groups()
            guess.places.append(here)
            last.after = guess
            last = guess
            guess = guess.after or guess
        self._last = last
        self.ledger.flush()

    def _current(self, template: Template) -> bool:
        if template.context is _NOWHERE:
            return self.heading is None
        return template.context in (None, self.heading, self.head)

    def _other(self, line: bytes, place: int) -> tuple[Template, re.Match[bytes]] | None:
        """A line that is not of the kind that was expected."""
        key = line.translate(None, _NO_LETTERS)
        known = self._known.get(key)
        if isinstance(known, list):
            for template in known:
                found = template.match(line)
                if found is not None and (self._current(template) or self._leaves(template, line)):
                    return template, found
        elif isinstance(known, Rule):
            self._say(known, text_of(line[:MAX_READ]), place)
            return None
        elif isinstance(known, Heading):
            self.heading = known
            return None
        elif isinstance(known, Head):
            self.head = known
            return None
        elif known == _BLANK and not _payload(line).strip():
            self.heading = None
            return None
        elif known == _TIMES_IN_VAIN or not line:
            self.heading = self.heading if line else None
            return None
        return self._learn(line, place, key)

    def _leaves(self, template: Template, line: bytes) -> bool:
        """Whether a line of a kind that stands below no heading ends what is below one."""
        if template.context is not _NOWHERE or self.heading is None:
            return False
        said = _payload(line)
        if len(said) - len(said.lstrip()) >= self.heading.indent:
            return False
        self.heading = None
        return True

    def _learn(
        self, line: bytes, place: int, key: bytes
    ) -> tuple[Template, re.Match[bytes]] | None:
        if not line.strip():
            self.heading = None
            return None
        if len(self._known) > 50_000:
            self._known.clear()
        if line.lstrip()[:1] == b"{" and self._json.takes(line, place):
            return None
        if len(line) > MAX_READ:
            line = line[:MAX_READ]
        text = text_of(line)
        rule = rule_for(text)
        if rule is not None:
            self._message(rule, text, place, key)
            if rule.kind in _MEASURED and self._counted < MAX_LEARNED:
                self._measured(text, place)
            return None
        if self._tired(place):
            self._names.search(line, place)
            return None
        reading, format = self._read(text)
        if reading is not None and reading.values and not is_start(text):
            self._configured(text, place, data=True, reading=reading)
            return self._template(reading, format, line, key)
        return self._wordy(text, place, key, reading, format)

    def _tired(self, place: int) -> bool:
        """Whether close looks do not pay any more: of a chatty log only one in some is taken."""
        if self._learned < PATIENCE or 2 * self._learned < place:
            return self._learned >= MAX_LEARNED
        return self._learned >= MAX_LEARNED or place % ONE_IN != 0

    def _read(self, text: str) -> tuple[Reading | None, str]:
        self._learned += any(c.isdigit() for c in text)
        dialect = dialect_of(text)
        format = dialect.name if dialect is not None else "text"
        reading = dialect.read(text) if dialect is not None else read_line(text)
        if self.head is not None and (dialect is None or format == self.head.format):
            row = row_of(text, payload_of(text), self.head)
            if row is not None:
                return row, self.head.format
        if reading is not None and len(reading.values) == len(reading.fields) <= _FEW:
            reading = self._below(reading)
        return reading, format

    def _below(self, reading: Reading) -> Reading:
        """A lone ``name: value`` belongs to the heading above it, where it is indented."""
        if self.heading is None:
            return reading
        said = reading.text[payload_of(reading.text) :]
        if len(said) - len(said.lstrip()) < self.heading.indent:
            self.heading = None
            return reading
        named = [replace(f, section=self.heading.name) for f in reading.fields]
        return Reading(reading.text, tuple(named), reading.masked)

    def _template(
        self, reading: Reading, format: str, line: bytes, key: bytes
    ) -> tuple[Template, re.Match[bytes]] | None:
        if any(f.section for f in reading.fields):
            context: object | None = self.heading
        else:
            few = len(reading.values) == len(reading.fields) <= _FEW
            bare = not any(c.isalpha() for c in reading.text)
            context = self.head if self.head is not None and (bare or self._row(reading)) else None
            context = _NOWHERE if few and context is None else context
        pattern = pattern_of(reading)
        template = self._by_pattern.get((pattern, id(context)))
        if template is None:
            fields = tuple(sorted(reading.fields, key=lambda f: f.start))
            template = Template(fields, re.compile(pattern).fullmatch, format, context)
            template.ranked = names_a_rank(reading.text)
            self._by_pattern[pattern, id(context)] = template
            self.ledger.templates.append(template)
        found = template.match(line)
        if found is None:
            return None
        known = self._known.get(key)
        if isinstance(known, list):
            known.append(template)
        else:
            self._known[key] = [template]
        return template, found

    def _row(self, reading: Reading) -> bool:
        names = {f.name for f in reading.fields}
        return (
            self.head is not None
            and bool(names & set(self.head.names))
            and not any(name in reading.text for name in names)
        )

    def _wordy(
        self, text: str, place: int, key: bytes, reading: Reading | None, format: str
    ) -> None:
        """A line without measurements: a counter alone, a heading, a setting, or nothing."""
        self._configured(text, place, data=False, reading=reading)
        payload = payload_of(text)
        if not text[payload:].strip():
            self.heading = None
            self._known.setdefault(key, _BLANK)
            return
        if reading is not None and reading.fields and not (is_start(text) or self._torn):
            self._count(reading, format, place)
        found = head_of(text, payload, format) or heading_of(text, payload)
        if isinstance(found, Heading):
            found = self._headings.setdefault((found.name, found.indent), found)
        if isinstance(found, Head):
            self.head = found
        elif found is not None:
            self.heading = found
        if found is not None and key and not any(c.isdigit() for c in text[payload:]):
            self._known[key] = found
            return
        vain = self._known.get(key, 0)
        counted = reading is not None and any(f.what in COUNTERS for f in reading.fields)
        if isinstance(vain, int) and not counted:
            self._known[key] = vain + 1

    def _count(self, reading: Reading, format: str, place: int) -> None:
        for field in reading.fields:
            if field.what in COUNTERS or field.what == "total":
                value = float(reading.text[field.start : field.end].replace(",", ""))
                self.ledger.loosely(format).add(field, place, value)

    def _message(self, rule: Rule, text: str, place: int, key: bytes) -> None:
        self._say(rule, text, place)
        if rule.kind not in _MEASURED:
            self._known[key] = rule

    def _measured(self, text: str, place: int) -> None:
        """Take the numbers of a line that is a message and yet shows how things went."""
        dialect = dialect_of(text)
        reading = dialect.read(text) if dialect is not None else read_line(text)
        if reading is None or (
            dialect is None and (len(reading.values) < 2 or len(reading.fields) < 3)
        ):
            return
        loose = self.ledger.loosely(dialect.name if dialect is not None else "text")
        for field in reading.values:
            said = reading.text[field.start : field.end]
            loose.add(field, place, to_float(said) * field.unit.factor)

    def _say(self, rule: Rule, text: str, place: int) -> None:
        self.ledger.messages.add(place, rule, text)
        self._counted += 1
        if self._counted < MAX_LEARNED and re.search(r"\d%\s?\||(?i:epoch|step|iter|batch)", text):
            self._count(read_line(text), "text", place)

    def _configured(self, text: str, place: int, *, data: bool, reading: Reading | None) -> None:
        if is_start(text):
            self.ledger.starts.append(place)
        elif self._scanned > MAX_LEARNED:
            return
        counted = reading is not None and any(f.what in COUNTERS for f in reading.fields)
        lossy = reading is not None and any(set(tokens(f.name)) & LOSSES for f in reading.values)
        if data and (counted or lossy):
            return
        self._scanned += 1
        self.ledger.set(place, settings_in(text))


def _payload(line: bytes) -> str:
    text = text_of(line[:MAX_READ])
    return text[payload_of(text) :]
