"""An examination as text for a terminal: the verdict, every finding in full, what was looked at."""

from __future__ import annotations

import math
from textwrap import wrap

import numpy as np

from surefoot.doctor.examine import CLEAN_BILL, Examination
from surefoot.doctor.finding import Finding
from surefoot.doctor.rule import NOT_LOGGED
from surefoot.journal.series import Column

__all__ = ["tell"]

_WIDTH = 100
_MARK = {"critical": "CRITICAL", "warning": "WARNING", "note": "note"}


def tell(examination: Examination, *, series: bool = False, checks: bool = False) -> str:
    """The report of one run.

    Args:
        examination: what the doctor made of it.
        series: also say how each column was read.
        checks: also list every check, with why those that did not run could not.
    """
    run = examination.run
    parts = [f"{run.source}  ({run.format}, {run.lines:,} lines)", _verdict(examination)]
    parts += [_finding(finding) for finding in examination.findings]
    if examination.explained:
        parts.append(_explained(examination))
    parts.append(_checked(examination, in_full=checks))
    if run.notes:
        parts.append("\n".join(_under("Reader", note) for note in run.notes[:5]))
    if series:
        parts.append(_series(examination))
    return "\n\n".join(part for part in parts if part)


def _verdict(examination: Examination) -> str:
    if not examination.judged:
        return "NOTHING TO JUDGE: no loss, metric, gradient norm or memory was found in it."
    if examination.healthy:
        return "HEALTHY"
    first = examination.findings[0]
    return f"{_MARK[first.severity.value]}: {first.cause.value}: {first.cause.sentence}"


def _finding(finding: Finding) -> str:
    place = [f"step {finding.step:g}"] if not math.isnan(finding.step) else []
    place += [f"line {finding.first_line:,}"] if finding.first_line is not None else []
    sure = f"{finding.cause.value}, {finding.confidence:.0%} sure"
    head = f"{finding.code}  {_MARK[finding.severity.value]}  {', '.join([sure, *place])}"
    lines = [head, *_wrapped("    ", _capital(finding.title) + ".")]
    lines += _list("Because", [str(fact) for fact in finding.evidence])
    lines += _list("It is", list(finding.not_this))
    lines += _list("Do", list(finding.remedy))
    lines += _list("Log next", list(finding.log_next))
    return "\n".join(lines)


def _explained(examination: Examination) -> str:
    said = (f"{f.code} ({f.title}) by {by}" for f, by in examination.explained)
    return "\n".join(_list("Explained", list(said), indent=""))


def _checked(examination: Examination, *, in_full: bool) -> str:
    ran = [check for check in examination.checks if not check.skipped]
    blind = [check for check in examination.checks if check.skipped]
    lines = [f"{len(ran)} checks ran, {len(blind)} could not."]
    if in_full:
        lines += _list("Ran", [f"{check.code} {check.title}" for check in ran], indent="")
    if in_full or not examination.judged:
        lines += _list("Could not", [f"{c.code} {c.title}: {c.skipped}" for c in blind], indent="")
    elif blind:
        lines += _wrapped("", _in_short([check.skipped for check in blind]))
    if any(finding.code != CLEAN_BILL for finding in examination.findings):
        lines.append("surefoot rules CODE tells more about a finding.")
    return "\n".join(lines)


def _in_short(whys: list[str]) -> str:
    """What was lacking, each thing once."""
    lacking = dict.fromkeys(w.removeprefix(NOT_LOGGED) for w in whys if w.startswith(NOT_LOGGED))
    others = dict.fromkeys(why for why in whys if not why.startswith(NOT_LOGGED))
    said = [f"not logged: {', '.join(lacking)}"] if lacking else []
    return f"What they lacked: {'; '.join([*said, *others])}."


def _series(examination: Examination) -> str:
    lines = ["How each column was read:"]
    for column in examination.run.columns:
        lines.append(f"  {column.name}: {column.role.value}{_of(column)}, {_range(column)}")
        lines += _wrapped("      ", column.read_as) if column.read_as else []
    return "\n".join(lines)


def _of(column: Column) -> str:
    more = [word for word in (column.group, column.unit, column.section) if word]
    return f" ({', '.join(more)})" if more else ""


def _range(column: Column) -> str:
    values = column.values
    count = f"{values.size:,} values, one for every {column.per}"
    known = values[np.isfinite(values)]
    lost = values.size - known.size
    less = f", {lost} not finite" if lost else ""
    if not known.size:
        return f"{count}{less}"
    return f"{count}, {known.min():.4g} to {known.max():.4g}{less}"


def _list(label: str, items: list[str], indent: str = "    ") -> list[str]:
    lines: list[str] = []
    for number, item in enumerate(items):
        head = f"{indent}{label if number == 0 else '':10}"
        lines += wrap(
            item,
            _WIDTH,
            initial_indent=head,
            subsequent_indent=" " * (len(indent) + 12),
            break_long_words=False,
        )
    return lines


def _under(label: str, text: str) -> str:
    return "\n".join(_list(label, [text], indent=""))


def _wrapped(indent: str, text: str) -> list[str]:
    return wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)


def _capital(text: str) -> str:
    """The first letter large, unless the text begins with the name of a column."""
    first = text.split(" ", 1)[0]
    return text[:1].upper() + text[1:] if first.isalpha() and first.islower() else text
