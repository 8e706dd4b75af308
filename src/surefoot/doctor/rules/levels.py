"""Terms that stand where nothing has been learnt, or where something holds them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.columns import finite
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.known import clamp_near
from surefoot.doctor.robust import level
from surefoot.doctor.rule import Blind, Rule, rule
from surefoot.doctor.spot import spot
from surefoot.doctor.trend import Course
from surefoot.doctor.units import overlap_of_nothing
from surefoot.journal.series import Column, Role

__all__ = ["RULES"]

_BOX = re.compile(r"(^|[^a-z])(b?box|[gdcw]?iou|reg|loc|giou)", re.I)
_BINNED = re.compile(r"(^|[^a-z])dfl|distribution.?focal", re.I)
_ONE_STEP_PAST_E = (2.3, math.e)
_FEATURE = re.compile(r"feat|embed|anchor|positive|negative|query|support|proto|dino|cls", re.I)
_PAIRED = re.compile(r"triplet|contrast|supcon|nce|metric|margin", re.I)
_BINS = (16, 17)
_ROUND = (5.0, 10.0, 12.0, 15.0, 20.0, 50.0)


@rule("SF308", "a term that is one number on every line", Role.TERM)
def held_term(case: Case) -> Iterator[Finding | Blind]:
    """To all printed digits, while the other terms move: a clamp or a guard holds it."""
    if case.adversarial or case.reinforced:
        return
    terms = [known for c in case.terms if (known := finite(c)).values.size >= 10]
    moving = [c for c in terms if np.ptp(c.values) > 0]
    if not moving:
        yield Blind("no term moves, so that none can be told from it")
        return
    digits = max(_decimals(c.values) for c in moving)
    for column in terms:
        value = abs(float(column.values[0]))
        # With fewer than three digits a slow term may round to one number.
        if np.ptp(column.values) == 0 and value * 10.0**digits >= 1000:
            yield _held(column, value)


@rule("SF309", "a box loss that stands still while the others fall", Role.TERM)
def flat_boxes(case: Case) -> Iterator[Finding | Blind]:
    """At the level of boxes that overlap nothing: no weight and no step size changes that."""
    if case.adversarial or case.reinforced:
        return
    courses = [Course(c) for c in case.terms if finite(c).values.size >= 20]
    boxes = [c for c in courses if _BOX.search(c.column.name) and np.ptp(c.values) > 0]
    others = [c for c in courses if not _BOX.search(c.column.name)]
    if not boxes or not others:
        yield Blind("no box loss is logged beside other terms, over twenty lines")
        return
    box = boxes[0]
    usual = level(box.values)
    still = abs(box.end - box.start) < 0.04 * usual and box.sigma < 0.06 * usual
    learning = any(c.end < 0.85 * c.start for c in others)
    nothing = overlap_of_nothing(case) or _zero_metric(case)
    low, high = _ONE_STEP_PAST_E
    # The level by itself says it only over many lines, and where no score contradicts it.
    alone = low <= usual <= high and box.size >= 50 and not _scores(case)
    if still and learning and (nothing is not None or alone):
        yield _without_overlap(box, usual, nothing)


@rule("SF310", "features of very different length in one distance", Role.TERM)
def unequal_features(case: Case) -> Iterator[Finding | Blind]:
    """Two networks' features compared as they come: the longer one is all of the distance."""
    norms = [
        known
        for c in case.columns
        if c.role is Role.OTHER
        and "norm" in c.name.lower()
        and _FEATURE.search(c.name)
        and not re.search(r"grad|weight|param|batch", c.name, re.I)
        and (known := finite(c)).values.size >= 3
    ]
    paired = [c for c in case.terms if _PAIRED.search(c.name)]
    if len(norms) < 2 or not paired:
        yield Blind("norms of features and a loss between them are not both logged")
        return
    sizes = sorted(((level(np.abs(c.values)), c) for c in norms), key=lambda pair: pair[0])
    (small, one), (large, other) = sizes[0], sizes[-1]
    if small <= 0 or large < 3 * small:
        return
    yield Finding(
        code="SF310",
        title=f"features of length {large:.3g} are compared with features of length {small:.3g}",
        cause=RootCause.WRONG_DECODING_OR_TARGETS,
        severity=Severity.CRITICAL,
        confidence=0.7,
        **spot(other),
        evidence=(
            Evidence("ratio", large / small, f"a ratio of {large / small:.3g}"),
            Evidence("names", other.name, f"{other.name} and {one.name}, for {paired[0].name}"),
        ),
        not_this=("not lr_too_high, nor a matter of the margin: the lengths alone decide",),
        remedy=(
            "normalise both to length 1 before the distance, or use the cosine",
            "a trained projection of each to one width, not a slice",
        ),
        explains=("SF303", "SF805", "SF806"),
    )


@rule("SF311", "a binned box loss where an untrained model has it", Role.TERM)
def untrained_bins(case: Case) -> Iterator[Finding]:
    """Four sides of sixteen bins begin at 4 ln 16 = 11.09: large, and no explosion."""
    for column in case.terms:
        known = finite(column)
        if not _BINNED.search(column.name) or known.values.size < 3:
            continue
        first = level(known.values[:3])
        bins = min(_BINS, key=lambda count: abs(4 * math.log(count) - first))
        if abs(4 * math.log(bins) - first) > 0.09 * first:
            continue
        flat = known.values.size >= 50 and not Course(column).fell
        yield Finding(
            code="SF311",
            title=f"{column.name} begins at {first:.4g}: 4 ln {bins}, which is untrained"
            + (", and stays there" if flat else ", not exploded"),
            cause=RootCause.WRONG_DECODING_OR_TARGETS if flat else RootCause.HEALTHY,
            severity=Severity.CRITICAL if flat else Severity.NOTE,
            confidence=0.6,
            **spot(known),
            evidence=(
                Evidence(
                    "start",
                    first,
                    f"four sides of {bins} bins cost {4 * math.log(bins):.4g} untrained",
                ),
            ),
            not_this=("not exploding_gradients: every model begins there",),
            remedy=(
                "targets are distances from the anchor to the edges, in strides; a clamp below "
                "11.09 has no gradient at the start",
                "the mean over the four sides, as other codes print it, is a quarter of it",
            ),
            explains=("SF303",) if flat else (),
        )


def _decimals(values: np.ndarray) -> int:
    return next((d for d in range(7) if np.allclose(values, values.round(d), 0, 1e-9)), 6)


def _held(column: Column, value: float) -> Finding:
    clamp = clamp_near(value) or next((mark for mark in _ROUND if mark == value), None)
    rows = column.values.size
    return Finding(
        code="SF308",
        title=f"{column.name} is exactly {value:.6g} on every line: the model cannot change it",
        cause=RootCause.DEAD_LOSS,
        severity=Severity.CRITICAL,
        confidence=0.75,
        **spot(column),
        evidence=(
            Evidence("constant", value, f"{rows} values, all {value:.6g}, while others move"),
            *((Evidence("clamp", value, f"it looks like a clamp at {clamp}"),) if clamp else ()),
        ),
        not_this=(
            "not convergence: a loss that is computed from data has noise",
            "not loss_term_dominates: without a gradient its weight does not matter",
        ),
        remedy=(
            "take out the clamp, or raise it above what an untrained model has: at a clamp there "
            "is no gradient",
            "let no guard return a constant in place of NaN: let it fail, and count it",
            "check that the targets have the unit of the outputs: a loss at its clamp is far off",
        ),
        explains=("SF303",),
    )


def _without_overlap(box: Course, usual: float, nothing: Column | None) -> Finding:
    name, low = box.column.name, _ONE_STEP_PAST_E[0]
    near_e = low <= usual <= math.e
    seen = [Evidence("level", usual, f"{name} is {usual:.4g} from the first value to the last")]
    if near_e:
        seen.append(Evidence("bound", math.e, "boxes that overlap nothing have a WIoU below e"))
    if nothing is not None:
        seen.append(Evidence("metric", 0.0, f"{nothing.name} is 0 each time"))
    return Finding(
        code="SF309",
        title=f"{name} stands at {usual:.4g} while the other terms fall: no box meets its target",
        cause=RootCause.WRONG_DECODING_OR_TARGETS,
        severity=Severity.CRITICAL,
        confidence=0.8 if near_e and nothing is not None else 0.6,
        **spot(box.column),
        evidence=tuple(seen),
        not_this=(
            "not a stable loss: a loss that learns falls",
            "not loss_term_dominates, nor a learning rate: neither moves a loss without overlap",
        ),
        remedy=(
            "decode the outputs to the unit of the targets before the loss: anchor + offset x "
            "stride; softplus or exp for distances",
            "compare the ranges of predicted and target boxes on one batch",
        ),
        log_next=("the range of predicted and of target boxes, and their mean IoU",),
    )


def _scores(case: Case) -> bool:
    return any(np.max(finite(c).values, initial=0.0) > 1e-2 for c in case.metrics)


def _zero_metric(case: Case) -> Column | None:
    for column in case.metrics:
        values = finite(column).values
        if (
            values.size >= 3
            and values.max() <= 1e-3
            and re.search(r"map|iou|ap", column.name, re.I)
        ):
            return column
    return None


RULES: tuple[Rule, ...] = (held_term, flat_boxes, unequal_features, untrained_bins)
