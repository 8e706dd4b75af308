"""The symptom of a loss that leaves its valley, or is worse than guessing, and what made it so."""

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
from surefoot.doctor.known import clamp_near
from surefoot.doctor.nonfinite import nonfinite
from surefoot.doctor.rates import rate_at
from surefoot.doctor.robust import level, trend_share
from surefoot.doctor.trend import Course, Hump
from surefoot.journal.series import Column, Role

__all__ = ["Unstable", "unstable"]

_LR = RootCause.LR_TOO_HIGH
_GROWTH = RootCause.EXPLODING_GRADIENTS
_DATA = RootCause.BAD_DATA_OR_LABELS
_STUCK = RootCause.PLATEAU_OR_COLLAPSE
_UNKNOWN = RootCause.UNKNOWN
_PRIORS = {_LR: 1.0, _GROWTH: -0.7, _DATA: -1.0, _STUCK: -0.7, _UNKNOWN: 0.3}

_PER_TOKEN = re.compile(r"ppl|perplexity|xent|nll|cross.?entropy|\blm\b|\bbpc\b", re.I)
_WORST_GUESS = 20.0
"""Cross-entropy of guessing evenly among a million tokens, in bits: no vocabulary is larger."""
_WORDS_ALONE = 7.0
"""Cross-entropy in nats of knowing how frequent each word is and nothing else."""


@dataclass(frozen=True)
class Unstable:
    """What went up, from where, and the suspects."""

    column: Column
    index: int
    kind: str
    """``left``: far above its best at the end; ``spike``: the log ends in one; ``absurd``: worse
    than guessing throughout; ``lost``: late in a run as good as untrained; ``erratic``: swings
    without falling while a metric gets worse."""
    suspects: tuple[Suspect, ...]

    @property
    def step(self) -> float:
        """Step where it begins, as the log counts."""
        return float(self.column.steps[self.index])

    @property
    def line(self) -> int:
        """Line of it."""
        return int(self.column.lines[self.index])


@lru_cache(maxsize=4)
def unstable(case: Case) -> Unstable | None:
    """The instability of a run whose values are numbers; None where there is none.

    Adversarial and reinforcement losses have no valley; a NaN is a symptom of its own.
    """
    if case.adversarial or case.reinforced or nonfinite(case) is not None:
        return None
    column = case.loss or case.validation
    if column is None or finite(column).values.size < 3:
        return None
    course = Course(column)
    found = _kind(case, course)
    if found is None:
        return None
    kind, index, fact = found
    symptom = Unstable(course.column, index, kind, ())
    clues = [Clue(fact, _OF_KIND[kind]), *_clues(case, course, symptom)]
    return Unstable(course.column, index, kind, tuple(weigh(_PRIORS, clues)))


_OF_KIND: dict[str, dict[RootCause, float]] = {
    "left": {_LR: 0.5, _STUCK: -0.3},
    "spike": {_UNKNOWN: 1.5},
    "absurd": {_LR: 1.0, _STUCK: 0.4},
    "lost": {_UNKNOWN: 1.0, _STUCK: 0.6},
    "erratic": {_UNKNOWN: 1.0},
}


def _kind(case: Case, course: Course) -> tuple[str, int, Evidence] | None:
    name, end = course.column.name, course.end
    worse = _worse_than_guessing(case, course)
    if worse is not None:
        return "absurd", 0, worse
    if course.left_its_valley:
        text = f"{name} fell to {course.best:.4g} and ends at {end:.4g}"
        return "left", _turn(course), Evidence("climb", course.climb, text)
    open_humps = [hump for hump in course.humps if not hump.over and _far_out(course, hump)]
    if open_humps and course.size >= 5:
        hump = open_humps[-1]
        left = course.size - hump.first
        text = (
            f"{name} jumped from {hump.base:.4g} to {hump.peak:.4g}, {left} values before the end"
        )
        return "spike", hump.first, Evidence("peak", hump.peak, text)
    lost = _as_good_as_untrained(case, course)
    if lost is not None:
        return "lost", 0, lost
    metric = _getting_worse(case)
    if course.erratic and metric is not None:
        text = f"{name} swings between {course.values.min():.4g} and {course.values.max():.4g}"
        return "erratic", 0, Evidence("swing", float(np.ptp(course.values)), f"{text}; {metric}")
    return None


def _far_out(course: Course, hump: Hump) -> bool:
    """Whether a hump at the end is more than the noise of one value."""
    before = float(np.max(course.values[max(0, hump.first - 20) : hump.first]))
    return hump.peak > (1.5 if hump.length >= 2 else 3.0) * before


def _worse_than_guessing(case: Case, course: Course) -> Evidence | None:
    """A loss that no untrained model has, from the first value on and not falling."""
    usual = level(course.values)
    if course.fell:
        return None
    named = [c.name for c in case.columns if c.role is not Role.OTHER]
    if any(map(_PER_TOKEN.search, named)) and usual > _WORST_GUESS:
        mark = clamp_near(float(np.exp(min(usual, 700.0)))) or clamp_near(usual)
        more = f" ({mark})" if mark else ""
        text = f"{course.column.name} is {usual:.4g}{more}; guessing evenly gives {_WORST_GUESS:g}"
        return Evidence("level", usual, f"{text} at most")
    rate = rate_at(case, int(course.column.lines[-1]))
    if usual > 1e3 and rate is not None and rate.value >= 0.01 and course.size >= 3:
        return Evidence("level", usual, f"{course.column.name} is {usual:.4g} and does not fall")
    return None


def _as_good_as_untrained(case: Case, course: Course) -> Evidence | None:
    """Thousands of steps in, and still at the perplexity of the words' frequencies alone."""
    late = course.size >= 5 and float(course.column.steps[0]) >= 2000
    if not late or course.fell or case.from_the_start:
        return None
    usual = level(course.values)
    perplexity = next((c for c in case.columns if re.search(r"ppl|perplexity", c.name, re.I)), None)
    if perplexity is None or usual < _WORDS_ALONE:
        return None
    # In nats, and of one token, is what agrees with the perplexity beside it.
    if abs(np.log(max(level(finite(perplexity).values), 1.0)) - usual) > 0.5:
        return None
    text = f"after {course.column.steps[0]:,.0f} steps {course.column.name} is {usual:.3g}"
    return Evidence("level", usual, f"{text}, what the frequency of words alone gives")


def _turn(course: Course) -> int:
    """Index after the best from which the values stay above it."""
    threshold = course.best + max(3 * course.smooth_sigma, 0.1 * course.climb)
    above = course.smooth[course.best_at :] > threshold
    return course.best_at + int(np.argmax(above))


def _getting_worse(case: Case) -> str | None:
    for column in case.metrics:
        known = finite(column).values
        if known.size >= 4 and trend_share(known) < -0.3 and known[-1] < 0.9 * known.max():
            return f"{column.name} falls from {known.max():.4g} to {known[-1]:.4g}"
    return None


def _clues(case: Case, course: Course, symptom: Unstable) -> Iterator[Clue]:
    yield from _of_the_rate(case, symptom)
    yield from _of_the_gradient(case, symptom)
    if symptom.kind == "left" and course.start > 0 and course.end > 1.2 * course.start:
        text = f"it ends above where it began, {course.start:.4g}"
        yield Clue(Evidence("start", course.start, text), {_LR: 0.7, _GROWTH: 0.5, _STUCK: -0.7})
    elif symptom.kind == "left" and course.end > 0.9 * course.start:
        text = f"it ends where it began, at {course.start:.4g}: all that was learnt is lost"
        yield Clue(Evidence("start", course.start, text), {_STUCK: 0.9, _LR: 0.4})
    if course.size < 5:
        text = f"there are only {course.size} values"
        yield Clue(Evidence("values", course.size, text), {_UNKNOWN: 0.4})


def _of_the_rate(case: Case, symptom: Unstable) -> Iterator[Clue]:
    rate = rate_at(case, symptom.line)
    if rate is None:
        return
    value = rate.value
    if value >= 0.3:
        text = f"the learning rate is {value:.3g}, far above what Adam or a deep network bears"
        yield Clue(Evidence("rate", value, text), {_LR: 1.5})
    elif rate.jumped > 2:
        text = f"the learning rate had just been raised {rate.jumped:.3g} times, to {value:.3g}"
        yield Clue(Evidence("rate_jump", rate.jumped, text), {_LR: 1.0})
    elif rate.rising or rate.peak:
        where = "rising in its warm-up" if rate.rising else "at its peak"
        text = f"the learning rate was {where} then, at {value:.3g}"
        yield Clue(Evidence("rate", value, text), {_LR: 0.8})
    elif value <= 1e-6:
        text = f"the learning rate was only {value:.2g}"
        yield Clue(Evidence("rate", value, text), {_LR: -1.2, _DATA: 0.5})


def _of_the_gradient(case: Case, symptom: Unstable) -> Iterator[Clue]:
    if case.gradient is None:
        return
    norms = finite(case.gradient)
    before = norms.values[norms.lines < symptom.line]
    after = norms.values[norms.lines >= symptom.line]
    if before.size < 2 or after.size < 1 or level(before) <= 0:
        return
    growth = float(np.max(after)) / level(before)
    if growth > 5:
        text = f"the gradient's norm grows with it, from {level(before):.3g} to {after.max():.3g}"
        yield Clue(Evidence("gradient_growth", growth, text), {_GROWTH: 1.6, _LR: 0.5})
    else:
        text = f"the gradient's norm stays within {growth:.2g} times its usual size"
        yield Clue(Evidence("gradient_growth", growth, text), {_GROWTH: -1.5, _DATA: 0.3})
