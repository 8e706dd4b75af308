"""The symptom of values that are no numbers, and the clues to what made them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from surefoot.doctor.breaks import Break, first_break, nonfinite_terms
from surefoot.doctor.case import Case
from surefoot.doctor.clues import Clue, Suspect, weigh
from surefoot.doctor.columns import finite
from surefoot.doctor.finding import Evidence, RootCause
from surefoot.doctor.phrases import BAD_INPUT, HALF_DEBUGGED, UNSAFE_BACKWARD
from surefoot.doctor.rates import RateAt, rate_at
from surefoot.doctor.robust import level
from surefoot.doctor.trend import Course
from surefoot.journal.series import Column, Role

__all__ = ["NonFinite", "nonfinite", "passing"]

_LR = RootCause.LR_TOO_HIGH
_GROWTH = RootCause.EXPLODING_GRADIENTS
_UNSAFE = RootCause.NUMERICALLY_UNSAFE_OP
_DATA = RootCause.BAD_DATA_OR_LABELS
_FP16 = RootCause.FP16_OVERFLOW
_UNKNOWN = RootCause.UNKNOWN
_PRIORS = {_LR: 0.2, _GROWTH: -1.0, _UNSAFE: -0.3, _DATA: -0.6, _FP16: -0.5, _UNKNOWN: 0.5}
_PASSING_PRIORS = {_DATA: 0.8, _FP16: -0.6, _UNSAFE: -0.2, _UNKNOWN: 0.4}
"""Of a NaN that passes: weights that have diverged give no number ever again."""


@dataclass(frozen=True)
class NonFinite:
    """Where values stopped being numbers, and the suspects."""

    where: Break
    subject: str
    """What broke: ``loss``, ``gradient``, ``validation``."""
    lasting: bool
    suspects: tuple[Suspect, ...]


@lru_cache(maxsize=4)
def nonfinite(case: Case) -> NonFinite | None:
    """The lasting break of a run, of the loss if it has one; None where everything is a number.

    A gradient norm that is now and then infinite under fp16 is how a loss scale finds its place.
    """
    where, subject = _where(case)
    if where is None:
        return None
    clues = [*_clues(case, where, subject)]
    return NonFinite(where, subject, True, tuple(weigh(_PRIORS, clues)))


@lru_cache(maxsize=4)
def passing(case: Case) -> NonFinite | None:
    """Values that are no numbers on some steps only, with numbers after them.

    Under fp16 a gradient that is not finite is a skipped step, and so may be the first losses.
    """
    if nonfinite(case) is not None:
        return None
    where, subject = first_break(case.losses), "loss"
    if where is None and case.gradient is not None:
        where, subject = first_break([case.gradient]), "gradient"
    if where is None or (case.precision == "fp16" and (subject == "gradient" or where.index < 20)):
        return None
    share = where.lost / where.column.values.size
    text = f"{where.lost} of {where.column.values.size} values, and the others are as before"
    clues = [
        Clue(
            Evidence("share", share, text),
            {_UNKNOWN: 0.7, _FP16: 0.5} if share > 0.2 else {_DATA: 0.5},
        ),
        *_of_precision(case),
        *_of_terms(case),
        *_of_messages(case),
    ]
    if subject == "gradient":
        clues += _of_subject(case, where, subject)
    return NonFinite(where, subject, False, tuple(weigh(_PASSING_PRIORS, clues)))


def _where(case: Case) -> tuple[Break | None, str]:
    candidates = (
        ("loss", case.losses),
        ("gradient", [case.gradient] if case.gradient is not None else []),
        ("validation", [case.validation] if case.validation is not None else []),
    )
    for subject, columns in candidates:
        lasting = [b for c in columns if (b := first_break([c])) is not None and b.lasting]
        if lasting:
            return min(lasting, key=lambda b: b.line), subject
    return _said(case)


def _said(case: Case) -> tuple[Break | None, str]:
    """A break that the log tells in words, and after which no loss is a number."""
    told = case.of_kind("nan_warning", "nan_gradient")
    if not told:
        return None, ""
    first = told[0]
    after = sum(int(np.sum(np.isfinite(c.values[c.lines > first.line]))) for c in case.losses[:1])
    if after > 1:
        return None, ""
    subject = "gradient" if first.kind == "nan_gradient" else "loss"
    name = "the gradient" if subject == "gradient" else "the loss"
    one = (np.array([np.nan]), np.array([first.step]), np.array([first.line]))
    return Break(Column(name, Role.OTHER, *one), 0), subject


def _clues(case: Case, where: Break, subject: str) -> Iterator[Clue]:
    yield from _of_subject(case, where, subject)
    yield from _of_the_moment(case, where, subject)
    yield from _of_what_came_before(case, where, subject)
    yield from _of_the_gradient(case, where, subject)
    yield from _of_the_rate(case, where)
    yield from _of_precision(case)
    yield from _of_terms(case)
    yield from _of_parameters(case)
    yield from _of_messages(case)


def _of_subject(case: Case, where: Break, subject: str) -> Iterator[Clue]:
    if subject == "validation":
        text = f"only {where.column.name} is {where.what}; the training loss stays a number"
        yield _clue("subject", subject, text, {_LR: -2.0, _GROWTH: -2.0, _DATA: 0.8, _UNSAFE: 0.5})
    elif subject == "gradient" and case.loss is None:
        text = "the log shows no loss, only a gradient norm that is no number"
        yield _clue("subject", subject, text, {_UNKNOWN: 1.0})
    elif subject == "gradient":
        text = f"the gradient's norm is {where.what} while the loss stays a number"
        infinite = where.what == "infinite"
        found = {_FP16: 1.2, _UNSAFE: 0.3} if infinite else {_FP16: 0.3, _UNSAFE: 0.6}
        yield _clue("subject", subject, text, found | {_LR: -1.2, _GROWTH: -0.5})


def _of_the_moment(case: Case, where: Break, subject: str) -> Iterator[Clue]:
    column = where.column if subject == "loss" and where.column.values.size > 1 else case.loss
    known = column.lines < where.line if column is not None else np.empty(0, bool)
    before = int(np.sum(np.isfinite(column.values[known]))) if column is not None else 0
    if before == 0 and where.step <= 1:
        text = "it is there at the very first step, before the optimizer has changed anything"
        yield _clue("values_before", 0, text, {_LR: -3.0, _GROWTH: -2.0, _UNKNOWN: 0.5})
    elif before == 0:
        text = "the log has no number before it"
        yield _clue("values_before", 0, text, {_UNKNOWN: 1.0})
    elif before == 1:
        text = "there is one number before it, so that no trend can be seen"
        yield _clue("values_before", 1, text, {_UNKNOWN: 0.6})


def _of_what_came_before(case: Case, where: Break, subject: str) -> Iterator[Clue]:
    column = _up_to(case, where, subject)
    if column is None or not np.isfinite(column.values).any():
        return
    course = Course(column)
    first = float(course.values[0])
    if first > 1e4 and subject == "loss":
        text = (
            f"{column.name} starts at {first:.3g}: with a loss that is not normalised, "
            "any usual learning rate is a giant one"
        )
        yield _clue("first_value", first, text, {_LR: 2.0, _GROWTH: 0.7, _DATA: 0.4})
    if course.size < 3:
        return
    peak = float(np.max(course.values[course.best_at :]))
    factor = peak / course.best if course.best > 0 else math.inf
    if course.rose_at_the_end and factor > 3:
        text = f"{column.name} had gone up from {course.best:.4g} to {peak:.4g} before"
        yield _clue("rise", factor, text, {_LR: 2.2, _GROWTH: 1.6, _UNSAFE: -0.7})
    elif course.rose_at_the_end:
        text = f"{column.name} had turned and risen from {course.best:.4g} to {peak:.4g} before"
        yield _clue("rise", factor, text, {_LR: 1.5, _GROWTH: 0.6})
    elif course.erratic:
        swing = float(np.ptp(course.values))
        text = f"{column.name} had swung by {swing:.3g} without falling before"
        yield _clue("swing", swing, text, {_LR: 1.2, _GROWTH: 0.3})
    elif subject == "loss" and not course.fell:
        text = f"{column.name} had not fallen before, from {course.start:.4g} to {course.end:.4g}"
        yield _clue("last_value", course.end, text, {_LR: 0.2, _GROWTH: -0.5})
    elif subject == "loss":
        text = f"{column.name} was calm until then, {float(course.values[-1]):.4g} just before"
        weights = {_LR: -0.7, _GROWTH: -0.8, _UNSAFE: 0.4, _DATA: 0.2, _FP16: 0.3, _UNKNOWN: 0.3}
        yield _clue("last_value", float(course.values[-1]), text, weights)


def _up_to(case: Case, where: Break, subject: str) -> Column | None:
    """The loss before the break."""
    if subject == "loss" and where.column.role is not Role.OTHER:
        return where.before
    if case.loss is None:
        return None
    whole = finite(case.loss)
    count = int(np.sum(whole.lines < where.line)) or whole.lines.size
    return Break(whole, count).before


def _of_the_gradient(case: Case, where: Break, subject: str) -> Iterator[Clue]:
    if case.gradient is None:
        return
    known = case.gradient.lines < where.line
    norms = case.gradient.values[known]
    if subject == "loss" and norms.size and not np.isfinite(norms).any():
        text = "the gradient's norm is no number from its first value on, before the loss"
        yield _clue("gradient_first", "nan", text, {_LR: -1.5, _GROWTH: -1.0, _UNKNOWN: 0.6})
    norms = norms[np.isfinite(norms)]
    usual = level(norms)
    if norms.size < 3 or usual <= 0:
        return
    last = float(np.max(norms[-3:]))
    if last > 5 * usual:
        text = f"the gradient's norm had grown from {usual:.3g} to {last:.3g}"
        yield _clue("gradient_growth", last / usual, text, {_GROWTH: 1.6, _LR: 0.8, _UNSAFE: -0.3})
    else:
        text = f"the gradient's norm was as usual ({last:.3g}, median {usual:.3g}) until then"
        yield _clue("gradient_growth", last / usual, text, {_GROWTH: -1.6, _LR: -0.5})


def _of_the_rate(case: Case, where: Break) -> Iterator[Clue]:
    rate = rate_at(case, where.line)
    if rate is None:
        return
    yield from _of_its_size(case, rate)
    if rate.jumped > 2 and rate.value > 0:
        text = (
            f"the learning rate had just been raised {rate.jumped:.3g} times, to {rate.value:.3g}"
        )
        yield _clue("rate_jump", rate.jumped, text, {_LR: 1.2})
    elif rate.rising and rate.value > 1e-6:
        text = f"the learning rate was still rising in its warm-up, at {rate.value:.3g}"
        yield _clue("rate_rising", rate.value, text, {_LR: 0.6})
    elif rate.peak and rate.value > 1e-6:
        text = f"the learning rate was at its peak, {rate.value:.3g}"
        yield _clue("rate_peak", rate.value, text, {_LR: 0.6})


def _of_its_size(case: Case, rate: RateAt) -> Iterator[Clue]:
    loss = case.loss
    giant = loss is not None and np.max(np.abs(finite(loss).values), initial=0.0) > 1e4
    if rate.value == 0:
        text = "the learning rate is 0: the weights had not moved"
        yield _clue("rate", 0.0, text, {_LR: -3.0, _GROWTH: -1.0})
    elif rate.value <= 2e-6 and not giant:
        text = f"the learning rate is {rate.value:.2g}, too small to throw weights far"
        yield _clue("rate", rate.value, text, {_LR: -2.0, _GROWTH: -0.5})
    elif rate.value >= 0.3:
        text = f"the learning rate is {rate.value:.3g}, far above what Adam or a deep network bears"
        yield _clue("rate", rate.value, text, {_LR: 1.5})


def _of_precision(case: Case) -> Iterator[Clue]:
    if case.precision == "fp16":
        text = "it trains in fp16, whose largest number is 65,504"
        yield _clue("precision", "fp16", text, {_FP16: 1.2})
    elif case.precision:
        text = f"it trains in {case.precision}, which does not overflow at 65,504"
        yield _clue("precision", case.precision, text, {_FP16: -3.0})


def _of_terms(case: Case) -> Iterator[Clue]:
    broken, fine = nonfinite_terms(case)
    if broken and fine and not case.adversarial:
        names = " and ".join(column.name for column in broken)
        rest = ", ".join(column.name for column in fine[:3])
        text = f"{names} alone is no number; {rest} from the same model stays finite"
        yield _clue(
            "broken_term", names, text, {_UNSAFE: 2.6, _LR: -1.5, _DATA: -0.3, _GROWTH: -1.5}
        )
    elif len(broken) > 1 and not case.adversarial:
        text = f"all {len(broken)} terms break at once: what they share is broken"
        yield _clue("broken_terms", len(broken), text, {_UNSAFE: -0.8, _LR: 0.3})


def _of_parameters(case: Case) -> Iterator[Clue]:
    """Gradient norms of single parameters, some of which are no numbers."""
    each = [c for c in case.columns if c.role is Role.GRADIENT_NORM and c.group]
    bad = [c.name for c in each if not np.isfinite(c.values[-1])]
    if bad and len(bad) < len(each):
        text = f"of {len(each)} gradients only {', '.join(bad[:2])} is no number"
        yield _clue("parameters", len(bad), text, {_UNSAFE: 0.7, _FP16: 0.5, _GROWTH: -0.7})


def _of_messages(case: Case) -> Iterator[Clue]:
    backward = case.said(UNSAFE_BACKWARD)
    if backward:
        text = f"line {backward[0].line} names the operation: {backward[0].text[:80]}"
        yield _clue("message", backward[0].text, text, {_UNSAFE: 3.0})
    if case.said(HALF_DEBUGGED):
        text = "DebugUnderflowOverflow ran, which watches for overflows of fp16"
        yield _clue("message", "DebugUnderflowOverflow", text, {_FP16: 1.5})
    data = case.said(BAD_INPUT)
    if data:
        text = f"line {data[0].line} says so: {data[0].text[:80]}"
        yield _clue("message", data[0].text, text, {_DATA: 3.5, _LR: -1.0})


def _clue(name: str, value: float | str, text: str, weights: dict[RootCause, float]) -> Clue:
    return Clue(Evidence(name, value, text), weights)
