"""What has been read of a file so far, before anything is decided about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from surefoot.journal.foreign.grammar import Field
from surefoot.journal.foreign.messages import Messages
from surefoot.journal.foreign.template import Template

__all__ = ["Ledger", "Loose", "Points"]

MAX_NUMBERS = 2**24
"""Numbers that are held of one file, at most 256 MiB with their places; of more, every second row
is let go."""
MAX_SETTINGS = 512
_Key = tuple[str, str, str, str]


@dataclass(frozen=True, eq=False)
class Points:
    """One field of one kind of line: N places in the file, N values."""

    field: Field
    format: str
    origin: int
    """Tells kinds of lines apart."""
    places: np.ndarray
    values: np.ndarray
    steps: np.ndarray | None = None
    """The step of each value, where the file tells it with the value itself."""


@dataclass(eq=False)
class Loose:
    """Numbers that came one by one, by field: for lines that are never twice the same."""

    format: str
    values: dict[_Key, tuple[Field, list[int], list[float]]] = field(default_factory=dict)
    blocks: dict[_Key, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)

    def add(self, one: Field, place: int, value: float) -> None:
        """Take a number."""
        key = (one.name, one.what, one.side, one.section)
        found = self.values.get(key)
        if found is None:
            if len(self.values) >= 4096:
                return
            found = self.values.setdefault(key, (one, [], []))
        found[1].append(place)
        found[2].append(value)

    def extend(self, one: Field, places: Sequence[int], values: Sequence[float]) -> None:
        """Take N numbers at N places."""
        if places:
            self.add(one, places[0], values[0])
            found = self.values.get((one.name, one.what, one.side, one.section))
            if found is not None:
                found[1].extend(places[1:])
                found[2].extend(values[1:])

    def flush(self) -> int:
        """Turn what came into arrays; returns how many numbers."""
        count = 0
        for key, (_, places, values) in self.values.items():
            if places:
                block = np.array(places, np.int64), np.array(values, np.float64)
                self.blocks.setdefault(key, []).append(block)
                count += len(places)
                places.clear()
                values.clear()
        return count

    def thin(self) -> int:
        """Keep every second number, of a pair the one that is not finite."""
        count = 0
        for key, blocks in self.blocks.items():
            places, values = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
            kept = np.arange(1, len(places), 2)
            kept -= ~np.isfinite(values[kept - 1]) & np.isfinite(values[kept])
            if len(kept):
                places, values = places[kept], values[kept]
            self.blocks[key] = [(places, values)]
            count += len(values)
        return count


@dataclass(eq=False)
class Ledger:
    """All that was read of one file."""

    source: str
    templates: list[Template] = field(default_factory=list)
    loose: dict[str, Loose] = field(default_factory=dict)
    points: list[Points] = field(default_factory=list)
    messages: Messages = field(default_factory=Messages)
    settings: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """Each with its place."""
    starts: list[int] = field(default_factory=list)
    """Places where a program said that it begins to train."""
    notes: list[str] = field(default_factory=list)
    columns: bool = False
    """Whether the file names its columns by itself, so that none of them is an accident."""
    _numbers: int = 0
    _thinned: int = 0

    def loosely(self, format: str) -> Loose:
        """Where numbers of a format go that come one by one."""
        return self.loose.setdefault(format, Loose(format))

    def note(self, text: str) -> None:
        """Say once what could not be read, or what had to be assumed."""
        if text not in self.notes and len(self.notes) < 64:
            self.notes.append(text)

    def set(self, place: int, told: dict[str, str]) -> None:
        """Take settings that a line showed."""
        if told and len(self.settings) < MAX_SETTINGS:
            self.settings.append((place, told))

    def flush(self) -> None:
        """Turn what came since the last time into arrays, and let go of what is too much."""
        parts = [*self.templates, *self.loose.values()]
        self._numbers += sum(part.flush() for part in parts)
        while self._numbers > MAX_NUMBERS:
            before, self._numbers = self._numbers, sum(part.thin() for part in parts)
            self._thinned += 1
            if self._numbers >= before:
                break

    def all_points(self) -> Iterator[Points]:
        """Every field of every kind of line that has a number."""
        self.flush()
        if self._thinned:
            self.note(
                f"a very long log: of its numbers one in {2**self._thinned} was kept, and those "
                "that are not finite before others"
            )
        yield from self.points
        for origin, template in enumerate(self.templates):
            places, values = template.joined()
            if len(places):
                for i, one in enumerate(template.fields):
                    yield Points(one, template.format, origin, places, values[:, i])
        origin = len(self.templates)
        for loose in self.loose.values():
            origin += 1
            for key, blocks in loose.blocks.items():
                places, values = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
                yield Points(loose.values[key][0], loose.format, origin, places, values)
