"""The learning rate that the log shows, against what a schedule can make of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.columns import finite
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.rates import main_rate
from surefoot.doctor.robust import trend_share
from surefoot.doctor.rule import Rule, rule
from surefoot.doctor.spot import Spot, said_at, spot
from surefoot.journal.series import Column, Role

__all__ = ["RULES"]

_STEP_ONCE = (
    "step the schedule once for each optimizer step, and save its state with the checkpoint "
    "(scheduler.state_dict())"
)
_REMEDY = {
    "SF501": "a learning rate above 0: look at the schedule's total steps and at its floor",
    "SF502": "load the schedule's state when a run goes on; do not build it anew for new groups",
    "SF503": "give the floor as a share of each group's own rate, not as one number",
    "SF504": "give the schedule the number of optimizer steps that will really be taken",
}


@rule("SF501", "a learning rate of zero or below", Role.LEARNING_RATE)
def zero_rate(case: Case) -> Iterator[Finding]:
    """Nothing is learnt at 0 and unlearnt below it."""
    column = main_rate(case)
    if column is None:
        return
    values = column.values
    below = np.flatnonzero(values < 0)
    if below.size:
        yield _wrong(
            "SF501",
            f"the learning rate is {values[below[0]]:.3g}: below 0 the loss is climbed",
            spot(column, int(below[0])),
            (Evidence("rate", float(values[below[0]]), f"{below.size} values are below 0"),),
            confidence=0.9,
        )
        return
    zeros = np.flatnonzero(values == 0)
    # A warm-up starts at 0, a schedule may end on it; a few of them at either end are meant.
    if values.size >= 4 and zeros.size == values.size:
        yield _wrong(
            "SF501",
            "the learning rate is 0 on every line: no step changes anything",
            spot(column, 0),
            (Evidence("rate", 0.0, f"all {values.size} values are 0"),),
            confidence=0.85,
            explains=("SF805", "SF806"),
        )
    elif zeros.size >= max(4, 0.15 * values.size) and values[-1] == 0:
        first = int(np.flatnonzero(values > 0)[-1]) + 1
        yield _wrong(
            "SF501",
            f"the learning rate is 0 from step {column.steps[first]:g} on, and the run goes on",
            spot(column, first),
            (Evidence("zeros", values.size - first, f"the last {values.size - first} are 0"),),
            confidence=0.7,
        )


@rule("SF502", "a learning rate that jumps up in the middle", Role.LEARNING_RATE)
def jumping_rate(case: Case) -> Iterator[Finding]:
    """A schedule that starts over, was built anew at a resume, or counts something else."""
    column = main_rate(case)
    if column is None or column.values.size < 8:
        return
    values = np.maximum(column.values, 1e-300)
    ratios = values[1:] / values[:-1]
    peak_before = np.maximum.accumulate(values)[:-1]
    # Before it has come down once the rate is in its warm-up, whose steps may be large.
    decayed = values[:-1] < 0.8 * peak_before
    late = np.arange(1, values.size) > 0.1 * values.size
    jumps = np.flatnonzero(
        (ratios > 2.5) & late & (decayed | (_flat_before(values) & (ratios > 5)))
    )
    if not jumps.size or (_periodic(jumps, values) and not _hurt(case, column, int(jumps[0]) + 1)):
        return
    at = int(jumps[0]) + 1
    hurt = _hurt(case, column, at)
    yield _wrong(
        "SF502",
        f"the learning rate jumps {ratios[at - 1]:.3g} times up at step {column.steps[at]:g}",
        spot(column, at),
        (
            Evidence("factor", float(ratios[at - 1]), f"{values[at - 1]:.3g} to {values[at]:.3g}"),
            *((Evidence("loss", hurt, f"the loss rises by {hurt:.3g} after it"),) if hurt else ()),
        ),
        confidence=0.75 if hurt else 0.5,
        severity=Severity.CRITICAL if hurt else Severity.NOTE,
        explains=("SF801", "SF804") if hurt else (),
    )


@rule("SF503", "groups whose learning rates go opposite ways", Role.LEARNING_RATE)
def opposite_groups(case: Case) -> Iterator[Finding]:
    """A floor that lies above a group's own rate makes its schedule climb."""
    columns = [finite(c) for c in case.rates]
    columns = [c for c in columns if c.values.size >= 8]
    if len(columns) < 2:
        return
    trends = [trend_share(c.values[c.values.size // 3 :]) for c in columns]
    if min(trends) < -0.8 and max(trends) > 0.8:
        rising = columns[int(np.argmax(trends))]
        yield _wrong(
            "SF503",
            f"{rising.name} rises while another group's learning rate falls",
            spot(rising, rising.values.size // 3),
            (
                Evidence("last", float(rising.values[-1]), f"it ends at {rising.values[-1]:.3g}"),
                Evidence("trend", max(trends), "it only rises over the last two thirds"),
            ),
            confidence=0.7,
        )


@rule("SF504", "a schedule that is over long before the run", Role.LEARNING_RATE, Role.LOSS)
def over_too_early(case: Case) -> Iterator[Finding]:
    """A hundredth of the peak for most of the run, and the loss stands still."""
    column = main_rate(case)
    if column is None or column.values.size < 12 or case.loss is None:
        return
    peak_at = int(np.argmax(column.values))
    tiny = column.values < 0.01 * column.values[peak_at]
    share = float(np.mean(tiny[peak_at:])) if peak_at < tiny.size else 0.0
    if share < 0.5 or not tiny[-1] or peak_at > 0.4 * tiny.size:
        return
    first = peak_at + int(np.argmax(tiny[peak_at:]))
    after = finite(case.loss)
    late = after.values[after.lines >= column.lines[first]]
    if late.size < 5 or abs(trend_share(late)) > 0.3:
        return
    yield _wrong(
        "SF504",
        f"the learning rate is below a hundredth of its peak from step {column.steps[first]:g} on",
        spot(column, first),
        (Evidence("share", share, f"for {share:.0%} of what comes after the peak"),),
        confidence=0.55,
    )


@rule("SF505", "a scheduler's own complaint")
def complaint(case: Case) -> Iterator[Finding]:
    """PyTorch says that the schedule is stepped too often or too early."""
    told = case.said(r"tried to step \d+ times")
    if told:
        yield Finding(
            code="SF505",
            title="the schedule was stepped more often than it has steps",
            cause=RootCause.SCHEDULE_ERROR,
            severity=Severity.CRITICAL,
            confidence=0.85,
            **said_at(told[0]),
            evidence=(Evidence("message", told[0].text, told[0].text[:140]),),
            remedy=("total_steps = epochs x optimizer steps in one epoch",),
        )


def _flat_before(values: np.ndarray) -> np.ndarray:
    """For every value but the last: whether the ones before it were level for a while."""
    steps = np.abs(np.diff(np.log(values)))
    padded = np.concatenate([np.full(5, np.inf), steps])
    windows = np.lib.stride_tricks.sliding_window_view(padded, 5)[: values.size - 1]
    return np.all(windows < 0.02, axis=-1)


def _periodic(jumps: np.ndarray, values: np.ndarray) -> bool:
    """Whether these are warm restarts: every jump ends at the peak of before, or below."""
    tops = values[jumps + 1]
    before = np.maximum.accumulate(values)[jumps]
    return bool(np.all(tops <= 1.05 * before))


def _hurt(case: Case, column: Column, at: int) -> float:
    """How far the loss rose within what follows the jump; 0 for not beyond its noise."""
    if case.loss is None:
        return 0.0
    known = finite(case.loss)
    before = known.values[known.lines < column.lines[at]][-10:]
    after = known.values[known.lines >= column.lines[at]][:20]
    if before.size < 3 or after.size < 2:
        return 0.0
    rise = float(np.max(after) - np.median(before))
    sigma = case.course(case.loss).sigma
    return rise if rise > max(8 * sigma, 0.3 * abs(float(np.median(before)))) else 0.0


def _wrong(
    code: str,
    title: str,
    place: Spot,
    evidence: tuple[Evidence, ...],
    *,
    confidence: float,
    severity: Severity = Severity.CRITICAL,
    explains: tuple[str, ...] = (),
) -> Finding:
    return Finding(
        code=code,
        title=title,
        cause=RootCause.SCHEDULE_ERROR,
        severity=severity,
        confidence=confidence,
        **place,
        evidence=evidence,
        not_this=("not lr_too_high: the value is the schedule's doing, not the setting's",),
        remedy=(_REMEDY[code], _STEP_ONCE),
        explains=explains,
    )


RULES: tuple[Rule, ...] = (zero_rate, jumping_rate, opposite_groups, over_too_early, complaint)
