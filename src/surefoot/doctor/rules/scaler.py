"""The gradient scaler in the wrong hands: skips that stay, wrong calls, norms still scaled."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.columns import finite
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.phrases import SCALER_MISUSE
from surefoot.doctor.remedies import remedy_for
from surefoot.doctor.robust import level
from surefoot.doctor.rule import Blind, Rule, rule
from surefoot.doctor.spot import said_at, spot
from surefoot.journal.series import Role

__all__ = ["RULES"]


_TO_NOTHING = 20
"""Halvings after which 65,536 is less than a tenth, without a growth in between."""
_RENEWED = (
    "{} skips would have halved 65,536 to nothing: the scaler is replaced, or never told of them"
)


@rule("SF203", "steps that go on being skipped", (Role.SKIPPED, Role.LOSS_SCALE, Role.LOSS))
def skipped_for_good(case: Case) -> Iterator[Finding | Blind]:
    """Skips that do not end with the calibration, while the scale does not fall."""
    found = _late_skips(case)
    if found is None:
        yield Blind("the log does not number the steps that it counts skips of")
        return
    skips, steps, line, step = found
    rate = skips / steps
    if skips < 4 or rate < 0.05:
        return
    scales = case.scales
    held = scales.scales.size > 3 and scales.halvings == 0
    told = _said_to_be_skipped(case).size
    # Halved so often, a scale that the log does not show would have come to nothing.
    renewed = told > _TO_NOTHING and not scales.scales.size
    yield Finding(
        code="SF203",
        title=f"{rate:.0%} of the steps of the second half were skipped",
        cause=RootCause.SCALER_MISUSE if held or renewed else RootCause.FP16_OVERFLOW,
        severity=Severity.WARNING,
        confidence=0.6,
        step=step,
        first_line=line,
        evidence=(
            Evidence("skips", skips, f"{skips} steps skipped of the last {steps:g}"),
            *((Evidence("halvings", 0, "the scale was not reduced once"),) if held else ()),
            *((Evidence("told", told, _RENEWED.format(told)),) if renewed else ()),
        ),
        not_this=("not calibration: that is over after the first twenty steps or so",),
        remedy=(
            "call scaler.update() after every scaler.step(), and never replace the scaler",
            *remedy_for(RootCause.FP16_OVERFLOW, case, line),
        ),
    )


@rule("SF204", "a gradient scaler that is called in the wrong order")
def misuse(case: Case) -> Iterator[Finding]:
    """PyTorch says so in its own words."""
    told = case.of_kind("scaler_misuse") or case.said(SCALER_MISUSE)
    if told:
        text = told[0].text
        yield Finding(
            code="SF204",
            title="the loop calls the gradient scaler in a wrong order",
            cause=RootCause.SCALER_MISUSE,
            severity=Severity.CRITICAL,
            confidence=0.85,
            **said_at(told[0]),
            evidence=(
                Evidence("message", text, f"line {told[0].line}: {text[:120]}"),
                Evidence("times", len(told), f"said {len(told)} times"),
            ),
            not_this=("not exploding_gradients: no gradient was looked at",),
            remedy=_in_order(text),
        )


@rule("SF205", "a gradient norm that is still multiplied by the loss scale", Role.GRADIENT_NORM)
def still_scaled(case: Case) -> Iterator[Finding | Blind]:
    """The norm follows the scale, or is a plausible norm times a scale beside a calm loss."""
    assert case.gradient is not None
    norms = finite(case.gradient)
    if not norms.values.size:
        yield Blind("no gradient norm is a number")
        return
    usual, scale = level(norms.values), _scale_of(case)
    if not scale > 0:
        yield Blind("the log does not tell the loss scale")
        return
    factor = _follows_the_scale(case)
    calm = case.loss is None or not case.course(case.loss).left_its_valley
    plausible = usual > 1e4 and 1e-3 < usual / scale < 1e3
    if factor is None and not (plausible and calm and scale >= 1024):
        return
    yield Finding(
        code="SF205",
        title=f"the gradient norm of {usual:.3g} is not a true one: the loss scale is still in it",
        cause=RootCause.SCALER_MISUSE,
        severity=Severity.WARNING,
        confidence=0.8 if factor is not None else 0.6,
        **spot(norms),
        evidence=(
            Evidence("norm", usual, f"the norm's median is {usual:.3g}"),
            Evidence("scale", scale, f"divided by the scale, {scale:g}, it is {usual / scale:.3g}"),
            *((Evidence("follows", factor, "it halves when the scale does"),) if factor else ()),
        ),
        not_this=("not exploding_gradients: the true norm is the logged one over the scale",),
        remedy=("scaler.unscale_(optimizer) before the norm is taken and before clipping",),
        explains=("SF401", "SF402", "SF404"),
    )


def _late_skips(case: Case) -> tuple[int, float, int, float] | None:
    """Skips in the second half, its length in steps, line and step of the first of them."""
    for column in map(finite, case.run.of(Role.SKIPPED)):
        if column.values.size < 4:
            continue
        half = column.values.size // 2
        counts, steps = column.values[half:], column.steps[half:]
        span = float(steps[-1] - steps[0])
        if span > 0:
            running = bool(np.all(np.diff(column.values) >= 0))
            skips = counts[-1] - counts[0] if running else np.sum(counts[1:])
            grown = int(np.argmax(np.diff(counts) > 0)) + 1
            return int(skips), span, int(column.lines[half + grown]), float(steps[grown])
    return _late_overflows(case)


def _late_overflows(case: Case) -> tuple[int, float, int, float] | None:
    loss, lines = case.loss, case.scales.overflow_lines
    if not lines.size:
        lines = _said_to_be_skipped(case)
    if loss is None or loss.lines.size < 8 or not lines.size:
        return None
    span = float(loss.steps[-1] - loss.steps[0]) / 2
    middle = loss.lines[loss.lines.size // 2]
    late = lines[lines >= middle]
    if span <= 0 or not late.size:
        return (0, max(span, 1.0), int(middle), math.nan)
    at = min(int(np.searchsorted(loss.lines, late[0])), loss.lines.size - 1)
    return int(late.size), span, int(late[0]), float(loss.steps[at])


def _said_to_be_skipped(case: Case) -> np.ndarray:
    """Lines that say in words that a step was left out for its gradient."""
    if case.precision != "fp16":
        return np.empty(0, dtype=int)
    told = (m for m in case.of_kind("nan_gradient") if "skip" in m.text.lower())
    return np.array([m.line for m in told], dtype=int)


def _follows_the_scale(case: Case) -> float | None:
    """Median ratio of the norm's jumps to the scale's, where the scale jumps; None for no sign."""
    assert case.gradient is not None
    norms, history = finite(case.gradient), case.scales
    if norms.values.size < 4 or history.scales.size < 2:
        return None
    at = np.searchsorted(history.lines, norms.lines, side="right") - 1
    scales = np.where(at >= 0, history.scales[np.maximum(at, 0)], np.nan)
    moves = np.diff(np.log2(np.maximum(scales, 1e-300)))
    jumps = np.flatnonzero(np.abs(moves) >= 0.5)
    if jumps.size < 2:
        return None
    norm_moves = np.diff(np.log2(np.maximum(norms.values, 1e-300)))[jumps]
    ratio = float(np.median(norm_moves / moves[jumps]))
    return ratio if 0.7 < ratio < 1.3 else None


def _scale_of(case: Case) -> float:
    if case.scales.scales.size:
        return level(case.scales.scales)
    given = case.setting("lossscale", "initscale", "initialscale")
    return given if given is not None else (65_536.0 if case.precision == "fp16" else math.nan)


def _in_order(text: str) -> tuple[str, ...]:
    order = "scale(loss).backward(), unscale_(optimizer), clip, step(optimizer), update()"
    if "unscale_" in text:
        return (
            f"one of each for an optimizer step, in this order: {order}",
            "with accumulation only backward runs on every micro-batch",
        )
    if "No inf checks" in text or "found_inf" in text:
        return (
            "a step without any gradient: check that the loss depends on the optimizer's "
            "parameters (requires_grad, no detach, no constant in place of a loss)",
            f"then, in this order: {order}",
        )
    return (f"in this order: {order}",)


RULES: tuple[Rule, ...] = (skipped_for_good, misuse, still_scaled)
