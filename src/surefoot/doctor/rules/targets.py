"""What the model puts out against what it is compared with: units, overlap, range."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.columns import finite
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.robust import level
from surefoot.doctor.rule import Rule, rule
from surefoot.doctor.spot import spot
from surefoot.doctor.units import mismatch, overlap_of_nothing
from surefoot.journal.series import Role

__all__ = ["RULES"]

_ANY_LOSS = (Role.LOSS, Role.TERM)
_BELOW_ZERO = re.compile(
    r"\b(elbo|wgan|wasser|hinge|reward|policy|act|likelihood|contrast|kl)", re.I
)


@rule("SF304", "boxes that never overlap their targets", _ANY_LOSS)
def without_overlap(case: Case) -> Iterator[Finding]:
    """At an IoU of exactly 0 the overlap has no gradient: the box loss cannot pull."""
    column = overlap_of_nothing(case)
    boxes = [c for c in case.terms if re.search(r"box|iou|reg", c.name, re.I)]
    if column is None or not boxes or np.all(boxes[0].values == 0.0):
        return
    term = boxes[0]
    yield Finding(
        code="SF304",
        title=f"{term.name} has nothing to learn from: the IoU is 0 on every line",
        cause=RootCause.DEAD_LOSS,
        severity=Severity.CRITICAL,
        confidence=0.7,
        **spot(term),
        evidence=(
            Evidence("iou", 0.0, f"{column.values.size} values of {column.name}, all exactly 0"),
            Evidence("term", level(finite(term).values), f"{term.name} stays at its size"),
        ),
        not_this=("not loss_term_dominates: no weight makes a gradient out of none",),
        remedy=(
            "decode the outputs to the unit of the targets before the loss: anchor + offset x "
            "stride; softplus or exp for distances, so that every box is valid",
        ),
        explains=("SF301",),
    )


@rule("SF305", "predictions and targets of different size")
def different_units(case: Case) -> Iterator[Finding]:
    """What the model puts out and what it is compared with are not in the same unit."""
    found = mismatch(case)
    if found is None:
        return
    predicted, wanted = found.predicted, found.wanted
    reach = float(np.max(np.abs(finite(predicted).values)))
    aim = float(np.max(np.abs(finite(wanted).values)))
    yield Finding(
        code="SF305",
        title=f"predictions reach {reach:.4g}, targets {aim:.4g}: they are not in the same unit",
        cause=RootCause.WRONG_DECODING_OR_TARGETS,
        severity=Severity.CRITICAL,
        confidence=0.75,
        **spot(predicted),
        evidence=(
            Evidence("ratio", found.ratio, f"a ratio of {found.ratio:.2g}"),
            Evidence(
                "predicted", reach, f"{predicted.section or predicted.name}: up to {reach:.4g}"
            ),
            Evidence("wanted", aim, f"{wanted.section or wanted.name}: up to {aim:.4g}"),
        ),
        not_this=("not lr_too_high, nor a matter of loss weights: no step mends a unit",),
        remedy=(
            "decode predictions and targets with one function, used by training, validation and "
            "export alike",
            "test it: encode then decode a box gives the box again",
        ),
    )


@rule("SF306", "a loss below zero that cannot be", _ANY_LOSS)
def below_zero(case: Case) -> Iterator[Finding]:
    """A cross-entropy falls below 0 only where targets are no probabilities."""
    column = case.loss
    if column is None or case.adversarial or case.reinforced or _BELOW_ZERO.search(column.name):
        return
    known = finite(column)
    classified = any("acc" in metric.name.lower() for metric in case.metrics)
    named = re.search(r"bce|cross|xent|\bce\b|entropy", column.name, re.I)
    negative = np.flatnonzero(known.values < 0)
    if known.values.size < 3 or negative.size < max(2, 0.3 * known.values.size):
        return
    if not (classified or named) or not known.values[-1] < -0.5:
        return
    yield Finding(
        code="SF306",
        title=f"{column.name} falls to {known.values[-1]:.4g}: a cross-entropy is never below 0",
        cause=RootCause.BAD_DATA_OR_LABELS,
        severity=Severity.CRITICAL,
        confidence=0.8,
        **spot(known, negative[0]),
        evidence=(
            Evidence("last", float(known.values[-1]), f"its last value is {known.values[-1]:.4g}"),
            Evidence("negative", int(negative.size), f"{negative.size} values are below 0"),
        ),
        not_this=("not progress: below 0 a smaller value means wilder outputs",),
        remedy=(
            "targets of a binary cross-entropy must lie in [0, 1]: divide masks by 255, map "
            "labels {1, 2} or {-1, 1} to {0, 1}",
            "several classes: integer labels with cross_entropy in place of binary targets",
        ),
        explains=("SF801", "SF805", "SF808"),
    )


RULES: tuple[Rule, ...] = (without_overlap, different_units, below_zero)
