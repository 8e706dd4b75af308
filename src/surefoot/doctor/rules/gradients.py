"""The gradient's norm and what clipping makes of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.columns import finite
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.remedies import remedy_for
from surefoot.doctor.robust import last_level, level
from surefoot.doctor.rule import Blind, Rule, rule
from surefoot.doctor.spot import spot
from surefoot.doctor.trend import Course
from surefoot.journal.series import Column, Role

__all__ = ["RULES"]

_FEW = "fewer than three norms are numbers"


@rule("SF401", "a gradient norm that grows by orders of magnitude", Role.GRADIENT_NORM)
def growing(case: Case) -> Iterator[Finding | Blind]:
    """Ten times its usual size and not back, beside a loss that has stopped falling."""
    norms = _norms(case)
    if norms is None:
        yield Blind(_FEW)
        return
    values = norms.values
    start = level(values[: max(3, values.size // 3)])
    end = last_level(values)
    # Norms are high while the learning rate warms up; what is above that at the end has grown.
    apart = np.min(values[-3:]) > np.quantile(values[:-3], 0.95) if values.size > 3 else True
    grown = apart and (
        start > 0
        and end > 8 * start
        and end > 3 * float(np.max(values[: max(1, values.size // 5)]))
    )
    course = case.course(case.loss) if case.loss is not None else None
    if not grown or (course is not None and course.size >= 5 and _still_falling(course)):
        return
    first = int(np.flatnonzero(values > 3 * start)[0])
    yield Finding(
        code="SF401",
        title=f"the gradient's norm grows from {start:.3g} to {end:.3g}",
        cause=RootCause.EXPLODING_GRADIENTS,
        severity=Severity.CRITICAL,
        confidence=0.6,
        **spot(norms, first),
        evidence=(
            Evidence("growth", end / start, f"{end / start:.3g} times as large as at first"),
            Evidence("last", end, f"the last norms are about {end:.3g}"),
        ),
        not_this=_not_scaled(case),
        remedy=remedy_for(RootCause.EXPLODING_GRADIENTS, case, int(norms.lines[first])),
    )


@rule("SF402", "a clip threshold far below the usual norm", Role.GRADIENT_NORM)
def clipped_always(case: Case) -> Iterator[Finding | Blind]:
    """Every step is shortened many times over and the loss does not move."""
    norms, clip = _norms(case), _threshold(case)
    if norms is None or clip is None:
        yield Blind(_FEW if norms is None else "the log does not tell the clip threshold")
        return
    usual, share = level(norms.values), float(np.mean(norms.values > clip))
    if share < 0.9 or usual < 8 * clip or case.loss is None or case.loss.values.size < 5:
        return
    # Some steps of warm-up tell nothing about where the loss goes.
    long = case.loss.values.size >= 20 or np.ptp(case.loss.steps) >= 200
    stuck = bool(long and not case.course(case.loss).fell)
    yield Finding(
        code="SF402",
        title=f"{share:.0%} of the steps are clipped, to a {usual / clip:.0f}th of their length",
        cause=RootCause.CLIP_TOO_TIGHT,
        severity=Severity.WARNING if stuck else Severity.NOTE,
        confidence=0.6 if stuck else 0.2,
        **spot(norms),
        evidence=(
            Evidence("threshold", clip, f"the threshold is {clip:g}"),
            Evidence("norm", usual, f"the norm's median is {usual:.3g}"),
        ),
        not_this=(
            ("not exploding_gradients: the norm does not grow",)
            if stuck
            else (
                "not a fault by itself: Adam does not feel a constant factor, and the loss "
                + ("falls" if long else "has too few values to say where it goes"),
            )
        ),
        remedy=(f"--gradient-clip-norm {2 * usual:.2g}, twice the usual norm",),
    )


@rule("SF403", "a norm that equals the clip threshold at every step", Role.GRADIENT_NORM)
def reported_after_clipping(case: Case) -> Iterator[Finding | Blind]:
    """Either the norm is taken after clipping, or every step is cut."""
    norms = _norms(case)
    if norms is None:
        yield Blind(_FEW)
        return
    top, usual = float(np.max(norms.values)), level(norms.values)
    if norms.values.size < 5:
        yield Blind("fewer than five norms are numbers")
        return
    same = float(np.mean(np.abs(norms.values - usual) <= 2e-3 * usual)) if usual > 0 else 0.0
    if same < 0.8 or top > 1.05 * usual:
        return
    stuck = case.loss is not None and case.loss.values.size >= 5 and not case.course(case.loss).fell
    yield Finding(
        code="SF403",
        title=f"the gradient's norm is {usual:.4g} at {same:.0%} of the steps: clipped each time",
        cause=RootCause.CLIP_TOO_TIGHT,
        severity=Severity.WARNING if stuck else Severity.NOTE,
        confidence=0.65 if stuck else 0.3,
        **spot(norms),
        evidence=(Evidence("norm", usual, f"{same:.0%} of the norms are {usual:.4g}"),),
        not_this=(
            "not a stable gradient: this is its length after clipping, the true one is hidden",
        ),
        remedy=(
            "log the norm that clip_grad_norm_ returns: that is the one before clipping",
            f"then a threshold at twice its median in place of {usual:.3g}",
        ),
    )


@rule("SF404", "norms that stand out on single steps", Role.GRADIENT_NORM)
def lone_spikes(case: Case) -> Iterator[Finding | Blind]:
    """Tens of times the usual norm on a step, and the loss does not feel it."""
    norms = _norms(case)
    if norms is None:
        yield Blind(_FEW)
        return
    usual = level(norms.values)
    after_warm_up = np.arange(norms.values.size) >= max(2, 0.05 * norms.values.size)
    # A tail that is heavy but without a gap is how single samples are.
    calm = norms.values[norms.values <= 30 * usual]
    gap = 8 * float(np.quantile(calm, 0.95)) if calm.size else 0.0
    high = np.flatnonzero((norms.values > max(30 * usual, gap)) & after_warm_up)
    if not high.size or high.size > 0.25 * norms.values.size or usual <= 0:
        return
    if norms.values.size - 1 - high[-1] < 1 and last_level(norms.values) > 5 * usual:
        return
    worst = int(high[np.argmax(norms.values[high])])
    yield Finding(
        code="SF404",
        title=f"the gradient's norm jumps to {norms.values[worst]:.4g} on single steps",
        cause=RootCause.UNKNOWN,
        severity=Severity.WARNING,
        confidence=0.55,
        **spot(norms, int(high[0])),
        evidence=(
            Evidence("spikes", int(high.size), f"{high.size} steps above 30 times the median"),
            Evidence("median", usual, f"the median is {usual:.3g}"),
        ),
        not_this=(
            "not exploding_gradients: the norms between the spikes do not grow",
            "not lr_too_high: the loss does not follow",
        ),
        remedy=(f"--gradient-clip-norm {2 * usual:.2g} takes their force",),
        log_next=("the sample ids and the terms' own gradient norms of the steps that spike",),
    )


@rule("SF405", "a gradient of zero", Role.GRADIENT_NORM)
def vanished(case: Case) -> Iterator[Finding | Blind]:
    """No parameter gets a gradient: nothing is learnt, whatever the loss says."""
    norms = _norms(case)
    if norms is None:
        yield Blind(_FEW)
        return
    zero = norms.values < 1e-12
    if float(np.mean(zero)) < 0.5:
        return
    first = int(np.flatnonzero(zero)[0])
    yield Finding(
        code="SF405",
        title=f"the gradient is exactly 0 on {np.sum(zero)} of {zero.size} steps",
        cause=RootCause.DEAD_LOSS,
        severity=Severity.CRITICAL,
        confidence=0.8,
        **spot(norms, first),
        evidence=(Evidence("zero", int(np.sum(zero)), f"{np.sum(zero)} norms of 0"),),
        not_this=("not convergence: at a minimum the gradient of a batch is small, not 0",),
        remedy=(
            "check requires_grad of the parameters, .detach() in the loss, targets that are all "
            "ignored, activations that are all saturated",
        ),
        explains=("SF301", "SF302", "SF805"),
    )


def _norms(case: Case) -> Column | None:
    if case.gradient is None:
        return None
    norms = finite(case.gradient)
    return norms if norms.values.size >= 3 else None


def _threshold(case: Case) -> float | None:
    columns = [finite(c) for c in case.run.of(Role.CLIP_THRESHOLD) if c.values.size]
    if columns and columns[0].values.size:
        return level(columns[0].values)
    names = ("clip", "clipgrad", "gradclip", "gradientclip", "maxgradnorm", "clipnorm")
    clip = case.setting(*names, "gradientclipnorm", "gradientclipval", "gradclipnorm")
    return clip if clip is not None and clip > 0 else None


def _still_falling(course: Course) -> bool:
    half = course.values[course.size // 2 :]
    return level(half[-max(1, half.size // 3) :]) < level(half[: max(1, half.size // 3)])


def _not_scaled(case: Case) -> tuple[str, ...]:
    if case.precision == "fp16":
        return ()
    return ("not a loss scale left in the norm: the log shows no scale that grows with it",)


RULES: tuple[Rule, ...] = (
    growing,
    clipped_always,
    reported_after_clipping,
    lone_spikes,
    vanished,
)
