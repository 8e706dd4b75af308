"""From what was read to runs: columns put together, steps and roles decided."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from surefoot.journal.foreign.clock import Clock, clock_of
from surefoot.journal.foreign.dialects.known import hint_for
from surefoot.journal.foreign.draft import Draft
from surefoot.journal.foreign.ledger import Ledger, Points
from surefoot.journal.foreign.ranks import equal_ranks
from surefoot.journal.foreign.roles import settle
from surefoot.journal.series import Column, LoggedRun, Message, Role

__all__ = ["runs_of"]

MAX_COLUMNS = 2_048
MAX_COMPARED = 32
"""Kinds of lines with one name that are compared; the many rare ones beyond are just joined."""
_SAID = -1
_LineOf = Callable[[np.ndarray], np.ndarray]


def runs_of(ledger: Ledger, line_of: _LineOf, lines: int) -> list[LoggedRun]:
    """The runs of a file.

    Args:
        ledger: what was read of it.
        line_of: gives the lines of the file for places.
        lines: how many lines were read.
    """
    points = list(ledger.all_points())
    messages = ledger.messages.kept()
    resumes = [place for place, m in messages if m.kind == "resumed"]
    clock = clock_of(points, ledger.starts, resumes)
    for kind, count in ledger.messages.counts.items():
        if count > sum(m.kind == kind for _, m in messages):
            ledger.note(f"{count:,} messages of the kind {kind}; the first and the last were kept")
    ends = [*clock.begins[1:], np.iinfo(np.int64).max]
    runs = list[LoggedRun]()
    for begin, end in zip(clock.begins, ends, strict=True):
        said = [(place, m) for place, m in messages if begin <= place < end]
        run = _Run(ledger, clock, begin, int(end), line_of)
        runs.append(replace(run.build(points, said), lines=lines))
    return runs


class _Run:
    """One run of a file, from one place to another."""

    def __init__(
        self, ledger: Ledger, clock: Clock, begin: int, end: int, line_of: _LineOf
    ) -> None:
        self.ledger, self.clock, self.line_of = ledger, clock, line_of
        self.begin, self.end = begin, end

    def build(self, points: Sequence[Points], said: Sequence[tuple[int, Message]]) -> LoggedRun:
        drafts = self._drafts([p for p in map(self._cut, points) if len(p.places)])
        drafts += self._scales(said)
        settle(drafts, frozenset(m.kind for _, m in said))
        drafts += self._ranks(points)
        drafts = _one_scale(drafts)
        drafts = drafts if self.ledger.columns else _without_noise(drafts)
        notes = [*self.ledger.notes, *self.clock.notes]
        if not drafts:
            notes.append("nothing was found that looks like a measurement of a training")
        formats = Counter[str]()
        for draft in drafts:
            formats[draft.format] += len(draft.values) + 1
        return LoggedRun(
            source=self.ledger.source,
            format=formats.most_common(1)[0][0] if formats else "text",
            columns=tuple(self._column(d) for d in drafts[:MAX_COLUMNS]),
            messages=tuple(self._messages(said)),
            settings=self._settings(drafts),
            notes=tuple(dict.fromkeys(notes)),
        )

    def _cut(self, one: Points) -> Points:
        low, high = np.searchsorted(one.places, (self.begin, self.end))
        steps = None if one.steps is None else one.steps[low:high]
        return replace(one, places=one.places[low:high], values=one.values[low:high], steps=steps)

    def _drafts(self, points: Sequence[Points]) -> list[Draft]:
        """One draft for each quantity, of all the kinds of lines that tell it."""
        found = defaultdict[tuple[str, str, str, str], list[Points]](list)
        counted = {p.origin for p in points if p.field.what in ("epoch", "step", "batch", "lead")}
        for one in points:
            if one.field.what == "value":
                field = one.field
                found[field.name, field.side, field.section, field.unit.kind].append(one)
        drafts = list[Draft]()
        for parts in found.values():
            drafts += self._joined(parts, counted)
        epochs = [p for p in points if p.field.what == "epoch" and not p.field.side]
        if self.clock.per == "step" and epochs and self.clock.epochs is not None:
            drafts.append(_draft(epochs, "epoch"))
        drafts.sort(key=lambda d: (d.places[0], d.origin))
        return drafts

    def _joined(self, parts: list[Points], counted: set[int]) -> list[Draft]:
        """The kinds of lines that tell one quantity; those that disagree become two."""
        parts = _in_one_line(parts)
        parts.sort(key=lambda p: -len(p.places))
        lone = [p for p in parts if len(p.places) == 1 and p.origin not in counted]
        if len(lone) < len(parts) and any(p.origin in counted for p in parts):
            parts = [
                p for p in parts if p not in lone
            ]  # printed once before the training: a setting
        kinds = [[parts[0]]]
        kinds[0] += parts[MAX_COMPARED:]
        for one in parts[1:MAX_COMPARED]:
            for kept in kinds:
                rest = self._new_in(kept, one)
                if rest is not None:
                    kept.append(rest)
                    break
            else:
                if len(kinds) < 16:
                    kinds.append([one])
        drafts = sorted((_draft(kept) for kept in kinds), key=lambda d: d.places[0])
        for i, draft in enumerate(drafts[1:]):
            draft.name = f"{draft.name} ({i + 2})"
        return drafts

    def _new_in(self, kept: Sequence[Points], one: Points) -> Points | None:
        """What a kind of line adds to others, or None where it contradicts them.

        Two kinds that tell a quantity at the same step tell the same number or are two quantities
        of one name.
        """
        if not len(self.clock.places):
            return one
        mine, _ = self.clock.at(one.places, self.begin, self.end)
        fresh = np.ones(len(mine), bool)
        for other in kept:
            theirs, _ = self.clock.at(other.places, self.begin, self.end)
            shared, i, j = np.intersect1d(mine, theirs, return_indices=True)
            if not len(shared):
                continue
            same = np.isclose(one.values[i], other.values[j], 2e-3, 1e-4, equal_nan=True)
            if 2 * len(shared) >= len(np.unique(mine)) and same.mean() < 0.9:
                return None
            fresh &= ~np.isin(mine, theirs)
        return replace(one, places=one.places[fresh], values=one.values[fresh])

    def _ranks(self, points: Sequence[Points]) -> list[Draft]:
        """How far the losses of several processes are apart, where lines name theirs."""
        ranked = {i for i, t in enumerate(self.ledger.templates) if t.ranked}
        if not ranked:
            return []
        cut = [p for p in map(self._cut, points) if len(p.places)]
        return equal_ranks(cut, ranked, lambda at: self.clock.at(at, self.begin, self.end)[0])

    def _scales(self, said: Sequence[tuple[int, Message]]) -> list[Draft]:
        """The loss scale as the overflow messages tell it."""
        told = [(place, m.values["scale"]) for place, m in said if "scale" in m.values]
        if not told:
            return []
        places, values = np.array([p for p, _ in told], np.int64), np.array([v for _, v in told])
        return [Draft("loss scale", "", "", "", "text", _SAID, places, values)]

    def _column(self, draft: Draft) -> Column:
        steps = draft.steps
        if steps is None:
            steps, _ = self.clock.at(draft.places, self.begin, self.end)
        per = self.clock.per
        if len(steps) > 1 and draft.places[0] == draft.places[-1]:
            steps, per = np.arange(len(steps), dtype=np.float64), "step"  # several on one line
        lines = self.line_of(draft.places).astype(np.int64)
        again = np.zeros(len(lines), bool)
        again[:-1] = (np.diff(lines) == 0) & (np.diff(steps) == 0)  # a bar that wrote over itself
        return Column(
            name=draft.name,
            role=draft.role,
            values=np.ascontiguousarray(draft.values[~again], np.float64),
            steps=np.ascontiguousarray(steps[~again], np.float64),
            lines=lines[~again],
            per=per,
            better=draft.better,
            group=draft.group,
            read_as=draft.why,
            unit=draft.unit,
            section=draft.section,
        )

    def _messages(self, said: Sequence[tuple[int, Message]]) -> list[Message]:
        places = np.array([place for place, _ in said], np.int64)
        back = [r for r in self.clock.resumed if self.begin <= r < self.end]
        lines = self.line_of(places)
        low, high = np.searchsorted(self.clock.places, (self.begin, self.end))
        steps = np.full(len(places), np.nan)
        if low < high:
            index = np.searchsorted(self.clock.places[low:high], places, side="right") - 1
            steps = np.where(index >= 0, self.clock.steps[low:high][np.maximum(index, 0)], np.nan)
        found = [
            replace(m, line=int(line), step=float(step))
            for (_, m), line, step in zip(said, lines, steps, strict=True)
        ]
        for place in back[:64]:
            line = int(self.line_of(np.array([place]))[0])
            found.append(Message("resumed", line, "the step count goes back here"))
        return sorted(found, key=lambda m: m.line)

    def _settings(self, drafts: Sequence[Draft]) -> dict[str, str]:
        """What the log shows of the settings; lines of a series are none."""
        told = dict[str, str]()
        series = [d.places for d in drafts if len(d.places) > 1]
        for place, settings in self.ledger.settings:
            if place < self.end and not any(place in places for places in series):
                told |= settings
        if self.clock.total == self.clock.total:
            told.setdefault(
                "steps" if self.clock.per == "step" else "epochs", f"{self.clock.total:g}"
            )
        return told


def _in_one_line(parts: Sequence[Points]) -> list[Points]:
    """Of notes with arrows, join the numbers of one name on one line, in their order."""
    joined = dict[int, Points]()
    others = list[Points]()
    for one in parts:
        if one.format != "arrows":
            others.append(one)
            continue
        before = joined.get(one.origin)
        if before is not None:
            places = np.concatenate((before.places, one.places))
            order = np.argsort(places, kind="stable")
            values = np.concatenate((before.values, one.values))[order]
            one = replace(before, places=places[order], values=values)
        joined[one.origin] = one
    return [*others, *joined.values()]


def _draft(parts: Sequence[Points], name: str = "") -> Draft:
    places = np.concatenate([p.places for p in parts])
    values = np.concatenate([p.values for p in parts])
    if len(parts) > 1:
        order = np.argsort(places, kind="stable")
        places, values = places[order], values[order]
    first = max(parts, key=lambda p: len(p.places))
    field = first.field
    hint = hint_for(first.format, field.name) if field.what == "value" else None
    steps = first.steps if len(parts) == 1 else None
    draft = Draft(
        name or field.name,
        field.side,
        field.section,
        field.unit.kind,
        first.format,
        first.origin,
        places,
        values,
        steps,
        hint,
    )
    if field.what == "epoch":
        draft.why, draft.counter = "the epoch, beside the step", True
    return draft


def _one_scale(drafts: list[Draft]) -> list[Draft]:
    """Put the loss scale of the messages into the column that tells it too."""
    scales = [d for d in drafts if d.role is Role.LOSS_SCALE]
    spoken = next((d for d in scales if d.origin == _SAID), None)
    column = max((d for d in scales if d is not spoken), key=lambda d: len(d.values), default=None)
    if spoken is None or column is None:
        return drafts
    fresh = ~np.isin(spoken.places, column.places)
    places = np.concatenate((column.places, spoken.places[fresh]))
    order = np.argsort(places, kind="stable")
    column.places = places[order]
    column.values = np.concatenate((column.values, spoken.values[fresh]))[order]
    column.why += "; with those that the overflow messages tell" if fresh.any() else ""
    return [d for d in drafts if d is not spoken]


def _without_noise(drafts: list[Draft]) -> list[Draft]:
    """Leave out what a text printed once and means nothing, where there is more."""
    most = max((len(d.values) for d in drafts), default=0)
    if most < 4:
        return drafts
    return [d for d in drafts if d.role is not Role.OTHER or len(d.values) > 1]
