"""Two losses that play against each other: who wins, and whether the game goes on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from surefoot.doctor.case import DISCRIMINATOR, GENERATOR, Case
from surefoot.doctor.columns import finite
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.known import clamp_near
from surefoot.doctor.robust import constant_since, level
from surefoot.doctor.rule import Blind, Rule, rule
from surefoot.doctor.spot import spot
from surefoot.journal.series import Column, Role

__all__ = ["RULES"]

_ANY_LOSS = (Role.LOSS, Role.TERM)
_CHANCE_D = 2 * np.log(2)
_CHANCE_G = np.log(2)


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
    if frozen := [c for c in pair if _frozen(c)]:
        yield _over(frozen[0])
        return
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


def _frozen(column: Column) -> bool:
    """Whether the last values are the same number, at least four of them and a quarter of all."""
    value, since = constant_since(column.values)
    rows = column.values.size - since
    return value is not None and rows >= max(4, 0.25 * column.values.size)


def _over(column: Column) -> Finding:
    value, since = constant_since(column.values)
    mark = clamp_near(float(value or 0.0))
    more = f", {mark}" if mark else ""
    return Finding(
        code="SF307",
        title=f"{column.name} is {value:g} and does not move any more: the game is over",
        cause=RootCause.PLATEAU_OR_COLLAPSE,
        severity=Severity.CRITICAL,
        confidence=0.75,
        **spot(column, since),
        evidence=(Evidence("constant", float(value or 0.0), f"{value:g} to the last digit{more}"),),
        not_this=("not balance: two players that learn make noise",),
        remedy=(
            "start over from a checkpoint before it, with lower learning rates for both",
            "R1 gradient penalty with weight 10, or spectral normalisation",
        ),
        explains=("SF301", "SF302"),
    )


def _players(case: Case) -> tuple[Column, Column] | None:
    """Discriminator and generator loss, finite and of one length."""
    columns = [finite(c) for c in case.columns if c.role in (Role.LOSS, Role.TERM)]
    judge = next((c for c in columns if DISCRIMINATOR.search(c.name)), None)
    maker = next((c for c in columns if GENERATOR.search(c.name)), None)
    if judge is None or maker is None or judge.values.size != maker.values.size:
        return None
    return (judge, maker) if judge.values.size else None


RULES: tuple[Rule, ...] = (out_of_balance,)
