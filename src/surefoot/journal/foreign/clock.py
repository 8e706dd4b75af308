"""Which step a line belongs to, and where one run ends and the next begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from surefoot.journal.foreign.ledger import Points
from surefoot.journal.foreign.tracks import Track, carried, main_epochs, main_steps

__all__ = ["Clock", "clock_of"]

MANY_FALLS = 64
"""A count that goes back more often, and at more than one in a hundred values, counts no steps."""


@dataclass
class Clock:
    """Steps at M places in the file, and the places where a run begins."""

    places: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    steps: np.ndarray = field(default_factory=lambda: np.empty(0))
    per: str = "step"
    begins: list[int] = field(default_factory=lambda: [0])
    resumed: list[int] = field(default_factory=list)
    """Places where the count went back to an earlier step of the same run."""
    total: float = float("nan")
    """Steps that were planned, where the log says so."""
    epochs: Track | None = None
    notes: list[str] = field(default_factory=list)

    def at(self, places: np.ndarray, begin: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Of places in the run from ``begin`` to ``end``: their steps, and which count each had.

        Places before the run's first count have the first one.
        """
        low, high = np.searchsorted(self.places, (begin, end))
        if low == high:
            return np.arange(len(places), dtype=np.float64), np.full(len(places), -1)
        ours = self.places[low:high]
        index = np.maximum(np.searchsorted(ours, places, side="right") - 1, 0)
        return self.steps[low:high][index], index


def clock_of(points: Sequence[Points], starts: Sequence[int], resumes: Sequence[int]) -> Clock:
    """The clock of a file.

    Args:
        points: everything that was read.
        starts: places where a program said that it begins to train.
        resumes: places where it said that it goes on.
    """
    epochs = main_epochs(points)
    steps = main_steps(points)
    if steps is not None:
        clock = _from_steps(steps, epochs)
    elif epochs is not None:
        clock = Clock(epochs.places, epochs.values, "epoch", total=epochs.total)
    else:
        clock = Clock()
        clock.notes.append("no step or epoch was found; values are counted in their order")
        clock.begins += [s for s in starts if _between(points, s)]
        return clock
    clock.epochs = epochs
    _split(clock, starts, resumes)
    return clock


def _from_steps(steps: Track, epochs: Track | None) -> Clock:
    values, falls = steps.values, steps.falls()
    clock = Clock(steps.places, values, total=steps.total)
    if epochs is not None and not steps.across:
        epoch = np.floor(carried(epochs, steps.places))
        turns = np.flatnonzero(np.diff(epoch) > 0)
        inner = len(turns) > 0 and bool((values[turns + 1] <= values[turns]).mean() >= 0.5)
        same = bool((epoch == epoch[0]).all()) and epochs.whole
        if inner or (steps.what == "batch" and not len(turns) and same):
            length = steps.total if steps.total == steps.total else _length(values)
            base = 0.0 if (epoch == 0).any() else 1.0
            clock.steps = np.where(np.isnan(epoch), 0, epoch - base) * length + values
            clock.total = epochs.total * length
            clock.notes.append(
                f"steps are counted anew in each epoch; {length:g} of them were taken for one"
            )
    elif len(falls) and steps.what == "batch" and steps.total == steps.total:
        reached = values[falls] >= 0.98 * steps.total - 1
        if reached.mean() > 0.5:
            laps = np.zeros(len(values))
            laps[falls[reached] + 1] = 1
            clock.steps = np.cumsum(laps) * steps.total + values
            clock.total = float("nan")
            clock.notes.append("each bar that began again at its end was taken for an epoch")
    return clock


def _length(values: np.ndarray) -> float:
    gaps = np.diff(values)
    gap = float(np.median(gaps[gaps > 0])) if (gaps > 0).any() else 1.0
    return float(values.max() + (gap if values.min() == 0 else 0))


def _split(clock: Clock, starts: Sequence[int], resumes: Sequence[int]) -> None:
    """Find where the count goes back: a new run where it begins again, else a resumed one."""
    track = Track("", "step", clock.places, clock.steps)
    falls = track.falls()
    gaps = np.diff(track.values)
    gap = float(np.median(gaps[gaps > 0])) if (gaps > 0).any() else 0.0
    drops = track.values[falls] - track.values[falls + 1]
    falls = falls[drops > 2 * gap] if len(falls) > 4 else falls
    if len(falls) > max(MANY_FALLS, 0.01 * len(track.values)):
        clock.places, clock.steps = clock.places[:0], clock.steps[:0]
        clock.notes.append("the step numbers go back and forth; values are counted in their order")
        return
    first = float(track.values[0]) if len(track.values) else 0.0
    marks, told = np.array(sorted(starts)), np.array(sorted(resumes))
    for fall in falls:
        before, after = int(track.places[fall]), int(track.places[fall + 1])
        value = float(track.values[fall + 1])
        started = marks[(marks > before) & (marks <= after)]
        went_on = ((told > before) & (told <= after)).any()
        if not went_on and (value <= first or len(started)):
            clock.begins.append(int(started[0]) if len(started) else after)
            first = value
        elif not went_on:
            clock.resumed.append(after)


def _between(points: Sequence[Points], place: int) -> bool:
    """Whether measurements stand before and behind a place."""
    values = [p for p in points if p.field.what == "value" and len(p.places)]
    return any(p.places[0] < place for p in values) and any(p.places[-1] > place for p in values)
