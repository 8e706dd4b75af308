"""What the loop says of itself: errors passed over, no loss, totals that do not add up."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.columns import finite
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.phrases import SKIPPED_BATCH
from surefoot.doctor.rule import Blind, Rule, rule
from surefoot.doctor.spot import counted, said_at
from surefoot.journal.series import Message, Role

__all__ = ["RULES"]

_REPEATED = 3
_NUMBERS = re.compile(r"\d+")
_NO_ERRORS = ("overflow", "refused", "config", "clipped", "nan_gradient", "scale_at_minimum")
"""Kinds of messages that speak of skipped steps as a matter of course."""


@rule("SF901", "errors that are caught and passed over")
def swallowed(case: Case) -> Iterator[Finding]:
    """The same exception again and again, and the loop goes on."""
    passed_over = [m for m in case.said(SKIPPED_BATCH) if m.kind not in _NO_ERRORS]
    told = [*case.of_kind("exception", "swallowed"), *passed_over]
    told = _repeated(sorted({m.line: m for m in told}.values(), key=lambda m: m.line))
    if not told:
        return
    losses = sum(int(np.isfinite(c.values).sum()) for c in case.losses)
    none_at_all = losses == 0
    last_loss = max((int(c.lines[-1]) for c in case.losses), default=0)
    goes_on = last_loss > told[0].line or none_at_all
    if not goes_on:
        return
    yield Finding(
        code="SF901",
        title=f"{len(told)} errors were caught and passed over"
        + (": not one loss was computed" if none_at_all else ""),
        cause=RootCause.SWALLOWED_EXCEPTIONS,
        severity=Severity.CRITICAL if none_at_all or len(told) > 0.1 * losses else Severity.WARNING,
        confidence=0.85 if none_at_all else 0.7,
        **said_at(told[0]),
        evidence=(
            Evidence("message", told[0].text, f"line {told[0].line}: {told[0].text[:120]}"),
            Evidence("times", len(told), f"{len(told)} times, {losses} losses"),
        ),
        not_this=(
            "not a healthy run: a loop that goes on after an error trains on less, or nothing",
        ),
        remedy=(
            "let the exception out, or catch the one that is expected, by its name",
            "allow a bounded number: stop after ten in a row",
        ),
        explains=("SF902",),
    )


@rule("SF902", "steps without a single loss")
def no_loss(case: Case) -> Iterator[Finding]:
    """Something is counted again and again, and no loss is ever written."""
    if any(case.has(r) for r in (Role.LOSS, Role.TERM, Role.METRIC, Role.VALIDATION_LOSS)):
        return
    rows = max((c.values.size for c in case.columns if c.role is Role.OTHER), default=0)
    failed = [m for m in case.run.messages if m.kind in ("exception", "nan_warning")]
    if rows < 10 or not failed:
        return
    yield Finding(
        code="SF902",
        title=f"{rows} steps are logged and not one loss",
        cause=RootCause.SWALLOWED_EXCEPTIONS,
        severity=Severity.WARNING,
        confidence=0.5,
        first_line=failed[0].line,
        evidence=(Evidence("rows", rows, f"{rows} rows of other values, no loss"),),
        remedy=("run one batch outside the loop's try and except",),
        log_next=("the loss of every step, and every exception with its traceback",),
    )


@rule("SF903", "a total that is not the sum of its terms", Role.LOSS, Role.TERM)
def total_of_nothing(case: Case) -> Iterator[Finding]:
    """A total of 0 beside terms that are not: the line that prints it is wrong."""
    if case.adversarial or case.loss is None:
        return
    for column in case.run.of(Role.LOSS):
        known = finite(column)
        if not known.values.size or np.any(known.values != 0.0):
            continue
        others = [finite(c).values for c in case.terms if c.name != column.name]
        if any(v.size and np.median(np.abs(v)) > 1e-3 for v in others):
            yield Finding(
                code="SF903",
                title=f"{column.name} is printed as 0 although its terms are not",
                cause=RootCause.UNKNOWN,
                severity=Severity.NOTE,
                confidence=0.5,
                first_line=int(known.lines[0]),
                evidence=(Evidence("total", 0.0, f"{known.values.size} totals of 0"),),
                not_this=("not dead_loss by that number alone: the terms are alive",),
                remedy=("mend the line that prints the total",),
            )
            return


@rule("SF904", "a log too short to judge", (Role.LOSS, Role.TERM, Role.METRIC))
def too_short(case: Case) -> Iterator[Finding | Blind]:
    """Two values have no trend."""
    sizes = [c.values.size for c in case.columns if c.role in (Role.LOSS, Role.TERM, Role.METRIC)]
    longest = max(sizes, default=0)
    if longest >= 3:
        return
    yield Finding(
        code="SF904",
        title=f"{counted(longest, 'value')} of the loss: no trend can be told from that",
        cause=RootCause.UNKNOWN,
        severity=Severity.NOTE,
        confidence=0.3,
        evidence=(
            Evidence("values", longest, f"the longest column has {counted(longest, 'value')}"),
        ),
        log_next=("some hundred steps",),
    )


@rule("SF905", "a run that died of an error")
def died(case: Case) -> Iterator[Finding]:
    """The last thing in the log is an exception that no other rule knows."""
    told = case.of_kind("exception", "device_assert", "timeout")
    if not told or "KeyboardInterrupt" in told[-1].text:
        return
    last = told[-1]
    logged_after = any(np.any(c.lines > last.line) for c in case.losses)
    if logged_after:
        return
    yield Finding(
        code="SF905",
        title=f"the run ends in an error: {last.text[:90]}",
        cause=RootCause.UNKNOWN,
        severity=Severity.WARNING,
        confidence=0.35,
        **said_at(last),
        evidence=(Evidence("message", last.text, f"line {last.line}: {last.text[:140]}"),),
        not_this=("not told by the numbers: the error is the code's or the machine's",),
        log_next=("the whole traceback", "CUDA_LAUNCH_BLOCKING=1, if it is an error of CUDA"),
    )


def _repeated(told: list[Message]) -> list[Message]:
    """Those that are said again and again, whatever numbers are in them."""
    alike = Counter(_NUMBERS.sub("0", message.text) for message in told)
    return [m for m in told if alike[_NUMBERS.sub("0", m.text)] >= _REPEATED]


RULES: tuple[Rule, ...] = (swallowed, no_loss, total_of_nothing, too_short, died)
