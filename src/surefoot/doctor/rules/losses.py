"""The loss and its terms: dead, constant, drowned by one of them, below zero, out of balance."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from surefoot.doctor.case import DISCRIMINATOR, GENERATOR, Case, finite
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.known import clamp_near, untrained_near
from surefoot.doctor.nonfinite import nonfinite
from surefoot.doctor.robust import level
from surefoot.doctor.rule import Blind, Rule, rule
from surefoot.doctor.spot import spot
from surefoot.doctor.stuck import stuck
from surefoot.doctor.trend import Course
from surefoot.doctor.units import mismatch, overlap_of_nothing
from surefoot.journal.series import Column, Role

__all__ = ["RULES"]

_ANY_LOSS = (Role.LOSS, Role.TERM)
_BELOW_ZERO = re.compile(
    r"\b(elbo|wgan|wasser|hinge|reward|policy|act|likelihood|contrast|kl)", re.I
)
_CHANCE_D = 2 * np.log(2)
_CHANCE_G = np.log(2)


@rule("SF301", "a term that is exactly 0", Role.TERM)
def dead_term(case: Case) -> Iterator[Finding]:
    """Zero to the last digit on every line, or from some line on, while the others live."""
    if case.adversarial:
        return
    living = [c for c in case.losses if not _all_zero(c) and finite(c).values.size]
    for column in case.terms:
        if not living or column.values.size < 1:
            continue
        dies_at = _dies_at(column)
        if not _all_zero(column) and dies_at is None:
            continue
        yield _dead(case, column, dies_at)


@rule("SF302", "a loss that is the same number on every line", _ANY_LOSS)
def constant_loss(case: Case) -> Iterator[Finding]:
    """To all printed digits: nothing the model does reaches it."""
    column, symptom = case.loss, stuck(case)
    if column is None or case.reinforced or (symptom is not None and symptom.saturated):
        return
    known = finite(column)
    if known.values.size < 3:
        return
    value, since = _constant_since(known.values)
    if value is None or known.values.size - since < max(3, 0.25 * known.values.size):
        return
    rows = known.values.size - since
    mark = clamp_near(value) if value != 0 else None
    text = f"{column.name} is {value:.6g} on {rows} lines in a row"
    evidence = (Evidence("constant", value, text), *_zero_gradient(case))
    if mark is None:
        yield Finding(
            code="SF302",
            title=f"{column.name} is stuck at {value:.6g}: the model cannot change it",
            cause=RootCause.DEAD_LOSS,
            severity=Severity.CRITICAL,
            confidence=0.75,
            evidence=evidence,
            not_this=("not plateau_or_collapse: a loss that is computed from data has noise",),
            remedy=(
                "check that the loss is computed from the model's output with a gradient "
                "(loss.requires_grad, no .detach(), .item() or constant in its path)",
                "check that targets are not all ignored (-100) or empty",
            ),
            explains=("SF301", "SF805", "SF806", "SF808"),
            **spot(known, since),
        )


@rule("SF303", "one term that is nearly all of the loss", Role.TERM)
def dominating_term(case: Case) -> Iterator[Finding | Blind]:
    """A share that leaves the other terms no say, and that does not shrink."""
    if case.adversarial or case.reinforced:
        return
    terms = [finite(c) for c in case.terms]
    terms = [c for c in terms if c.values.size and not _all_zero(c)]
    if len(terms) < 2:
        yield Blind("fewer than two terms are logged")
        return
    rows = max(c.values.size for c in terms)
    terms = [c for c in terms if c.values.size >= 0.5 * rows]
    sizes = np.array([level(np.abs(c.values)) for c in terms])
    order = np.argsort(-sizes)
    if len(terms) < 2 or sizes[order[1]] == 0:
        return
    share = float(sizes[order[0]] / sizes.sum())
    ratio = float(sizes[order[0]] / sizes[order[1]])
    top = terms[int(order[0])]
    snapshot = rows <= 3
    drowned = share > 0.9 or (len(terms) >= 3 and share > 0.6 and ratio > 5)
    if not drowned or (not snapshot and Course(top).fell):
        return
    yield _dominates(case, terms, order, share)


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


@rule("SF307", "an adversarial pair that is out of balance", _ANY_LOSS)
def out_of_balance(case: Case) -> Iterator[Finding | Blind]:
    """One player wins for good: its partner learns nothing any more, or the pair drifts."""
    if not case.adversarial:
        return
    pair = _players(case)
    if pair is None:
        yield Blind("the two losses are not logged side by side")
        return
    judge, maker = pair
    if judge.values.min() < 0 or maker.values.min() < 0 or judge.values.size < 10:
        yield Blind("losses below 0 or fewer than ten values: their balance has no known level")
        return
    late = slice(judge.values.size // 2, None)
    d_late, g_late = level(judge.values[late]), level(maker.values[late])
    facts = (
        Evidence("discriminator", d_late, f"{judge.name}: median {d_late:.3g} in the second half"),
        Evidence("generator", g_late, f"{maker.name}: median {g_late:.3g} in the second half"),
        Evidence("balance", _CHANCE_D, "an even game stands at 2 ln 2 = 1.386 and ln 2 = 0.693"),
    )
    place = spot(judge, judge.values.size // 2)
    if d_late < 0.02 and g_late > 4:
        yield Finding(
            code="SF307",
            title=f"{judge.name} is nearly 0: the discriminator has won",
            cause=RootCause.PLATEAU_OR_COLLAPSE,
            severity=Severity.CRITICAL,
            confidence=0.7,
            evidence=facts,
            not_this=("not convergence: in a game that goes on neither loss falls to 0",),
            remedy=(
                "discriminator learning rate: a quarter of the generator's",
                "R1 gradient penalty with weight 10, or spectral normalisation",
            ),
            **place,
        )
    elif d_late > 1.15 * _CHANCE_D and g_late < 0.6 * _CHANCE_G:
        yield Finding(
            code="SF307",
            title="the discriminator is worse than guessing: the pair drifts out of balance",
            cause=RootCause.UNKNOWN,
            severity=Severity.WARNING,
            confidence=0.6,
            evidence=facts,
            not_this=(
                "not plateau_or_collapse: both losses still move; whether the images are worse "
                "cannot be told from losses",
            ),
            remedy=("one more discriminator step for each step of the generator",),
            log_next=("FID or another measure of the samples, every epoch", "a grid of samples"),
            **place,
        )


def _all_zero(column: Column) -> bool:
    return bool(column.values.size and np.all(column.values == 0.0))


def _dies_at(column: Column) -> int | None:
    """Index from which a term that lived is exactly 0 to the end; None if it lives."""
    values = column.values
    alive = np.flatnonzero(values != 0.0)
    if not alive.size or values.size - alive[-1] - 1 < max(5, 0.2 * values.size):
        return None
    # A hinge that is satisfied comes to 0 by small steps; what falls there at once was cut off.
    level_before = level(np.abs(values[: alive[-1] + 1]))
    if abs(values[alive[-1]]) < 0.05 * level_before:
        return None
    return int(alive[-1]) + 1


def _dead(case: Case, column: Column, dies_at: int | None) -> Finding:
    improving = case.loss is not None and case.loss.values.size >= 5 and Course(case.loss).fell
    harmless = dies_at is None and (improving or case.reinforced or case.loss is None)
    few = column.values.size <= 3
    severity = Severity.NOTE if harmless and not few else Severity.WARNING
    index = dies_at or 0
    since = f" from line {column.lines[index]} on" if dies_at else " on every line"
    return Finding(
        code="SF301",
        title=f"{column.name} is exactly 0{since}: it is switched off, or dead",
        cause=RootCause.DEAD_LOSS,
        severity=severity,
        confidence=0.6 if dies_at else (0.2 if severity is Severity.NOTE else 0.45),
        **spot(column, index),
        evidence=(Evidence("value", 0.0, f"{column.values.size - index} values, all exactly 0"),),
        not_this=("not a term that has been learnt: that comes close to 0, not to 0.000000",),
        remedy=(
            f"if {column.name} has a weight above 0: check that what it needs reaches it, and "
            "that no guard returns a constant in its place",
        ),
        log_next=("the weight of every term",),
    )


def _constant_since(values: np.ndarray) -> tuple[float | None, int]:
    """The value that the series ends on without ever changing again, and from which index."""
    last = values[-1]
    differ = np.flatnonzero(np.abs(values - last) > 1e-9 * max(1.0, abs(last)))
    since = int(differ[-1]) + 1 if differ.size else 0
    return float(last), since


def _zero_gradient(case: Case) -> tuple[Evidence, ...]:
    if case.gradient is None or not case.gradient.values.size:
        return ()
    norm = level(finite(case.gradient).values)
    return (Evidence("norm", norm, f"the gradient's norm is {norm:.3g}"),)


def _dominates(case: Case, terms: list[Column], order: np.ndarray, share: float) -> Finding:
    top, second = terms[int(order[0])], terms[int(order[1])]
    size, next_size = level(np.abs(top.values)), level(np.abs(second.values))
    mark = untrained_near(size, 0.09)
    snapshot = top.values.size <= 3
    return Finding(
        code="SF303",
        title=f"{top.name} is {share:.0%} of the loss; the other terms have no say",
        cause=RootCause.LOSS_TERM_DOMINATES,
        severity=Severity.WARNING,
        # A share at one moment is weak beside a gradient that is no number.
        confidence=0.3 if nonfinite(case) is not None else 0.6 if snapshot else 0.65,
        **spot(top),
        evidence=(
            Evidence("share", share, f"{top.name} {size:.4g} of {size / share:.4g}"),
            Evidence("next", next_size, f"the next, {second.name}, is {next_size:.4g}"),
            *((Evidence("untrained", mark.value, f"near {mark}"),) if mark else ()),
        ),
        not_this=(
            (f"not exploding_gradients: {mark.formula} is its value before training",)
            if mark
            else ("not exploding_gradients: the term is large, it does not grow",)
        ),
        remedy=(
            f"{_flag(top.name)} {next_size / size:.2g}: then it weighs as much as {second.name}",
            "check whether it is a sum where the others are means",
        ),
        log_next=()
        if case.loss is not None
        else ("the weight of each term, or the weighted terms",),
        explains=("SF401",),
    )


def _flag(name: str) -> str:
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower().rsplit("/", 1)[-1]).strip("-")
    stem = stem.removeprefix("loss-").removesuffix("-loss") or "term"
    return f"--{stem}-weight"


def _players(case: Case) -> tuple[Column, Column] | None:
    """Discriminator and generator loss, finite and of one length."""
    columns = [finite(c) for c in case.columns if c.role in (Role.LOSS, Role.TERM)]
    judge = next((c for c in columns if DISCRIMINATOR.search(c.name)), None)
    maker = next((c for c in columns if GENERATOR.search(c.name)), None)
    if judge is None or maker is None or judge.values.size != maker.values.size:
        return None
    return (judge, maker) if judge.values.size else None


@rule("SF304", "boxes that never overlap their targets", _ANY_LOSS)
def without_overlap(case: Case) -> Iterator[Finding]:
    """At an IoU of exactly 0 the overlap has no gradient: the box loss cannot pull."""
    column = overlap_of_nothing(case)
    boxes = [c for c in case.terms if re.search(r"box|iou|reg", c.name, re.I)]
    if column is None or not boxes or _all_zero(boxes[0]):
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


RULES: tuple[Rule, ...] = (
    dead_term,
    without_overlap,
    different_units,
    constant_loss,
    dominating_term,
    below_zero,
    out_of_balance,
)
