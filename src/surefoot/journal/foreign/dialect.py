"""What a format has to say beyond the common grammar of lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from surefoot.journal.foreign.grammar import Reading, read_line
from surefoot.journal.series import Role

__all__ = ["Dialect", "Hint"]


@dataclass(frozen=True, kw_only=True)
class Hint:
    """What a name means in one format."""

    role: Role
    why: str
    """In words, for ``read_as``."""
    factor: float = 1.0
    """What the number is multiplied by where it stands without a unit."""
    unit: str = ""
    group: str = ""
    better: str = ""
    running: bool = False
    """Whether the number counts since the line before, so that its sum is the running count."""


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """A format of lines."""

    name: str
    sign: re.Pattern[str]
    """Finds its lines, and no others; JSON lines and heads of tables included."""
    hints: Mapping[str, Hint] = field(default_factory=dict)
    """By name in lower case."""
    rest: Hint | None = None
    """What every other name means."""
    hint: Callable[[str], Hint | None] | None = None
    """What a name means that is in no list, in lower case; asked before ``rest``."""
    read: Callable[[str], Reading | None] = read_line
    """Numbers and names of a line, or None where it holds nothing to read."""
