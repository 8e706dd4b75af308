"""Which of several losses is the whole one, and which are its terms."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from surefoot.journal.foreign.draft import Draft
from surefoot.journal.foreign.words import (
    LOSSES,
    METRICS,
    TOTAL,
    TRAIN,
    VALIDATION,
    WHOLE,
    bag,
)
from surefoot.journal.series import Role

__all__ = ["is_loss", "settle_losses"]

_NOT_LOSSES = bag(
    "scale scaler weight weights coef coefficient lambda ratio factor rate alpha best lowest "
    "minimum skipped time count std skip"
)
_WEIGHTED = frozenset({"ultralytics"})
"""Formats whose terms are printed with their weights in."""
_ERRORS = bag("mse rmse mae rmsle mlogloss")
_MANY, _ENOUGH = 8, 3
"""Columns of which each combination is tried, where the whole has enough values to tell."""
_FAR = 64
_LOOKED_AT = 512
"""Lines that the terms may stand from their sum."""


def is_loss(draft: Draft) -> bool:
    """Whether the name is that of a loss, whole or a term; the role is set for now.

    ``why`` says which of the two the name tells; :func:`settle_losses` has the last word.
    """
    words = draft.words
    lossy = {w for w in words if w in LOSSES or w.endswith(("loss", "losses"))}
    if not lossy and not {"cross", "entropy"} <= words:
        measured = words & METRICS or draft.unit in ("bytes", "seconds", "per second")
        if "loss" not in draft.section.lower() or measured:
            return False
        draft.take(Role.TERM, f"stands below the heading {draft.section!r}")
        return True
    if words & _NOT_LOSSES or draft.unit in ("bytes", "seconds", "per second"):
        draft.why = "has to do with the loss and is none"
        return True
    rest = {w for w in words - LOSSES - WHOLE - TRAIN - VALIDATION if not w.isdigit()}
    whole = not rest and bool(lossy <= LOSSES or {"cross", "entropy"} <= words)
    draft.take(
        Role.LOSS if whole else Role.TERM,
        "named like a loss" if whole else "named like one of several losses",
    )
    return True


def settle_losses(drafts: list[Draft]) -> None:
    """Leave one whole loss of the training and one of the validation, the others as their terms."""
    for where in ("", "validation"):
        ours = [d for d in drafts if d.side == where]
        wholes = [d for d in ours if d.role is Role.LOSS]
        _bare_sides(ours, drafts)
        if not any(d.role in (Role.LOSS, Role.TERM) for d in ours):
            errors = (d for d in ours if d.role is Role.METRIC and d.words & _ERRORS)
            wholes = [d for d in errors if d.hint is None][:1]
            for one in wholes:
                one.take(Role.LOSS, "an error that is minimised, where no loss is logged")
        terms = [d for d in ours if d.role is Role.TERM]
        whole = _chosen(wholes) if wholes else _made_of(terms)
        if whole is None and len(terms) == 1:
            whole = terms[0]
            whole.why = "the only loss there is"
        if whole is None and terms and all(t.format in _WEIGHTED for t in terms):
            added = _added(terms)
            drafts += [added] if added is not None else []
        elif whole is None:
            for term in terms:
                term.why += "; the log shows no total"
        else:
            _settle_whole(whole, wholes, terms, ours)
        for one in ours:
            if where and one.role is Role.LOSS:
                one.role = Role.VALIDATION_LOSS


def _bare_sides(ours: Sequence[Draft], drafts: Sequence[Draft]) -> None:
    """``Train: 0.4, Val: 0.3`` are losses, or metrics where a loss is named."""
    named = any(d.role is Role.LOSS for d in drafts)
    for one in ours:
        if (
            one.role is Role.OTHER
            and one.words
            and one.words <= TRAIN | VALIDATION
            and not one.unit
        ):
            why = "named by its side alone"
            if named:
                one.take(Role.METRIC, f"{why}, beside a loss", better="higher")
            else:
                one.take(Role.LOSS, f"{why}; taken for the loss")


def _settle_whole(
    whole: Draft, wholes: Sequence[Draft], terms: Sequence[Draft], ours: Sequence[Draft]
) -> None:
    whole.role = Role.LOSS
    for other in wholes:
        if other is not whole:
            other.take(Role.OTHER, f"another reading of the loss; {whole.name!r} is the one taken")
    parts = _adding_up(whole, [t for t in terms if t is not whole], ours)
    if parts:
        whole.why += f"; the sum of {_listed(parts)}"
        for one in parts:
            if one.role is Role.OTHER:
                one.take(Role.TERM, f"adds up to {whole.name!r} together with the others")
        return
    if whole.words & TOTAL and whole.section:
        for one in ours:
            if one.role is Role.OTHER and one.section == whole.section and not one.unit:
                one.take(Role.TERM, f"stands below {whole.name!r} under one heading")


def _adding_up(whole: Draft, terms: list[Draft], ours: Sequence[Draft]) -> list[Draft]:
    """The columns that add up to the whole: the terms, or with them others on the same lines."""
    if _sums(whole, terms):
        return terms
    more = [d for d in ours if d.role is Role.OTHER and d.origin == whole.origin and not d.unit]
    more = [d for d in more if not d.counter and not d.name.endswith("(average)")]
    more = [d for d in more if (d.values >= 0).all()]
    if len(more) > _MANY or len(whole.values) < _ENOUGH:
        return [*terms, *more] if more and _sums(whole, [*terms, *more]) else []
    for count in range(len(more), 0, -1):
        for some in combinations(more, count):
            if _sums(whole, [*terms, *some]):
                return [*terms, *some]
    return []


def _chosen(wholes: Sequence[Draft]) -> Draft:
    """Of several whole losses the one with most points, or of such the one that is the total."""
    alive = [d for d in wholes if (d.values != 0).any()] or wholes
    most = max(len(d.values) for d in alive)
    often = [d for d in alive if 2 * len(d.values) > most]
    return max(often, key=lambda d: (bool(d.words & TOTAL), "epoch" not in d.words, len(d.values)))


def _made_of(terms: Sequence[Draft]) -> Draft | None:
    """The loss that is the sum of the others."""
    if len(terms) < 3 or len(terms) > 64:
        return None
    for one in terms:
        if _sums(one, [t for t in terms if t is not one]):
            one.why = "the sum of the other losses on its lines"
            return one
    return None


def _sums(whole: Draft, parts: Sequence[Draft]) -> bool:
    """Whether the parts add up to the whole on most lines, to within what rounding leaves."""
    n = len(whole.values)
    if n == 0 or len(parts) < 2 or any(len(p.values) != n for p in parts):
        return False
    some = np.linspace(0, n - 1, min(n, _LOOKED_AT)).astype(np.int64)
    if any(np.abs(p.places[some] - whole.places[some]).max() > _FAR for p in parts):
        return False
    total = whole.values[some]
    with np.errstate(invalid="ignore", over="ignore"):
        added = np.sum([p.values[some] for p in parts], axis=0)
        off = np.abs(added - total)
        fits = off <= 2e-3 * np.abs(total) + 2e-4 * len(parts)
    telling = np.isfinite(added) & np.isfinite(total) & (np.abs(total) > 0)
    return bool(telling.any()) and bool(fits[telling].mean() >= 0.8)


def _added(terms: Sequence[Draft]) -> Draft | None:
    """The total of terms that a format prints as they enter it."""
    first = terms[0]
    if any(not np.array_equal(t.places, first.places) for t in terms):
        return None
    name = " + ".join(t.name for t in terms)
    values = np.sum([t.values for t in terms], axis=0)
    total = Draft(name, first.side, "", "", first.format, first.origin, first.places, values)
    role = Role.VALIDATION_LOSS if first.side else Role.LOSS
    total.take(
        role, "the sum of the terms, which this format prints weighted; no column of the log"
    )
    return total


def _listed(parts: Sequence[Draft]) -> str:
    names = [p.name for p in parts]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
