"""The loss scale of fp16 training: looking for its place, falling to nothing, or misused."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.columns import finite
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.phrases import SCALE_FLOOR
from surefoot.doctor.remedies import remedy_for
from surefoot.doctor.robust import level
from surefoot.doctor.rule import Rule, rule
from surefoot.doctor.scales import ScaleHistory
from surefoot.doctor.spot import counted
from surefoot.journal.series import Message, Role

__all__ = ["RULES"]

_HIGH = 2.0**13
"""A scale that ends here or above has found its place, or is still on its way down to it."""
_NAN_CODES = ("SF101", "SF102", "SF103", "SF104", "SF105", "SF106")
_NO_CLIP = "do not look at clipping or at the learning rate before the overflow is gone"


@rule("SF201", "a loss scale that falls to nothing", Role.LOSS_SCALE)
def collapse(case: Case) -> Iterator[Finding]:
    """Halved again and again without growing back: every backward pass has an infinity in it."""
    history = case.scales
    floor = _floor(case)
    if not (_fell_to_nothing(history) or (floor and history.halvings)):
        return
    first = int(np.flatnonzero(history.moves < 0)[0]) + 1
    top, last = float(history.scales.max()), float(history.scales[-1])
    evidence = [
        Evidence("last_scale", last, f"the scale went from {top:g} to {last:g}"),
        Evidence("halvings", history.halvings, f"it fell {counted(history.halvings, 'time')}"),
        Evidence("growths", history.growths, f"it grew {counted(history.growths, 'time')}"),
    ]
    if floor:
        evidence.append(Evidence("floor_line", floor[0].line, f"line {floor[0].line}: the floor"))
    yield Finding(
        code="SF201",
        title=f"the loss scale collapses to {last:g}: steps are skipped one after the other",
        cause=RootCause.LOSS_SCALE_COLLAPSE,
        severity=Severity.CRITICAL,
        confidence=0.85 if floor or last < 0.01 or history.growths == 0 else 0.7,
        **history.spot(first),
        evidence=(*evidence, *_true_norm(case, last)),
        not_this=(
            "not the calibration at the start of fp16 training: that ends after some halvings at "
            "a scale in the thousands, and the scale grows again",
        ),
        remedy=(
            *remedy_for(RootCause.FP16_OVERFLOW, case, int(history.lines[first])),
            "take the mean, not the sum, of the gradients over workers and tokens",
            "go back to a checkpoint from before the fall: the weights may be spoilt already",
            _NO_CLIP,
        ),
        log_next=("the loss and the true gradient norm of every step, skipped ones included",),
        explains=(*_NAN_CODES, "SF202", "SF203", "SF207", "SF401", "SF801"),
    )


@rule("SF202", "an overflow that no loss scale prevents", Role.LOSS_SCALE)
def forward_overflow(case: Case) -> Iterator[Finding]:
    """At a scale of 1 nothing is multiplied any more: the forward pass itself overflows."""
    history = case.scales
    low = history.scales <= 1.0
    at_floor = int(np.sum(low & np.isin(history.lines, history.overflow_lines)))
    if at_floor >= 2 and float(np.ptp(history.scales[low])) == 0.0:
        first = int(np.flatnonzero(low)[0])
        started_low = history.halvings == 0
        yield Finding(
            code="SF202",
            title=f"{at_floor} steps overflow although the loss scale is {history.scales[-1]:g}",
            cause=RootCause.FP16_OVERFLOW,
            severity=Severity.CRITICAL,
            confidence=0.9 if started_low else 0.6,
            **history.spot(first),
            evidence=(
                Evidence("scale", float(history.scales[-1]), "the scale multiplies by 1 at most"),
                Evidence("overflows", at_floor, f"{counted(at_floor, 'overflow')} at that scale"),
            ),
            not_this=(
                "not loss_scale_collapse by itself: a lower scale would change nothing, the "
                "values overflow before they are scaled",
            ),
            remedy=remedy_for(RootCause.FP16_OVERFLOW, case, int(history.lines[first])),
            explains=(*_NAN_CODES, "SF203", "SF207"),
        )
    elif _fell_to_nothing(history):
        yield _beneath_the_collapse(case, history)


@rule("SF206", "a loss scale that is looking for its place", Role.LOSS_SCALE)
def calibration(case: Case) -> Iterator[Finding]:
    """Some overflows and a scale that stays high: dynamic scaling at work."""
    history = case.scales
    if not history.overflows and not history.halvings:
        return
    if _fell_to_nothing(history) or _ends_falling(case) or _floor(case):
        return
    if history.scales.size and float(history.scales[-1]) <= 1 and history.overflows > 3:
        return
    count = max(history.overflows, history.halvings)
    last = float(history.scales[-1]) if history.scales.size else math.nan
    yield Finding(
        code="SF206",
        title=f"{counted(count, 'overflow')}: dynamic loss scaling finds its place",
        cause=RootCause.HEALTHY,
        severity=Severity.NOTE,
        confidence=0.8,
        first_line=int(history.overflow_lines[0]) if history.overflows else None,
        evidence=(
            Evidence("overflows", count, f"{counted(count, 'overflow')} in the log"),
            Evidence("last_scale", last, f"the scale stands at {last:g} at the end"),
        ),
        not_this=("not loss_scale_collapse: the scale stays high, or grows again",),
        remedy=(),
    )


@rule("SF207", "an excerpt that ends while the loss scale falls", Role.LOSS_SCALE)
def falling_at_the_end(case: Case) -> Iterator[Finding]:
    """Two or more halvings in a row, then nothing: it may settle or collapse."""
    history = case.scales
    if _fell_to_nothing(history) or not _ends_falling(case) or _floor(case):
        return
    last = float(history.scales[-1])
    yield Finding(
        code="SF207",
        title=f"the log ends while the loss scale falls, at {last:g}",
        cause=RootCause.UNKNOWN,
        severity=Severity.WARNING,
        confidence=0.55,
        **history.spot(-3),
        evidence=(
            Evidence("last_scale", last, f"the last scales: {_tail(history)}"),
            Evidence("halvings", history.halvings, counted(history.halvings, "halving")),
        ),
        not_this=(
            "not loss_scale_collapse yet: that is told from a scale below 1 or at its floor",
        ),
        log_next=(
            "fifty more steps: a scale that settles is healthy, one that falls below 1 is not",
            "the true gradient norm of each step",
        ),
    )


def _floor(case: Case) -> list[Message]:
    return case.of_kind("scale_at_minimum") or case.said(SCALE_FLOOR)


def _fell_to_nothing(history: ScaleHistory) -> bool:
    scales = history.scales
    if scales.size < 2 or history.halvings < 2:
        return False
    last, top = float(scales[-1]), float(scales.max())
    late = np.flatnonzero(history.moves < 0)[-1] >= 0.5 * (scales.size - 1)
    grew_since = np.any(history.moves[int(np.argmin(scales)) :] > 0)
    if last < 1.0:
        return bool(last <= top / 4 and late and not grew_since)
    falling = int(np.sum(history.moves[-4:] < 0))
    return bool(last <= 4.0 and falling >= 3 and top >= 8 * last)


def _ends_falling(case: Case) -> bool:
    """Whether the last scales are halvings at a low scale and the log has hardly a step more."""
    history = case.scales
    if history.scales.size < 3 or float(history.scales[-1]) >= _HIGH:
        return False
    others = (c for c in case.columns if c.role is not Role.LOSS_SCALE)
    after = max((int(np.sum(c.lines > history.lines[-1])) for c in others), default=0)
    return bool(np.all(history.moves[-2:] < 0)) and after <= history.halvings


def _beneath_the_collapse(case: Case, history: ScaleHistory) -> Finding:
    """Why a scale falls: the second thing to think of beside the collapse itself."""
    line = int(history.lines[-1])
    return Finding(
        code="SF202",
        title="values overflow float16 whatever the loss scale is",
        cause=RootCause.FP16_OVERFLOW,
        severity=Severity.WARNING,
        confidence=0.4,
        **history.spot(-1),
        evidence=(Evidence("last_scale", float(history.scales[-1]), f"scales: {_tail(history)}"),),
        remedy=remedy_for(RootCause.FP16_OVERFLOW, case, line),
        log_next=("which module's output is infinite first: surefoot's record names it",),
    )


def _true_norm(case: Case, scale: float) -> tuple[Evidence, ...]:
    if case.gradient is None or scale >= 1:
        return ()
    norms = finite(case.gradient).values
    if not norms.size or level(norms) > 100:
        return ()
    text = f"the logged gradient norm is only {level(norms):.3g}: what overflows is not that"
    return (Evidence("norm", level(norms), text),)


def _tail(history: ScaleHistory) -> str:
    return ", ".join(f"{scale:g}" for scale in history.scales[-5:])


RULES: tuple[Rule, ...] = (collapse, forward_overflow, calibration, falling_at_the_end)
