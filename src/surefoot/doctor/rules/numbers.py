"""Values that are no numbers: when they came, after what, and what they can come from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from surefoot.doctor.breaks import Break
from surefoot.doctor.case import Case
from surefoot.doctor.columns import finite
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.nonfinite import NonFinite, nonfinite, passing
from surefoot.doctor.remedies import log_next_for, remedy_for
from surefoot.doctor.rule import Rule, rule
from surefoot.doctor.spot import said_at
from surefoot.journal.series import Role

__all__ = ["RULES"]

_LARGEST_HALF = 65_504.0


@rule("SF101", "a loss that became NaN after it had left its valley")
def diverged_to_nan(case: Case) -> Iterator[Finding]:
    """The step size threw the weights so far that nothing computed from them is a number."""
    yield from _accuse(case, "SF101", RootCause.LR_TOO_HIGH)


@rule("SF102", "a NaN that one operation makes")
def unsafe_operation(case: Case) -> Iterator[Finding]:
    """A logarithm, root or division at the edge of its domain."""
    yield from _accuse(case, "SF102", RootCause.NUMERICALLY_UNSAFE_OP)


@rule("SF103", "a NaN that comes with the data")
def bad_batches(case: Case) -> Iterator[Finding]:
    """NaN for good that the data explains, or NaN on some steps with numbers after them."""
    yield from _accuse(case, "SF103", RootCause.BAD_DATA_OR_LABELS)


@rule("SF104", "a value that overflowed float16")
def half_precision(case: Case) -> Iterator[Finding]:
    """Nothing but the range of fp16 explains it."""
    yield from _accuse(case, "SF104", RootCause.FP16_OVERFLOW)


@rule("SF105", "gradients that grew until they were no numbers")
def exploded(case: Case) -> Iterator[Finding]:
    """The gradient's norm grew by orders of magnitude first."""
    yield from _accuse(case, "SF105", RootCause.EXPLODING_GRADIENTS)


@rule("SF106", "a NaN whose cause is not in the log")
def cannot_be_told(case: Case) -> Iterator[Finding]:
    """No number before it and no line around it tells the causes apart."""
    yield from _accuse(case, "SF106", RootCause.UNKNOWN)


@rule("SF107", "values that approach 65,504 and become infinite")
def at_the_edge_of_half(case: Case) -> Iterator[Finding]:
    """Activations, outputs or gradients: the last finite ones are just below float16's largest."""
    for column in case.columns:
        if column.role in (Role.LOSS_SCALE, Role.SKIPPED) or not np.isinf(column.values).any():
            continue
        known = finite(column)
        top = float(np.max(np.abs(known.values), initial=0.0))
        if not 0.25 * _LARGEST_HALF <= top <= _LARGEST_HALF:
            continue
        where = Break(column, int(np.flatnonzero(np.isinf(column.values))[0]))
        yield Finding(
            code="SF107",
            title=f"{column.name} grew to {top:,.0f} and became infinite: it left float16's range",
            cause=RootCause.FP16_OVERFLOW,
            severity=Severity.CRITICAL,
            confidence=0.9 if case.precision != "bf16" else 0.3,
            **said_at(where),
            evidence=(
                Evidence("largest", top, f"the largest finite value is {top:,.0f}"),
                Evidence("limit", _LARGEST_HALF, "the largest number of float16 is 65,504"),
            ),
            not_this=("not bad_data_or_labels: the values grow step by step before they overflow",),
            remedy=remedy_for(RootCause.FP16_OVERFLOW, case, where.line),
            explains=("SF101", "SF102", "SF103", "SF104", "SF105", "SF106"),
        )
        return


def _accuse(case: Case, code: str, cause: RootCause) -> Iterator[Finding]:
    symptom = nonfinite(case) or passing(case)
    for suspect in symptom.suspects[:3] if symptom is not None else ():
        if symptom is not None and suspect.cause is cause:
            unsure = cause is RootCause.UNKNOWN
            yield Finding(
                code=code,
                title=_title(symptom, cause),
                cause=cause,
                severity=Severity.CRITICAL if symptom.lasting else Severity.WARNING,
                confidence=suspect.confidence,
                step=symptom.where.step,
                first_line=symptom.where.line,
                evidence=(_what_broke(symptom), *suspect.evidence),
                not_this=suspect.not_this,
                remedy=remedy_for(cause, case, symptom.where.line),
                log_next=log_next_for(case) if unsure or suspect.confidence < 0.5 else (),
            )


_BECAUSE = {
    RootCause.LR_TOO_HIGH: "the steps were too large",
    RootCause.NUMERICALLY_UNSAFE_OP: "an operation at the edge of its domain",
    RootCause.BAD_DATA_OR_LABELS: "something in the data",
    RootCause.FP16_OVERFLOW: "an overflow of float16",
    RootCause.EXPLODING_GRADIENTS: "the gradients had grown without bound",
}


def _title(symptom: NonFinite, cause: RootCause) -> str:
    where = symptom.where
    stays = "and stays so" if symptom.lasting else "and is a number again after it"
    head = f"{where.column.name} becomes {where.what}{_at(where)} {stays}"
    if cause is RootCause.UNKNOWN:
        return f"{head}; this log does not tell why"
    return f"{head}: {_BECAUSE[cause]}"


def _at(where: Break) -> str:
    return f" at {where.column.per} {where.step:g}" if np.isfinite(where.step) else ""


def _what_broke(symptom: NonFinite) -> Evidence:
    where = symptom.where
    count = where.column.values.size
    text = (
        f"{where.lost} of {count} values of {where.column.name} are no numbers, the first on line"
    )
    return Evidence("not_finite", where.lost, f"{text} {where.line}")


RULES: tuple[Rule, ...] = (
    diverged_to_nan,
    unsafe_operation,
    bad_batches,
    half_precision,
    exploded,
    cannot_be_told,
    at_the_edge_of_half,
)
