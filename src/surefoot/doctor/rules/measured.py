"""What is measured against what is trained: averages, scores that cannot be, shares of experts."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.columns import finite
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.robust import level, trend_share
from surefoot.doctor.rule import Blind, Rule, rule
from surefoot.doctor.spot import spot
from surefoot.journal.series import Column, Role

__all__ = ["RULES"]

_SHARES = re.compile(
    r"(^|[^a-z])(m?iou|dice|acc\w*|precision|recall|f1|map|s.?measure|e.?measure|f.?measure|"
    r"e_(mean|max|adaptive)|weighted_f)([^a-z]|$)",
    re.I,
)
_ALIGNED = re.compile(r"(^|[^a-z])e(.?measure|_mean|_max|_adaptive)", re.I)
_USED = re.compile(r"usage|expert|router|gate|load", re.I)
_FRESH = 0.2
"""Share of the first weights in an average from which it is no average of the model."""


@rule("SF811", "a metric that falls while the training loss falls", Role.METRIC, Role.LOSS)
def measured_otherwise(case: Case) -> Iterator[Finding | Blind]:
    """For many evaluations: what is measured are not the weights, or the mode, of the training."""
    if case.adversarial or case.reinforced or case.loss is None:
        return
    course = case.course(case.loss)
    if course.size < 4 or course.end > 0.8 * course.start or course.left_its_valley:
        return
    for column in case.metrics:
        known = finite(column)
        values = known.values
        if values.size < 5 or values.min() < 0 or values.max() <= 1e-2:
            continue
        best_at = int(np.argmax(values))
        after = values[best_at:]
        # One drop is a break; a decline from one evaluation to the next is an average that lags.
        gradual = after.size >= 4 and trend_share(after) < -0.6 and _steps_down(after) >= 3
        if gradual and level(after[-2:]) < 0.4 * values[best_at]:
            yield _elsewhere(case, known, best_at)
            return


@rule("SF812", "a score that cannot be", Role.METRIC)
def impossible(case: Case) -> Iterator[Finding]:
    """Below 0 where 0 is the least, or 0 beside one that is high: the metric's code is wrong."""
    for column in case.metrics:
        known = finite(column)
        if not known.values.size or not _SHARES.search(column.name):
            continue
        below = np.flatnonzero(known.values < -1e-6)
        above = np.flatnonzero(known.values > 100.0 + 1e-6)
        if below.size >= 2 or above.size >= 2:
            at = int((below if below.size else above)[0])
            text = f"{column.name} is {known.values[at]:.4g}, outside of what it can be"
            yield _wrong_code(known, at, text)
            return
        better = _beside(case, known)
        if better is not None:
            text = f"{column.name} is about 0 while {better.name} is {level(better.values):.3g}"
            yield _wrong_code(known, 0, text)
            return


@rule("SF813", "one expert that gets nearly everything", Role.LOSS)
def collapsed_router(case: Case) -> Iterator[Finding | Blind]:
    """Shares of a mixture of experts: one near 1, the others near 0."""
    shares, column = _shares(case)
    if column is None:
        yield Blind("the log has no shares of experts")
        return
    late = shares[-max(3, len(shares) // 4) :]
    top = float(np.median(late.max(axis=1)))
    even = 1.0 / shares.shape[1]
    if top < 0.8 or top < 2.5 * even:
        return
    yield Finding(
        code="SF813",
        title=f"one of {shares.shape[1]} experts gets {top:.0%}: the router has collapsed",
        cause=RootCause.PLATEAU_OR_COLLAPSE,
        severity=Severity.WARNING,
        confidence=0.7,
        **spot(column, int(np.argmax(shares.max(axis=1) > 0.8)) * shares.shape[1]),
        evidence=(
            Evidence("share", top, f"its share is {top:.3g}, an even one would be {even:.3g}"),
            Evidence("least", float(late.min()), f"the least share is {float(late.min()):.3g}"),
        ),
        not_this=(
            "not a small balance weight by itself: a term built from counts has no gradient",
        ),
        remedy=(
            "build the balance term from the router's probabilities, not from counts",
            "check that the router gets a gradient: no .item() between it and the loss",
        ),
        log_next=("the gradient norm of the router",),
    )


def _steps_down(values: np.ndarray) -> int:
    return int(np.sum(np.diff(values) < 0))


def _elsewhere(case: Case, known: Column, best_at: int) -> Finding:
    assert case.loss is not None
    best, last = float(known.values[best_at]), float(known.values[-1])
    course = case.course(case.loss)
    decay, fresh = case.setting("emadecay"), _first_weights(case, known)
    lagging = decay is not None and decay >= 0.999
    seen = [
        Evidence("metric", last, f"{known.name} goes from {best:.4g} to {last:.4g}"),
        Evidence("loss", course.end, f"the loss falls from {course.start:.4g} to {course.end:.4g}"),
    ]
    if decay is not None:
        seen.append(Evidence("ema_decay", decay, f"an average with a decay of {decay:g} is kept"))
    if fresh > _FRESH:
        text = f"{fresh:.0%} of that average are still the weights before training"
        seen.append(Evidence("first_weights", fresh, text))
    return Finding(
        code="SF811",
        title=f"{known.name} falls while the loss falls: what is measured is not what is trained",
        cause=RootCause.WRONG_DECODING_OR_TARGETS,
        severity=Severity.CRITICAL,
        confidence=0.85 if fresh > _FRESH else 0.75 if lagging else 0.55,
        **spot(known, best_at),
        evidence=tuple(seen),
        not_this=(
            "not lr_too_high: a run that diverges has a loss that rises",
            "not overfitting by that alone: it loses some points, not most of them",
        ),
        remedy=(
            "validate the raw weights beside the average, and log both",
            "an average needs a warm-up, min(decay, (1 + t) / (10 + t)), and the buffers of "
            "BatchNorm too",
            "model.eval() in the validation; the same normalisation as in training",
        ),
        log_next=("the metric of the raw weights",) if not lagging else (),
        explains=("SF809",) if fresh > _FRESH else (),
    )


def _first_weights(case: Case, known: Column) -> float:
    """Share of the weights before training in an average at the last evaluation; 0 for unknown."""
    decay, length = case.setting("emadecay"), case.setting("epochlength")
    if decay is None or not 0 < decay < 1:
        return 0.0
    if known.per == "epoch" and length is None:
        return 0.0
    steps = float(known.steps[-1]) * (length if known.per == "epoch" and length else 1.0)
    return float(decay**steps) if steps > 0 else 0.0


def _beside(case: Case, known: Column) -> Column | None:
    """Another score that is high where an alignment score, which is never below it, is 0."""
    if not _ALIGNED.search(known.name) or known.values.max() > 1e-2:
        return None
    others = (finite(c) for c in case.metrics if re.search(r"iou|dice", c.name, re.I))
    return next((c for c in others if c.values.size and level(c.values) > 0.3), None)


def _wrong_code(known: Column, at: int, text: str) -> Finding:
    return Finding(
        code="SF812",
        title=f"{text}: the code that computes it is wrong",
        cause=RootCause.WRONG_DECODING_OR_TARGETS,
        severity=Severity.WARNING,
        confidence=0.8,
        **spot(known, at),
        evidence=(Evidence("value", float(known.values[at]), text),),
        not_this=("not a bad model: the worst model there is has a score of 0",),
        remedy=(
            "score a perfect, an inverted and an empty prediction: 1, 0 and what is agreed upon",
            "compare with a published implementation on the same masks",
        ),
    )


def _shares(case: Case) -> tuple[np.ndarray, Column | None]:
    """Rows of shares that add up to 1, and the column that they stand in."""
    for column in case.columns:
        if column.role is not Role.OTHER or not _USED.search(column.name):
            continue
        steps, counts = np.unique(column.steps, return_counts=True)
        count = int(counts[0]) if steps.size else 0
        if count < 2 or steps.size < 5 or np.any(counts != count):
            continue
        rows = column.values.reshape(-1, count)
        if np.all(np.abs(rows.sum(axis=1) - 1.0) < 0.03) and rows.min() >= 0:
            return rows, column
    return np.empty((0, 0)), None


RULES: tuple[Rule, ...] = (measured_otherwise, impossible, collapsed_router)
