"""The loss and its terms: dead, constant, drowned by one of them, below zero, out of balance."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.columns import finite
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.known import clamp_near, untrained_near
from surefoot.doctor.nonfinite import nonfinite
from surefoot.doctor.robust import constant_since, level
from surefoot.doctor.rule import Blind, Rule, rule
from surefoot.doctor.spot import spot
from surefoot.doctor.stuck import stuck
from surefoot.doctor.trend import Course
from surefoot.journal.series import Column, Role

__all__ = ["RULES"]

_ANY_LOSS = (Role.LOSS, Role.TERM)


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
    value, since = constant_since(known.values)
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
            explains=("SF301", "SF805", "SF806", "SF808", *_without_gradient(case)),
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
    seen = snapshot or (case.from_the_start and not Course(top).fell)
    if not drowned or not seen:
        return
    yield _dominates(case, terms, order, share)


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
    improving = case.loss is not None and case.loss.values.size >= 5 and case.course(case.loss).fell
    weight = _weight_of(case, column)
    harmless = dies_at is None and (improving or case.reinforced or case.loss is None)
    harmless = harmless and not weight
    few = column.values.size <= 3
    severity = Severity.NOTE if harmless and not few else Severity.WARNING
    index = dies_at or 0
    since = f" from line {column.lines[index]} on" if dies_at else " on every line"
    return Finding(
        code="SF301",
        title=f"{column.name} is exactly 0{since}: it is switched off, or dead",
        cause=RootCause.DEAD_LOSS,
        severity=severity,
        confidence=0.75 if weight else 0.6 if dies_at else 0.2 if harmless and not few else 0.45,
        **spot(column, index),
        evidence=(
            Evidence("value", 0.0, f"{column.values.size - index} values, all exactly 0"),
            *((Evidence("weight", weight, f"its weight is {weight:g}"),) if weight else ()),
        ),
        not_this=("not a term that has been learnt: that comes close to 0, not to 0.000000",),
        remedy=(
            f"if {column.name} has a weight above 0: check that what it needs reaches it, and "
            "that no guard returns a constant in its place",
        ),
        log_next=("the weight of every term",),
    )


def _weight_of(case: Case, column: Column) -> float:
    """The weight that a term was given; 0 where the log shows none."""
    stem = re.sub(r"[^a-z]", "", _flag(column.name).removesuffix("-weight"))
    return case.setting(f"{stem}weight") or 0.0


def _without_gradient(case: Case) -> tuple[str, ...]:
    """Where the scaler found nothing to check, that is what a constant loss does to it."""
    said = case.of_kind("scaler_misuse")
    alone = all("no inf checks" in message.text.lower() for message in said)
    return ("SF204",) if said and alone else ()


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


RULES: tuple[Rule, ...] = (dead_term, constant_loss, dominating_term)
