"""Weighing what could have caused a symptom: every clue speaks for some causes, against others.

A clue's weights are natural logarithms of how much likelier it is seen under a cause than on the
whole: 0.7 doubles the odds, -1.6 leaves a fifth of them. They come from what each cause does to
numbers, not from any set of logs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from surefoot.doctor.finding import Evidence, RootCause

__all__ = ["Clue", "Suspect", "weigh"]

_TELLING = 0.25
"""Weight from which a clue counts as evidence."""
_EXCLUDING = -1.0
"""Weight from which a clue is a reason why it is not that cause."""


@dataclass(frozen=True)
class Clue:
    """A fact, and for which causes it speaks."""

    fact: Evidence
    weights: Mapping[RootCause, float]


@dataclass(frozen=True)
class Suspect:
    """A cause, how likely it is, and the facts for it and against the others."""

    cause: RootCause
    confidence: float
    evidence: tuple[Evidence, ...]
    not_this: tuple[str, ...]


def weigh(
    priors: Mapping[RootCause, float], clues: Sequence[Clue], *, least: float = 0.1
) -> list[Suspect]:
    """The causes that ``clues`` leave standing, the likeliest first.

    Args:
        priors: logarithms of the odds before any clue; a cause that is not in it is no candidate.
        clues: what the log shows.
        least: confidence below which a cause is dropped.

    >>> fact = Evidence("rising", 1.3, "the loss rose by 30 %")
    >>> lr, unknown = RootCause.LR_TOO_HIGH, RootCause.UNKNOWN
    >>> [s.cause.value for s in weigh({lr: 0.0, unknown: 0.5}, [Clue(fact, {lr: 1.5})])]
    ['lr_too_high', 'unknown']
    """
    odds = {
        cause: math.exp(prior + sum(clue.weights.get(cause, 0.0) for clue in clues))
        for cause, prior in priors.items()
    }
    total = sum(odds.values())
    excluded = _excluded(priors, clues)
    suspects = [
        Suspect(
            cause,
            odds[cause] / total,
            # What is told by every fact is told of no cause: then all of them are shown.
            tuple(c.fact for c in clues if c.weights.get(cause, 0.0) >= _TELLING)
            or tuple(clue.fact for clue in clues),
            tuple(text for other, text in excluded if other is not cause),
        )
        for cause in priors
    ]
    suspects.sort(key=lambda suspect: -suspect.confidence)
    return [suspect for suspect in suspects if suspect.confidence >= least]


def _excluded(
    priors: Mapping[RootCause, float], clues: Sequence[Clue]
) -> list[tuple[RootCause, str]]:
    found: list[tuple[RootCause, str]] = []
    for cause in priors:
        if cause is RootCause.UNKNOWN:
            continue
        against = min(clues, key=lambda clue: clue.weights.get(cause, 0.0), default=None)
        if against is not None and against.weights.get(cause, 0.0) <= _EXCLUDING:
            found.append((cause, f"not {cause.value}: {against.fact.text}"))
    return found
