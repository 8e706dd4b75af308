"""What became of a run, held against the same column's run without the fault."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from benchmarks.chaos.columns import Column
from benchmarks.chaos.evidence import (
    alarms,
    entries_of,
    said_by_records,
    said_by_text,
    words_of,
)
from benchmarks.chaos.fault import Entry, Expect, Fault, Struck
from benchmarks.chaos.launch import Outcome

__all__ = ["Verdict", "judge"]

_OURS = (-9, -25)
"""Signals that the harness itself kills with: SIGKILL and, in the middle of a write, SIGXFSZ."""
_SAID = {
    "where": "what+where",
    "what": "what",
    "wrong": "wrong cause",
    "metric": "bare nan/inf",
    "silent": "silent",
}


@dataclass(frozen=True)
class Verdict:
    """One cell."""

    survived: bool
    how: str
    """Accuracy, or what was lost."""
    said: str
    """``where``, ``what``, ``wrong``, ``metric`` or ``silent``."""
    quote: str = ""
    bit_equal: bool | None = None
    """Weights equal to those of the clean run; None where that was not asked."""

    def __str__(self) -> str:
        equal = {None: "", True: ", bit-equal", False: ", not bit-equal"}[self.bit_equal]
        return f"{'yes' if self.survived else 'no:'} {self.how}{equal} ({_SAID[self.said]})"


def judge(
    column: Column, fault: Fault, outcome: Outcome, clean: Outcome, *, tolerance: float = 0.02
) -> Verdict:
    """The verdict on a run.

    Args:
        column: who ran.
        fault: what struck.
        outcome: what is left.
        clean: what is left of the run of the same setting without a fault.
        tolerance: accuracy that may be lost.
    """
    survived, how = _survived(outcome, clean, tolerance)
    equal = None
    if survived and fault.lives > 1:
        equal = [r["hash"] for r in outcome.results] == [r["hash"] for r in clean.results]
    said, quote = _said(column, fault, outcome, clean)
    return Verdict(survived, how, said, quote, equal)


def _survived(outcome: Outcome, clean: Outcome, tolerance: float) -> tuple[bool, str]:
    first = outcome.lives[0]
    if not first.finished and not any(code in _OURS for code in first.codes):
        return False, _crash(outcome)
    if not outcome.finished:
        return False, _crash(outcome)
    ranks = {r["weights_hash"] for r in outcome.results}  # each has BatchNorm statistics of its own
    apart = ", ranks differ" if len(ranks) > 1 else ""
    if any(r["bad_weights"] for r in outcome.results):
        return False, f"NaN weights{apart}"
    if any(r["bad_buffers"] for r in outcome.results):
        return False, f"weights finite, NaN buffers{apart}"
    reached = min(r["accuracy"] for r in outcome.results)
    usual = min(r["accuracy"] for r in clean.results)
    return reached >= usual - tolerance and not apart, f"{reached:.3f}{apart}"


def _crash(outcome: Outcome) -> str:
    if None in outcome.lives[-1].codes:
        return "ran too long"
    lines = outcome.lives[0 if len(outcome.lives) == 1 else -1].log.splitlines()
    errors = [
        x for x in lines if re.match(r"^(\[rank\d\]: )?[\w.]*(Error|Exception|Diverged)\b", x)
    ]
    what = errors[-1].split(":")[0].split(".")[-1] if errors else str(outcome.lives[-1].codes)
    if len(outcome.lives) == 1:
        return f"crash, {what}"
    return "crash, restart works" if outcome.finished else f"crash, restart fails too, {what}"


def _said(column: Column, fault: Fault, outcome: Outcome, clean: Outcome) -> tuple[str, str]:
    on_file = fault.checkpoint_every > 0
    steps = None if on_file else fault.expect.steps
    by_text = said_by_text(outcome.log, clean.log, fault.text, steps)
    if not column.records:
        return by_text
    struck = Struck(
        samples=frozenset(re.findall(r"@struck (\d+)", outcome.log)),
        files=(*outcome.files, *outcome.damaged, "checkpoints"),
    )
    entries = entries_of(outcome.journal, outcome.log)
    usual = {_gist(alarm) for alarm in alarms(entries_of(clean.journal, clean.log))}
    new = [entry for entry in entries if _gist(entry) not in usual]
    by_records = said_by_records(new, _expected(column, fault), struck)
    if by_records[0] == "silent" and column.attached:
        return by_text
    return by_records


def _expected(column: Column, fault: Fault) -> Expect:
    """In a float16 loop an infinite gradient is an overflow until the scale stands at its floor."""
    expect = fault.expect
    if column.fp16 == "always" and "nonfinite_gradient" in expect.words:
        return replace(expect, words=expect.words | {"overflow"})
    return expect


def _gist(entry: Entry) -> tuple[object, ...]:
    """An entry without its time and its numbers."""
    return entry["kind"], entry.get("step"), entry.get("rank"), *sorted(words_of(entry))
