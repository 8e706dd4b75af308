"""Our own journal, read to the end also where a line of it is damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from surefoot.journal.foreign.grammar import Field
from surefoot.journal.foreign.json_lines import numbers_in
from surefoot.journal.foreign.ledger import Ledger
from surefoot.journal.foreign.own_events import (
    HANDLED,
    Said,
    Suspects,
    as_list,
    as_number,
    events_of,
    fault_of,
    line_said,
)
from surefoot.journal.foreign.words import side, tokens
from surefoot.records import Cause

__all__ = ["OwnJournal", "is_own_journal"]

_SIGNATURE = b'{"kind": "header", "format": "surefoot-journal"'
_PLAIN = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "loss_scale": "loss_scale",
}
_SUMMARIES = {
    *("steps", "applied", "refused", "causes", "events", "loss", "terms"),
    *("grad_norm_mean", "grad_norm_max", "learning_rates", "loss_scale"),
}
"""Fields of an epoch's line that sum up what its steps' lines tell."""
_SETTINGS_DEPTH = 4


def is_own_journal(start: bytes) -> bool:
    """Whether a file that begins so is a journal of ours."""
    return start.startswith(_SIGNATURE)


class OwnJournal:
    """Takes the lines of a journal in their order and writes into a ledger what is in them."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._loose = ledger.loosely("surefoot")
        self._fields = dict[str, Field]()
        self._step = Field(0, 0, "global_step", "step")
        self._stepped = False
        self._overflows = 0
        self._suspects = Suspects()

    def feed(self, lines: list[bytes], place: int, *, torn: bool = False) -> None:
        """Read lines, the first of which stands at ``place``; a torn one is passed over."""
        if torn:
            self.ledger.note("the last line is torn, which a run that was killed leaves")
            lines = lines[:-1]
        for here, line in enumerate(lines, place):
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                if line.strip():
                    self.ledger.note(f"line {here + 1} is no entry and was passed over")
                continue
            if isinstance(values, dict):
                self._entry(values, here)
        self.ledger.flush()

    def _entry(self, values: dict[str, Any], place: int) -> None:
        kind = values.get("kind")
        if kind == "step":
            self._record(values, place)
        elif kind in ("header", "resumed"):
            run = values.get("run")
            if isinstance(run, dict):
                self.ledger.set(place, _settings(run))
            if kind == "resumed":
                self.ledger.messages.say(place, "resumed", "resumed: the run went on here", {})
        elif kind == "stopped":
            text = f"stopped: {values.get('error', '')}: {values.get('message', '')}"
            self.ledger.messages.say(place, "exception", text, {})
        elif isinstance(kind, str) and kind in HANDLED:
            self._say(place, line_said(kind, values))
        elif isinstance(kind, str):
            self._other(kind, values, place)

    def _record(self, values: dict[str, Any], place: int) -> None:
        add = self._loose.add
        step = values.get("step")
        if not isinstance(step, int):
            self.ledger.note(f"line {place + 1} is a step without its number and was passed over")
            return
        add(self._step, place, float(step))
        self._stepped = True
        if values.get("verdict") == "accumulated":
            return
        taken = values.get("verdict") == "applied"
        for name, called in _PLAIN.items():
            value = as_number(values[name]) if name in values else math.nan
            # Of a step that was taken NaN says that nobody told the value.
            if name in values and not (taken and math.isnan(value)):
                add(self._field(called), place, value)
        for i, rate in enumerate(as_list(values.get("learning_rates"))):
            add(self._field(f"lr[{i}]" if i else "lr"), place, as_number(rate))
        for term in as_list(values.get("terms")):
            if isinstance(term, list) and len(term) >= 3:
                self._term(term, place)
        self._clipping(values, place)
        self._messages(values, place)

    def _term(self, term: list[Any], place: int) -> None:
        raw, weight = as_number(term[1]), as_number(term[2])
        name = str(term[0])[:80]
        add = self._loose.add
        add(Field(0, 0, name, section="loss terms"), place, raw)
        add(Field(0, 0, name, section="weighted loss terms"), place, raw * weight)
        if len(term) > 3 and math.isfinite(norm := as_number(term[3])):
            add(Field(0, 0, name, section="gradient norms of loss terms"), place, norm)

    def _clipping(self, values: Mapping[str, Any], place: int) -> None:
        cut, norm = as_number(values.get("clip_coefficient")), as_number(values.get("grad_norm"))
        if cut < 1.0 and math.isfinite(cut * norm):
            self._loose.add(self._field("clip"), place, cut * norm)

    def _messages(self, values: dict[str, Any], place: int) -> None:
        if values.get("verdict") == "refused":
            cause = str(values.get("cause"))
            overflow = cause == Cause.OVERFLOW.value
            told = {"scale": as_number(values.get("loss_scale"))} if overflow else {}
            self._overflows += overflow
            kind = "overflow" if overflow else "refused"
            self.ledger.messages.say(place, kind, _refusal(values, cause), told)
            if (fault := fault_of(values)) is not None:
                self._say(place, [fault])
        # Only what the loss scale made it skip: other refusals say nothing about the scale.
        self._loose.add(self._field("skipped"), place, float(self._overflows))
        self._say(place, events_of(values))
        self._say(place, self._suspects.step(values))

    def _say(self, place: int, told: Iterable[Said]) -> None:
        for one in told:
            self.ledger.messages.say(place, one.kind, one.text, one.values)

    def _other(self, kind: str, values: dict[str, Any], place: int) -> None:
        """An epoch, an evaluation, or whatever the run wrote."""
        left_out = {"kind", "t", "epoch"}
        if kind == "epoch" and self._stepped:
            left_out |= _SUMMARIES
        inner = {k: v for k, v in values.items() if k not in left_out}
        where = "evaluation " if kind == "evaluation" else ""
        for name, value in numbers_in(inner):
            self._loose.add(self._field(f"{where}{name}", of=kind), place, value)
        epoch = values.get("epoch")
        if isinstance(epoch, int | float):
            field = self._fields.setdefault("epoch", Field(0, 0, "epoch", "epoch"))
            self._loose.add(field, place, float(epoch))

    def _field(self, name: str, of: str = "") -> Field:
        key = f"{of}:{name}" if of else name
        if key not in self._fields:
            where = "validation" if side(tokens(name)) == "validation" else ""
            called = f"{of}/{name}" if of and of not in name and name in self._fields else name
            self._fields[key] = Field(0, 0, called, "value", where)
        return self._fields[key]


def _refusal(values: Mapping[str, Any], cause: str) -> str:
    try:
        sentence = Cause(cause).sentence
    except ValueError:
        sentence = cause
    names = [str(c[0]) for c in as_list(values.get("culprits")) if isinstance(c, list) and c]
    samples = [str(s) for s in as_list(values.get("sample_ids"))][:4]
    where = f" in {', '.join(names[:3])}" if names else ""
    on = f" on {', '.join(samples)}" if samples else ""
    return f"step {values.get('step')} was refused: {sentence}{where}{on}"


def _settings(run: Mapping[str, Any], depth: int = 0) -> dict[str, str]:
    """The settings of a run, inner ones too, under the names that rules know."""
    from surefoot.journal.foreign.settings import settings_in

    told = dict[str, str]()
    for name, value in run.items():
        if isinstance(value, dict) and depth < _SETTINGS_DEPTH:
            told = _settings(value, depth + 1) | told
        elif isinstance(value, str | int | float | bool):
            told |= settings_in(f"{name}: {str(value).replace(' ', '_')}")
    return told
