"""Samples and labels that the log itself names as bad, or that strike at the same place again."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.phrases import BAD_INPUT, BAD_LABEL
from surefoot.doctor.remedies import remedy_for
from surefoot.doctor.rule import Rule, rule
from surefoot.doctor.spot import counted, said_at, spot
from surefoot.journal.series import Message, Role

__all__ = ["RULES"]

_MANY_ASIDE, _SHOWN = 3, 3


@rule("SF701", "a sample that the log names as damaged")
def named_sample(case: Case) -> Iterator[Finding]:
    """NaN in inputs or targets, or a file that cannot be read."""
    told = case.said(BAD_INPUT) or _counted_as_bad(case)
    if told:
        yield _said(
            "SF701",
            "the log names samples that are damaged or no numbers",
            told,
            0.9,
            ("SF204", "SF301", "SF302", "SF106"),
            remedy_for(RootCause.BAD_DATA_OR_LABELS, case, told[0].line),
        )


@rule("SF702", "a label that the model has no output for")
def label_out_of_range(case: Case) -> Iterator[Finding]:
    """An index beyond the classes; on a GPU it shows as a device-side assertion."""
    told = case.said(BAD_LABEL)
    if told:
        yield _said(
            "SF702",
            "a label or an index is out of the range that the model knows",
            told,
            0.85,
            (),
            (
                "classes of the model >= highest label + 1; labels count from 0",
                "ignored labels must be ignore_index (-100), not 255 or -1",
                "CUDA_LAUNCH_BLOCKING=1 names the line",
            ),
        )


@rule("SF703", "spikes that come back with the same batch", Role.LOSS)
def periodic_spikes(case: Case) -> Iterator[Finding]:
    """The same distance between spikes again and again: the same samples, epoch after epoch."""
    if case.loss is None or case.adversarial or case.reinforced:
        return
    course = case.course(case.loss)
    humps = [h for h in course.humps if h.over and h.length <= 3]
    if len(humps) < 4:
        return
    gaps = np.diff([course.column.steps[h.first] for h in humps])
    usual = float(np.median(gaps))
    if usual < 5 or float(np.max(np.abs(gaps - usual))) > 0.05 * usual:
        return
    first = humps[0].first
    yield Finding(
        code="SF703",
        title=f"the loss spikes every {usual:g} steps: the same batch each time round",
        cause=RootCause.BAD_DATA_OR_LABELS,
        severity=Severity.WARNING,
        confidence=0.7,
        **spot(course.column, first),
        evidence=(
            Evidence("period", usual, f"{len(humps)} spikes, {usual:g} steps apart"),
            Evidence("peak", humps[0].peak, f"the first is {humps[0].peak:.4g}"),
        ),
        not_this=("not lr_too_high: instability keeps no clock",),
        remedy=remedy_for(RootCause.BAD_DATA_OR_LABELS, case, 0),
        explains=("SF804",),
    )


@rule("SF704", "samples that were set aside")
def set_aside(case: Case) -> Iterator[Finding]:
    """The loader could not read them, or a check refused them, and the run went on without."""
    told = case.of_kind("sample_set_aside")
    if not told:
        return
    many = len(told) >= _MANY_ASIDE
    yield Finding(
        code="SF704",
        title=f"{counted(len(told), 'sample')} could not be used, and the run went on without",
        cause=RootCause.BAD_DATA_OR_LABELS,
        severity=Severity.WARNING if many else Severity.NOTE,
        confidence=0.8,
        **said_at(told[0]),
        evidence=tuple(
            Evidence("sample", m.text, f"line {m.line}: {m.text[:120]}") for m in told[:_SHOWN]
        ),
        not_this=("not a fault of the training: it goes on with other samples in their place",),
        remedy=("mend these files, or take them out of the data set",),
        explains=("SF701",),
    )


@rule("SF705", "samples whose steps are refused each time")
def refused_again(case: Case) -> Iterator[Finding]:
    """The same samples, epoch after epoch, with good steps in between: it is they."""
    told = case.of_kind("refused_again")
    if not told:
        return
    names = list(dict.fromkeys(m.text.partition(": ")[0] for m in told))
    shown = ", ".join(names[:_SHOWN]) + (
        f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    )
    yield Finding(
        code="SF705",
        title=f"each step with {shown} is refused, and steps without are not",
        cause=RootCause.BAD_DATA_OR_LABELS,
        severity=Severity.WARNING,
        confidence=0.85,
        **said_at(told[0]),
        evidence=(
            Evidence("samples", len(names), counted(len(names), "sample")),
            Evidence("message", told[0].text, f"line {told[0].line}: {told[0].text[:140]}"),
        ),
        not_this=(
            "not lr_too_high: that strikes at a time, not at samples",
            "not numerically_unsafe_op alone: other samples pass the same operation",
        ),
        remedy=(
            "look at these samples: empty targets, values that are no numbers, boxes without area",
            "SafeLoader(loader, check=...) sets aside what a check refuses",
        ),
        explains=("SF103", "SF106", "SF404", "SF703", "SF804"),
    )


def _counted_as_bad(case: Case) -> list[Message]:
    """Columns that count NaN in inputs, as if each had been said."""
    said = re.compile(BAD_INPUT, re.I)
    return [
        Message("counted", int(c.lines[0]), f"{c.name}: {c.values[0]:g}", step=float(c.steps[0]))
        for c in case.columns
        if c.role is Role.OTHER and said.search(c.name.replace("_", " ")) and np.any(c.values > 0)
    ]


def _said(
    code: str,
    title: str,
    told: list[Message],
    confidence: float,
    explains: tuple[str, ...],
    remedy: tuple[str, ...],
) -> Finding:
    first = told[0]
    return Finding(
        code=code,
        title=title,
        cause=RootCause.BAD_DATA_OR_LABELS,
        severity=Severity.CRITICAL,
        confidence=confidence,
        **said_at(first),
        evidence=(
            Evidence("message", first.text, f"line {first.line}: {first.text[:120]}"),
            Evidence("times", len(told), f"said {len(told)} times"),
        ),
        remedy=remedy,
        explains=explains,
    )


RULES: tuple[Rule, ...] = (
    named_sample,
    label_out_of_range,
    periodic_spikes,
    set_aside,
    refused_again,
)
