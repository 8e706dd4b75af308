"""Processes that print one loss each: whether they always print the same."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence

import numpy as np

from surefoot.journal.foreign.draft import Draft
from surefoot.journal.foreign.ledger import Points
from surefoot.journal.foreign.words import LOSSES, tokens

__all__ = ["OTHER_RANK", "equal_ranks", "names_a_rank"]

OTHER_RANK = "other rank"
"""Group of the column that says how far the losses of ranks are apart."""
_RANK = re.compile(r"(?i)\b(?:rank|replica|proc(?:ess)?)[ =:_]?\d+")
_FEWEST = 8


def names_a_rank(text: str) -> bool:
    """Whether a line says which process it is of.

    >>> names_a_rank("[rank1] epoch 3 loss 0.5"), names_a_rank("step 3: loss 0.5")
    (True, False)
    """
    return _RANK.search(text) is not None


def equal_ranks(
    points: Sequence[Points],
    ranked: Collection[int],
    steps_of: Callable[[np.ndarray], np.ndarray],
) -> list[Draft]:
    """A column of how far the losses at one step are apart, where lines name their rank.

    Args:
        points: everything that was read of a run.
        ranked: origins of the kinds of lines that name a rank.
        steps_of: the steps at places.
    """
    found = defaultdict[str, list[Points]](list)
    for one in points:
        lossy = set(tokens(one.field.name)) & LOSSES or one.field.name.lower().endswith("loss")
        if one.origin in ranked and one.field.what == "value" and lossy:
            found[one.field.name].append(one)
    for name, parts in found.items():
        places = np.concatenate([p.places for p in parts])
        values = np.concatenate([p.values for p in parts])
        steps = steps_of(places)
        order = np.lexsort((places, steps))
        places, values, steps = places[order], values[order], steps[order]
        same_step = np.flatnonzero(np.diff(steps) == 0)
        if len(same_step) < _FEWEST:
            continue
        apart = np.abs(values[same_step + 1] - values[same_step])
        draft = Draft(
            f"{name} apart", "", "", "", "text", parts[0].origin, places[same_step + 1], apart
        )
        draft.group = OTHER_RANK
        draft.why = "how far the losses of two ranks are apart at a step; no column of the log"
        return [draft]
    return []
