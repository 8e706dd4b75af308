"""The learning rate that the log shows, against what its settings asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.columns import finite
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.rates import main_rate
from surefoot.doctor.robust import trend_share
from surefoot.doctor.rule import Blind, Rule, rule
from surefoot.doctor.spot import spot
from surefoot.journal.series import Column, Role

__all__ = ["RULES"]

_COMES_DOWN = re.compile(r"cosine|linear|poly|one.?cycle", re.I)
_PLANNED = re.compile(r"cosine|one.?cycle|warm", re.I)
_NO_PLAN = "the log does not name a schedule that comes down"


@rule("SF507", "a schedule that is not done when the run is", Role.LEARNING_RATE)
def unfinished(case: Case) -> Iterator[Finding | Blind]:
    """Stepped less often than it has steps: with accumulation, once in four."""
    column = main_rate(case)
    asked = case.run.settings.get("schedule", "")
    if column is None or not _COMES_DOWN.search(asked):
        yield Blind(_NO_PLAN)
        return
    planned = case.setting("epochs")
    reached = _last_epoch(case)
    if planned is None or planned < 3 or reached is None or reached < planned:
        yield Blind("the log does not show the last of the epochs that were asked for")
        return
    values = column.values
    peak, last = float(np.max(values)), float(values[-1])
    falls = trend_share(values[int(np.argmax(values)) :]) < -0.9
    if values.size < 20 or not falls or last < 0.5 * peak:
        return
    every = case.setting("accumulation")
    why = f"; it accumulates over {every:g} batches" if every and every > 1 else ""
    yield Finding(
        code="SF507",
        title=f"the learning rate ends at {last / peak:.0%} of its peak: the schedule is not done",
        cause=RootCause.SCHEDULE_ERROR,
        severity=Severity.WARNING,
        confidence=0.65,
        **spot(column, -1),
        evidence=(
            Evidence("share", last / peak, f"{last:.3g} at the end of epoch {reached:g}{why}"),
            Evidence("schedule", asked, f"a schedule named {asked} comes down to its floor"),
        ),
        not_this=("not a high floor: the rate is still falling at the end",),
        remedy=(
            "total steps = epochs x batches / accumulation: the schedule is stepped once for each "
            "optimizer step",
        ),
    )


@rule("SF508", "a logged learning rate that is that of one group", Role.LEARNING_RATE)
def one_group(case: Case) -> Iterator[Finding]:
    """A clean tenth of what was asked for: groups have rates of their own, and one is shown."""
    shown = [c for c in case.rates if c.values.size >= 20]
    asked = case.setting("lr")
    if len(shown) != 1 or asked is None or asked <= 0:
        return
    column = finite(shown[0])
    share = float(np.max(column.values)) / asked
    steady = column.values.size >= 20 and np.ptp(column.values) <= 0.02 * np.max(column.values)
    if not steady or not any(abs(share / one - 1) < 0.02 for one in (0.1, 0.01, 0.05, 0.5)):
        return
    yield Finding(
        code="SF508",
        title=f"the logged learning rate is {share:.3g} times the one asked for: one group's own",
        cause=RootCause.HEALTHY,
        severity=Severity.NOTE,
        confidence=0.6,
        **spot(column),
        evidence=(Evidence("share", share, f"{column.values[0]:.3g} of {asked:.3g}"),),
        not_this=("not a learning rate that is too small, as long as the loss falls",),
        remedy=("log the rate of every group",),
    )


@rule("SF509", "a learning rate above the one that was asked for", Role.LEARNING_RATE)
def two_hands(case: Case) -> Iterator[Finding | Blind]:
    """A warm-up on top of a schedule that warms up itself: where they add, the rate overshoots."""
    column, asked = main_rate(case), case.setting("lr", "maxlr")
    planned = " ".join((case.run.settings.get("schedule", ""), *_warmed(case)))
    if column is None or asked is None or asked <= 0 or not _PLANNED.search(planned):
        yield Blind("the log does not show both a rate that was asked for and a schedule")
        return
    values = column.values
    top = int(np.argmax(values))
    over = float(values[top]) / asked
    inside = 0 < top < values.size - 1 and values[0] < 0.8 * values[top]
    # A group with a rate of its own overshoots too, and comes down as smoothly as it went up.
    drops = inside and values[top + 1] < 0.9 * values[top]
    if values.size < 12 or not drops or not 1.08 < over < 1.95:
        return
    yield Finding(
        code="SF509",
        title=f"the learning rate reaches {values[top]:.3g}, {over:.3g} times what was asked for",
        cause=RootCause.SCHEDULE_ERROR,
        severity=Severity.WARNING,
        confidence=0.6,
        **spot(column, top),
        evidence=(
            Evidence(
                "peak", float(values[top]), f"its peak, at {column.per} {column.steps[top]:g}"
            ),
            Evidence("asked", asked, f"{asked:.3g} was asked for, with {planned.strip()}"),
        ),
        not_this=("not a rate scaled by the batch: that is a whole multiple throughout",),
        remedy=(
            "one warm-up: leave out the one beside a one-cycle schedule",
            "one schedule that writes the rate; two of them overwrite or add to each other",
        ),
    )


@rule("SF510", "a learning rate that climbs under a schedule that comes down", Role.LEARNING_RATE)
def climbing(case: Case) -> Iterator[Finding | Blind]:
    """An absolute floor above a group's own rate: a cosine climbs to it."""
    asked = case.run.settings.get("schedule", "")
    if not re.search(r"cosine", asked, re.I) or re.search(r"restart|cycl", asked, re.I):
        yield Blind(_NO_PLAN)
        return
    floor, planned = case.setting("minlr"), case.setting("epochs")
    for column in map(finite, case.rates):
        values = column.values
        if values.size < 8 or values[0] <= 0 or _warming(column, planned):
            continue
        climbs = trend_share(values) > 0.9 and values[-1] > 1.04 * values[0]
        # A warm-up goes past the floor; a cosine that is below it ends there.
        if climbs and floor is not None and values[0] < floor / 1.02 and values[-1] < 1.05 * floor:
            yield _climbs(column, floor)
            return


def _climbs(column: Column, floor: float) -> Finding:
    first, last = float(column.values[0]), float(column.values[-1])
    seen = (
        Evidence("rise", last / first, f"{column.name} goes from {first:.3g} to {last:.3g}"),
        Evidence("floor", floor, f"the floor is {floor:.3g}, above where it began"),
    )
    return Finding(
        code="SF510",
        title=f"{column.name} climbs under a cosine: its floor lies above its own rate",
        cause=RootCause.SCHEDULE_ERROR,
        severity=Severity.WARNING,
        confidence=0.8,
        **spot(column),
        evidence=seen,
        not_this=("not a warm-up: that goes past the floor, and ends",),
        remedy=(
            "give the floor as a share of each group's own rate (0.01), not as one number",
            "one factor for all groups: LambdaLR keeps their ratio",
        ),
        explains=("SF503",),
    )


def _warming(column: Column, planned: float | None) -> bool:
    """Whether these may be the first steps, in which every schedule climbs."""
    if column.per == "epoch" and planned is not None:
        return float(column.steps[0]) < 0.15 * planned and float(column.steps[-1]) < 0.4 * planned
    return float(column.steps[0]) <= 1


def _last_epoch(case: Case) -> float | None:
    for column in case.columns:
        if column.name == "epoch" and column.role is Role.OTHER:
            return float(column.values[-1])
    loss = case.loss
    return float(loss.steps[-1]) if loss is not None and loss.per == "epoch" else None


def _warmed(case: Case) -> tuple[str, ...]:
    given = case.setting("warmup")
    return (f"warm-up {given:g}",) if given else ()


RULES: tuple[Rule, ...] = (unfinished, one_group, two_hands, climbing)
