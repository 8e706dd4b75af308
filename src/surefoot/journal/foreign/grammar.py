"""How a line that nobody foresaw is read: every number in it, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass

from surefoot.journal.foreign.field import COUNTERS, Field, counter_of
from surefoot.journal.foreign.masks import blanked, masks, payload_of
from surefoot.journal.foreign.scan import scan

__all__ = ["COUNTERS", "Field", "Reading", "counter_of", "read_line"]


@dataclass(frozen=True)
class Reading:
    """A line and what was found in it."""

    text: str
    fields: tuple[Field, ...]
    masked: tuple[tuple[int, int, str], ...] = ()
    """Stretches whose digits are no measurements, as :func:`masks` gives them."""

    @property
    def values(self) -> tuple[Field, ...]:
        """The fields that are measurements."""
        return tuple(f for f in self.fields if f.what == "value")


def read_line(text: str) -> Reading:
    """Find the numbers of a line and their names.

    >>> [(f.name, f.what) for f in read_line("Epoch 3 [10/50] loss: 0.5 (0.6) lr 1e-4").fields]
    ... # doctest: +NORMALIZE_WHITESPACE
    [('Epoch', 'epoch'), ('', 'batch'), ('', 'total'), ('loss', 'value'),
     ('loss (average)', 'value'), ('lr', 'value')]
    """
    spans = masks(text)
    return Reading(text, scan(blanked(text, spans), payload_of(text)), tuple(spans))
