"""The symptom of a model that learns nothing: at chance, at a clamp, or flat from the start."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.clues import Clue, Suspect, weigh
from surefoot.doctor.columns import finite
from surefoot.doctor.finding import Evidence, RootCause
from surefoot.doctor.known import clamp_near, untrained_near
from surefoot.doctor.nonfinite import nonfinite
from surefoot.doctor.rates import rate_at
from surefoot.doctor.robust import level, trend_share
from surefoot.doctor.trend import Course
from surefoot.journal.series import Column

__all__ = ["Stuck", "stuck"]

_LR = RootCause.LR_TOO_HIGH
_STUCK = RootCause.PLATEAU_OR_COLLAPSE
_DEAD = RootCause.DEAD_LOSS
_DATA = RootCause.BAD_DATA_OR_LABELS
_SCHEDULE = RootCause.SCHEDULE_ERROR
_UNKNOWN = RootCause.UNKNOWN
_PRIORS = {_STUCK: 1.2, _LR: 0.0, _DEAD: -1.0, _DATA: -0.9, _SCHEDULE: -1.5, _UNKNOWN: 0.0}


@dataclass(frozen=True)
class Stuck:
    """What stands still, and the suspects."""

    column: Column
    suspects: tuple[Suspect, ...]
    saturated: bool
    """Whether the outputs are all 0 or 1: then a constant loss is no sign of a detached one."""

    @property
    def step(self) -> float:
        """First step of it, as the log counts."""
        return float(self.column.steps[0])

    @property
    def line(self) -> int:
        """Line of it."""
        return int(self.column.lines[0])


@lru_cache(maxsize=4)
def stuck(case: Case) -> Stuck | None:
    """What shows that nothing is learnt; None where something is, or where none of it shows.

    Flat alone is no symptom: a window of a long run is flat within its noise. It takes a level
    that an untrained or a broken model has, or a log from the first step that never falls.
    """
    if case.adversarial or case.reinforced or nonfinite(case) is not None:
        return None
    signs = [*_signs(case)]
    if not signs:
        return None
    column = case.loss or next(iter(case.metrics), None)
    if column is None:
        return None
    clues = [*signs, *_clues(case)]
    saturated = any(sign.fact.name == "cost" for sign in signs)
    return Stuck(finite(column), tuple(weigh(_PRIORS, clues)), saturated)


def _signs(case: Case) -> Iterator[Clue]:
    course = case.course(case.loss) if case.loss is not None else None
    if course is not None and (blown := _blown_up(case, course)) is not None:
        yield blown
        return
    if course is not None and course.size >= 3:
        if course.fell or _much_below_before(course):
            return
        yield from _landmarks(case, course)
        yield from _flat_from_the_start(case, course)
        yield from _saturated(case, course)
    yield from _chance(case, course)
    yield from _constant_metric(case)


def _blown_up(case: Case, course: Course) -> Clue | None:
    """Thrown far above its start by the first steps, and back to where it began, no better."""
    if not case.from_the_start or course.size < 8:
        return None
    first = float(course.values[0])
    early = course.values[: max(5, course.size // 3)]
    peak = float(np.max(early))
    usual = float(np.quantile(course.values[course.size // 2 :], 0.95))
    if first <= 0 or peak < 3 * max(first, usual) or not course.end > 0.85 * first:
        return None
    half = course.values[course.size // 2 :]
    middle = float(np.median(half[: max(2, half.size // 4)]))
    if course.end > 1.3 * first and course.end < 0.85 * middle:
        return None  # a first loss that was low by its making: targets that the network sets itself
    text = f"the first steps threw it from {first:.4g} to {peak:.4g}; it is no better at the end"
    return Clue(Evidence("peak", peak, text), {_LR: 2.2, _STUCK: 0.4})


def _landmarks(case: Case, course: Course) -> Iterator[Clue]:
    usual = level(course.values)
    name = course.column.name
    clamp = clamp_near(usual)
    if clamp is not None and float(np.mean(np.abs(course.values - usual) < 1e-3 * usual)) > 0.5:
        text = f"{name} stands at {clamp}"
        yield Clue(Evidence("level", usual, text), {_STUCK: 1.5, _LR: 0.6, _DEAD: 0.3})
        return
    if course.size < 4:
        return
    flat = abs(course.end - course.start) < 0.03 * abs(usual) and course.sigma < 0.03 * abs(usual)
    mark = untrained_near(usual)
    if mark is not None and flat and (case.from_the_start or _confirmed(case, usual)):
        text = f"{name} stands at {usual:.4g}, near {mark}"
        yield Clue(Evidence("level", usual, text), {_STUCK: 1.0, _DEAD: 0.3})
    elif flat and case.from_the_start and _is_margin(course):
        text = f"{name} stands at {usual:.3g}, a margin: everything is embedded in one point"
        yield Clue(Evidence("level", usual, text), {_STUCK: 1.2})


def _is_margin(course: Course) -> bool:
    """Whether a triplet or contrastive loss stands at a margin: all distances are equal."""
    usual = level(course.values)
    near = any(abs(usual - margin) < 0.02 * margin for margin in (0.1, 0.2, 0.3, 0.5, 1.0))
    return near and bool(re.search("triplet|margin|contrast|embed", course.column.name, re.I))


def _confirmed(case: Case, usual: float) -> bool:
    """Whether an accuracy is what guessing gives at that cross-entropy."""
    return any(
        abs(level(share) * np.exp(usual) - 1.0) < 0.35
        for column in case.metrics
        if (share := _as_share(column)) is not None
    )


def _flat_from_the_start(case: Case, course: Course) -> Iterator[Clue]:
    column = course.column
    epochs = column.per == "epoch" and course.size >= 5
    long = course.size >= 20 or (course.size >= 8 and np.ptp(column.steps) >= 1000)
    if not case.from_the_start or not (epochs or long) or _improving(case):
        return
    usual = abs(level(course.values))
    calm = course.sigma < 0.05 * usual
    if calm and abs(course.end - course.start) < 0.01 * usual and course.gain < 0.03 * usual:
        text = f"{course.column.name} is as at the start after {course.size} values"
        yield Clue(Evidence("change", course.end - course.start, text), {_STUCK: 0.3})


def _improving(case: Case) -> bool:
    """Whether some metric goes up all the same."""
    known = (finite(column).values for column in case.metrics)
    return any(v.size >= 4 and trend_share(v) > 0.3 and v[-1] > 1.1 * v[0] for v in known)


def _saturated(case: Case, course: Course) -> Iterator[Clue]:
    """A mean of clamped logarithms: every wrong answer costs the same, -ln of 1e-7 or 2e-7."""
    for column in case.metrics:
        share = _as_share(column)
        if share is None or course.size < 3 or not 0.0 < level(share) < 0.99:
            continue
        cost = level(course.values) / (1.0 - level(share))
        if min(abs(cost / mark - 1.0) for mark in (16.118, 15.942, 15.425)) < 0.01:
            text = f"{course.column.name} is {cost:.4g} for every wrong answer: outputs are 0 or 1"
            yield Clue(Evidence("cost", cost, text), {_STUCK: 1.3, _LR: 0.6})
            return


def _chance(case: Case, course: Course | None) -> Iterator[Clue]:
    for column in case.metrics:
        share = _as_share(column)
        if share is None or share.size < 4:
            continue
        usual = level(share)
        rising = trend_share(share) > 0.3 and share[-1] > 1.15 * max(float(share[0]), 1e-9)
        if rising:
            continue
        loss = level(course.values) if course is not None else 0.0
        if loss > 0.6 and 0 < usual < 0.6 and abs(usual * np.exp(loss) - 1.0) < 0.35:
            text = f"{column.name} is {usual:.3g}: with that loss it is guessing"
            yield Clue(Evidence("accuracy", usual, text), {_STUCK: 1.0, _DEAD: 0.2})
            return


def _constant_metric(case: Case) -> Iterator[Clue]:
    shares = [share for column in case.metrics if (share := _as_share(column)) is not None]
    if any(share[-1] > 0.9 for share in shares if share.size):
        return
    for column in case.metrics:
        values = finite(column).values
        if values.size < 4 or not np.all(values == values[0]) or values[0] in (0.0, 1.0, 100.0):
            continue
        text = f"{column.name} is {values[0]:.6g} every time: the answer is always the same"
        yield Clue(Evidence("constant", float(values[0]), text), {_STUCK: 1.2})
        return


def _much_below_before(course: Course) -> bool:
    return course.gain > 0.2 * abs(course.start) and course.climb < 0.5 * course.gain


def _as_share(column: Column) -> np.ndarray | None:
    """Accuracies in [0, 1]; None for a column that is none."""
    if "acc" not in column.name.lower() and "top" not in column.name.lower():
        return None
    values = finite(column).values
    if not values.size or values.min() < 0 or values.max() > 100:
        return None
    return values / 100 if values.max() > 1 else values


def _clues(case: Case) -> Iterator[Clue]:
    yield from _of_the_rate(case)
    loss = case.loss
    if loss is None:
        return
    values = finite(loss).values
    if values.size >= 5 and values[0] > 0 and level(values[1:]) > 1.3 * values[0]:
        text = f"it began at {values[0]:.4g}, better than it has been ever since"
        yield Clue(Evidence("start", float(values[0]), text), {_LR: 1.5})
    if case.gradient is not None:
        norms = finite(case.gradient).values
        if norms.size and level(norms) < 1e-4:
            text = f"the gradient's norm is only {level(norms):.2g}"
            yield Clue(Evidence("norm", level(norms), text), {_DEAD: 1.5, _LR: -1.0, _STUCK: 0.3})


def _of_the_rate(case: Case) -> Iterator[Clue]:
    column = case.loss
    rate = rate_at(case, int(column.lines[-1])) if column is not None else None
    if rate is None:
        return
    if rate.value >= 0.3:
        text = f"the learning rate is {rate.value:.3g}"
        yield Clue(Evidence("rate", rate.value, text), {_LR: 1.5})
    elif 0 < rate.value < 1e-7:
        text = f"the learning rate is only {rate.value:.2g}"
        yield Clue(Evidence("rate", rate.value, text), {_SCHEDULE: 2.0, _LR: -2.0})
    elif rate.value == 0:
        text = "the learning rate is 0"
        yield Clue(Evidence("rate", 0.0, text), {_SCHEDULE: 4.0, _LR: -4.0})
