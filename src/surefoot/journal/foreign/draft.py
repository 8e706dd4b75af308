"""A column on its way: its numbers are known, what they mean is being decided."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from surefoot.journal.foreign.dialect import Hint
from surefoot.journal.foreign.words import tokens
from surefoot.journal.series import Role

__all__ = ["Draft"]


@dataclass(eq=False)
class Draft:
    """One quantity of one run: N values at N places of the file."""

    name: str
    side: str
    section: str
    unit: str
    format: str
    origin: int
    places: np.ndarray
    values: np.ndarray
    steps: np.ndarray | None = None
    """Where the file told them with the values; else the clock does."""
    hint: Hint | None = None
    counter: bool = False
    """Whether it counts, and measures nothing."""
    role: Role = Role.OTHER
    why: str = ""
    group: str = ""
    better: str = ""

    @property
    def words(self) -> frozenset[str]:
        """The words of its name."""
        return frozenset(tokens(self.name))

    def take(self, role: Role, why: str, *, group: str = "", better: str = "") -> None:
        """Decide."""
        self.role, self.why = role, why
        self.group, self.better = group or self.group, better or self.better

    def scale(self, factor: float, unit: str) -> None:
        """Bring the values into a unit."""
        self.values = self.values * factor if factor != 1.0 else self.values
        self.unit = unit
