"""The counters of a log, and which of them counts the steps."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from surefoot.journal.foreign.ledger import Points
from surefoot.journal.foreign.words import tokens

__all__ = ["Track", "carried", "main_epochs", "main_steps"]

_INNER = frozenset({"micro", "batch", "batches", "minibatch", "mb", "microstep"})


@dataclass(frozen=True, eq=False)
class Track:
    """A counter: its value at N places, in the file's order."""

    name: str
    what: str
    places: np.ndarray
    values: np.ndarray
    total: float = float("nan")
    """What it counts up to, where the log says so."""
    valued: bool = True
    """Whether measurements stand on the same lines."""

    def falls(self) -> np.ndarray:
        """Indices i at which value i + 1 is less than value i."""
        return np.flatnonzero(np.diff(self.values) < 0)

    @property
    def whole(self) -> bool:
        """Whether all values are whole numbers."""
        return bool((self.values == np.floor(self.values)).all())

    @property
    def across(self) -> bool:
        """Whether its name says that it counts across epochs."""
        return bool({"global", "updates", "total"} & set(tokens(self.name)))

    @property
    def rank(self) -> int:
        """How likely such a counter is the one of the steps: 0 to 3."""
        if self.what == "lead":
            return 0
        return 1 if self.what == "batch" or _INNER & set(tokens(self.name)) else 2 + self.valued


def carried(track: Track, places: np.ndarray) -> np.ndarray:
    """A counter's last value at or before each place; NaN where there is none yet."""
    index = np.searchsorted(track.places, places, side="right") - 1
    return np.where(index >= 0, track.values[np.maximum(index, 0)], np.nan)


def main_epochs(points: Sequence[Points]) -> Track | None:
    """The epochs of the training, or None."""
    tracks = _tracks(points, ("epoch",))
    if not tracks:
        return None
    return _with_others(max(tracks, key=lambda t: len(t.places)), tracks)


def main_steps(points: Sequence[Points]) -> Track | None:
    """The counter of training steps, or None.

    Of those that stand beside measurements often enough, the one that counts across epochs.
    """
    tracks = [t for t in _tracks(points, ("step", "batch", "lead")) if t.whole]
    tracks = [t for t in tracks if t.what != "lead" or _counts_up(t)]
    if not tracks:
        return None
    most = max(len(t.places) * (1 + 9 * t.valued) for t in tracks)
    often = [t for t in tracks if 5 * len(t.places) * (1 + 9 * t.valued) >= most]
    best = max(often, key=lambda t: (t.rank, t.across, t.name == "iteration", len(t.places)))
    others = [t for t in tracks if t.what == best.what == "step"]
    return _with_others(best, others)


def _counts_up(track: Track) -> bool:
    return len(track.places) >= 3 and bool((np.diff(track.values) > 0).mean() > 0.9)


def _with_others(best: Track, tracks: Iterable[Track]) -> Track:
    """The counter together with those of the same kind that agree with it."""
    for other in tracks:
        if other is best:
            continue
        places = np.concatenate((best.places, other.places))
        order = np.argsort(places, kind="stable")
        values = np.concatenate((best.values, other.values))[order]
        joined = Track(best.name, best.what, places[order], values, best.total, best.valued)
        if len(joined.falls()) <= len(best.falls()):
            best = joined
    return best


def _tracks(points: Sequence[Points], kinds: tuple[str, ...]) -> list[Track]:
    """The counters of some kinds by their names, those of validations only where no other is."""
    found = defaultdict[tuple[str, str, float], list[Points]](list)
    measured = {p.origin for p in points if p.field.what == "value"}
    totals = {(p.origin, p.field.name, len(p.places)): p for p in points if p.field.what == "total"}
    counters = [p for p in points if p.field.what in kinds and len(p.places)]
    training = [p for p in counters if not p.field.side]
    for one in training or counters:
        total = totals.get((one.origin, one.field.name, len(one.places)))
        upto = float(np.median(total.values)) if total is not None else float("nan")
        unnamed = upto if not one.field.name and upto == upto else -1.0
        found[one.field.what, one.field.name.lower(), unnamed].append(one)
    tracks = list[Track]()
    for (what, name, _), parts in found.items():
        places = np.concatenate([p.places for p in parts])
        values = np.concatenate([p.values for p in parts])
        order = np.argsort(places, kind="stable")
        kept = np.isfinite(values[order])
        upto = [
            totals[k].values
            for p in parts
            if (k := (p.origin, p.field.name, len(p.places))) in totals
        ]
        total = float(np.median(np.concatenate(upto))) if upto else float("nan")
        valued = any(p.origin in measured for p in parts)
        if kept.any():
            tracks.append(
                Track(name, what, places[order][kept], values[order][kept], total, valued)
            )
    return tracks
