"""How the loss and the metrics go: diverging, spiking, standing still, overfitting."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.clues import Suspect
from surefoot.doctor.columns import finite
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.remedies import clip_setting, log_next_for, remedy_for
from surefoot.doctor.rule import Blind, Rule, rule
from surefoot.doctor.spot import said_at, spot
from surefoot.doctor.stuck import Stuck, stuck
from surefoot.doctor.trend import Course, Hump
from surefoot.doctor.unstable import Unstable, unstable
from surefoot.journal.series import Role

__all__ = ["RULES"]

_LOSSES = (Role.LOSS, Role.TERM, Role.VALIDATION_LOSS)
_ANY = (Role.LOSS, Role.TERM, Role.METRIC)
_HELD_OUT = (Role.VALIDATION_LOSS, Role.METRIC)
"""A loss, or an error such as MAE that stands in for it."""


@rule("SF801", "a loss that leaves its valley because the steps are too large", _LOSSES)
def diverged(case: Case) -> Iterator[Finding]:
    """It ends far above its best, or is worse than guessing."""
    yield from _accuse(case, "SF801", RootCause.LR_TOO_HIGH)


@rule("SF802", "a loss that rises with its gradient", _LOSSES, Role.GRADIENT_NORM)
def exploded(case: Case) -> Iterator[Finding]:
    """The gradient's norm grows by more than the loss does."""
    yield from _accuse(case, "SF802", RootCause.EXPLODING_GRADIENTS)


@rule("SF803", "a loss that goes wrong for a reason that the log does not show", _LOSSES)
def cannot_be_told(case: Case) -> Iterator[Finding]:
    """The excerpt ends too early, or lacks what would tell causes apart."""
    yield from _accuse(case, "SF803", RootCause.UNKNOWN)


@rule("SF804", "a spike of the loss that is over", _LOSSES)
def recovered_spike(case: Case) -> Iterator[Finding]:
    """Far above what was before, for some steps, then back where it was."""
    if case.adversarial or case.reinforced or case.loss is None:
        return
    course = case.course(case.loss)
    humps = [hump for hump in course.humps if hump.over]
    if not humps and (arch := course.arch) is not None and arch.over:
        humps = [arch]
    if not humps or course.left_its_valley:
        return
    worst = max(humps, key=lambda hump: hump.peak - hump.base)
    back = float(np.median(course.values[worst.last + 1 :][:25]))
    if back > worst.base + 0.35 * (worst.peak - worst.base):
        return
    yield _spike(case, course, worst, len(humps), back)


@rule("SF805", "a model that learns nothing", _ANY)
def plateau(case: Case) -> Iterator[Finding]:
    """At chance, at a clamp, or flat from the first step on."""
    yield from _stuck(case, "SF805", RootCause.PLATEAU_OR_COLLAPSE)
    symptom = unstable(case)
    if symptom is not None and stuck(case) is None:
        yield from _accuse(case, "SF805", RootCause.PLATEAU_OR_COLLAPSE)


@rule("SF806", "a model that learns nothing because the steps are too large", _ANY)
def too_large_to_learn(case: Case) -> Iterator[Finding]:
    """The first steps threw it out; it stands at a level worse than where it began."""
    yield from _stuck(case, "SF806", RootCause.LR_TOO_HIGH)


@rule("SF807", "a validation loss that turns while the training loss falls", _HELD_OUT)
def overfitting(case: Case) -> Iterator[Finding | Blind]:
    """From some epoch on, what is learnt holds for the training set only."""
    if case.validation is None or case.loss is None:
        yield Blind("training and validation loss are not both logged")
        return
    held, train = case.course(case.validation), case.course(case.loss)
    if held.size < 4 or train.size < 4:
        yield Blind("fewer than four validations")
        return
    best = held.best_at
    after = held.size - 1 - best
    rise = held.end / held.best - 1 if held.best > 0 else 0.0
    line = int(held.column.lines[best])
    then = train.values[train.column.lines <= line]
    fell_on = then.size > 0 and train.end < 0.97 * float(np.median(then[-5:]))
    if after < max(2, 0.15 * held.size) or rise < 0.05 or not fell_on:
        return
    if held.climb < 3 * held.sigma:
        return
    measured = held.column.role is Role.METRIC
    name = held.column.name if measured else "validation loss"
    yield Finding(
        code="SF807",
        title=f"{'' if measured else 'the '}{name} rises by {rise:.0%} from its best, the training "
        "loss falls on",
        cause=RootCause.OVERFITTING,
        severity=Severity.WARNING if rise > 0.25 else Severity.NOTE,
        confidence=0.8 if rise > 0.25 else 0.5,
        **spot(held.column, best),
        evidence=(
            Evidence("best", held.best, f"best {name} {held.best:.4g}"),
            Evidence("end", held.end, f"{held.end:.4g} at the end, {after} validations later"),
            Evidence("train", train.end, f"the training loss goes on to {train.end:.4g}"),
        ),
        not_this=("not lr_too_high: the training loss falls without trouble",),
        remedy=(
            f"stop at {held.column.per} {held.column.steps[best]:g}, or keep that checkpoint",
            "more data or augmentation; weight decay 0.05; dropout 0.1",
        ),
    )


@rule("SF808", "a metric that stays 0 while the loss falls", Role.METRIC, _LOSSES)
def metric_of_zero(case: Case) -> Iterator[Finding]:
    """What is learnt does not reach what is measured: boxes not decoded, labels shifted."""
    if case.adversarial or case.reinforced or case.loss is None:
        return
    course = case.course(case.loss)
    falling = course.size >= 4 and course.end < 0.75 * course.start
    metrics = [known for c in case.metrics if (known := finite(c)).values.size]
    zero = [c for c in metrics if c.values.size >= 4 and c.values.max() <= 1e-3]
    alive = [c for c in metrics if c.values.max() > 1e-2]
    if not zero or not falling or (alive and len(alive) >= len(zero)):
        return
    column = max(zero, key=lambda c: c.values.size)
    yield Finding(
        code="SF808",
        title=f"{column.name} is 0 on all {column.values.size} evaluations while the loss falls",
        cause=RootCause.WRONG_DECODING_OR_TARGETS,
        severity=Severity.CRITICAL,
        confidence=0.7,
        **spot(column),
        evidence=(
            Evidence("metric", float(column.values.max()), "its highest value"),
            Evidence(
                "loss", course.end, f"the loss fell from {course.start:.4g} to {course.end:.4g}"
            ),
        ),
        not_this=("not plateau_or_collapse: the loss falls, so something is learnt",),
        remedy=(
            "decode one batch of targets as if it were the model's output: the metric must be 1",
            "compare ranges: predictions and targets in the same unit (pixels, strides, 0 to 1)",
            "print how many predictions pass the score threshold: none, or all of them?",
        ),
        log_next=(
            "the range of predictions and of targets, and their number; of masks the share that "
            "is foreground: 0 is a model that calls everything background",
        ),
    )


@rule("SF809", "a metric that was learnt and is lost", Role.METRIC)
def collapsed_metric(case: Case) -> Iterator[Finding]:
    """Far below its best for the last evaluations."""
    for column in case.metrics:
        values = finite(column).values
        if values.size < 4 or values.min() < 0:
            continue
        best_at = int(np.argmax(values))
        best, last = float(values[best_at]), float(np.median(values[-2:]))
        lost = values.size - 1 - best_at >= 2 and last < 0.35 * best
        # A first value can be luck of a small batch; it takes some that were good.
        learnt = int(np.sum(values[: best_at + 1] > 0.6 * best)) >= 2
        if lost and learnt and best > 0.02:
            known = finite(column)
            drop = best_at + int(np.argmax(values[best_at:] < 0.5 * best))
            yield Finding(
                code="SF809",
                title=f"{column.name} falls from {best:.4g} to {last:.4g} and stays there",
                cause=RootCause.PLATEAU_OR_COLLAPSE,
                severity=Severity.CRITICAL,
                confidence=0.7,
                **spot(known, drop),
                evidence=(
                    Evidence("best", best, f"its best was {best:.4g}"),
                    Evidence("last", last, f"its last values are about {last:.4g}"),
                ),
                not_this=("not overfitting: that loses some points, not the whole of it",),
                remedy=(
                    f"go back to the checkpoint of {known.per} {known.steps[best_at]:g}",
                    "look at what changed there: learning rate, unfrozen layers, EMA, data",
                ),
            )
            return


def _accuse(case: Case, code: str, cause: RootCause) -> Iterator[Finding]:
    symptom = unstable(case)
    for suspect in symptom.suspects[:3] if symptom is not None else ():
        if symptom is not None and suspect.cause is cause:
            unsure = cause is RootCause.UNKNOWN
            yield Finding(
                code=code,
                title=_unstable_title(symptom, suspect),
                cause=cause,
                severity=Severity.WARNING if symptom.kind == "erratic" else Severity.CRITICAL,
                confidence=suspect.confidence,
                **said_at(symptom),
                evidence=suspect.evidence,
                not_this=suspect.not_this,
                remedy=remedy_for(cause, case, symptom.line),
                log_next=log_next_for(case) if unsure or suspect.confidence < 0.5 else (),
                explains=("SF806",) if cause is RootCause.LR_TOO_HIGH else (),
            )


_WHAT = {
    "left": "{name} leaves its valley",
    "spike": "the log ends while {name} is far above its usual level",
    "absurd": "{name} is worse than guessing and does not fall",
    "lost": "{name} is as bad as that of an untrained model",
    "erratic": "{name} swings and does not fall",
}
_BECAUSE = {
    RootCause.LR_TOO_HIGH: "the steps are too large",
    RootCause.EXPLODING_GRADIENTS: "the gradients grow without bound",
    RootCause.PLATEAU_OR_COLLAPSE: "what was learnt is lost",
    RootCause.BAD_DATA_OR_LABELS: "the data has changed",
    RootCause.UNKNOWN: "this log does not tell why",
}


def _unstable_title(symptom: Unstable, suspect: Suspect) -> str:
    what = _WHAT[symptom.kind].format(name=symptom.column.name)
    return f"{what} from {symptom.column.per} {symptom.step:g} on: {_BECAUSE[suspect.cause]}"


def _stuck(case: Case, code: str, cause: RootCause) -> Iterator[Finding]:
    symptom = stuck(case)
    for suspect in symptom.suspects[:3] if symptom is not None else ():
        if symptom is not None and suspect.cause is cause:
            yield Finding(
                code=code,
                title=_stuck_title(symptom, suspect),
                cause=cause,
                severity=Severity.CRITICAL if suspect.confidence > 0.4 else Severity.WARNING,
                confidence=suspect.confidence,
                **said_at(symptom),
                evidence=suspect.evidence,
                not_this=suspect.not_this,
                remedy=remedy_for(cause, case, symptom.line)
                or (
                    "fit one batch of 8 samples: what cannot be learnt there is a fault of the "
                    "code, not of the settings",
                    "learning rate: try ten times less and ten times more",
                ),
                log_next=log_next_for(case)[:2],
                explains=("SF804", "SF404") if cause is RootCause.LR_TOO_HIGH else (),
            )


def _stuck_title(symptom: Stuck, suspect: Suspect) -> str:
    if suspect.cause is RootCause.LR_TOO_HIGH:
        return f"{symptom.column.name} does not fall: the steps may be too large"
    return f"{symptom.column.name} does not get better: nothing is learnt"


def _spike(case: Case, course: Course, worst: Hump, count: int, back: float) -> Finding:
    height = worst.peak - worst.base
    if case.from_the_start:
        # Above where it began, or half of what had been learnt lost for a while.
        high = worst.peak > 1.2 * course.start or height > 0.5 * (course.start - worst.base)
    else:
        high = height > abs(worst.base)
    severe = high and worst.length >= (2 if case.from_the_start else 3)
    more = f", the worst of {count}" if count > 1 else ""
    return Finding(
        code="SF804",
        title=f"the loss jumped to {worst.peak:.4g} and came back to {back:.4g}{more}",
        cause=RootCause.SPIKE_RECOVERED,
        severity=Severity.WARNING if severe else Severity.NOTE,
        confidence=0.75 if severe else 0.5,
        **spot(course.column, worst.first),
        evidence=(
            Evidence("peak", worst.peak, f"{worst.base:.4g} before, {worst.peak:.4g} at the peak"),
            Evidence("length", worst.length, f"it lasted {worst.length} values"),
            Evidence("after", back, f"{back:.4g} after it"),
        ),
        not_this=("not a divergence: the loss is back at its level",),
        remedy=(
            clip_setting(case),
            "Policy(spike='refuse') leaves such a step out; Adam's beta2 of 0.95 forgets it sooner",
        ),
    )


RULES: tuple[Rule, ...] = (
    diverged,
    exploded,
    cannot_be_told,
    recovered_spike,
    plateau,
    too_large_to_learn,
    overfitting,
    metric_of_zero,
    collapsed_metric,
)
