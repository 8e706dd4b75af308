"""What a run is set to, and how that is written down.

The command line is read off the fields of a :class:`Settings` by tyro; ``config.json`` in a run
folder is the same fields again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self, get_type_hints

from surefoot.errors import ConfigError

__all__ = ["Settings", "need", "need_finite"]


def need(ok: bool, flag: str, value: object, expected: str) -> None:
    """Refuse a flag's value.

    Raises:
        ConfigError: not ``ok``.

    >>> need(3 >= 1, "--epochs", 3, "at least 1")
    """
    if not ok:
        raise ConfigError(f"{flag} {value}: has to be {expected}.")


def need_finite(flag: str, value: float, *, above: float = -math.inf) -> None:
    """Refuse a number that is not finite or not above ``above``.

    Raises:
        ConfigError: as said.

    >>> need_finite("--lr", 1e-4, above=0.0)
    """
    least = "" if above == -math.inf else f" and above {above:g}"
    need(math.isfinite(value) and value > above, flag, value, f"finite{least}")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings by subject: every field is a dataclass of plain values, paths and tuples."""

    VERSION: ClassVar[int] = 1
    PLACES: ClassVar[frozenset[str]] = frozenset({"resume", "checkpoint", "save_dir"})
    """Where a run comes from and where it is written; these are no settings of the training."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, by subject."""
        return {part.name: _plain(getattr(self, part.name)) for part in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, Any]]) -> Self:
        """The inverse of :meth:`to_dict`; what is left out has its default.

        Raises:
            ConfigError: a subject or a setting that does not exist, or an impossible value.
        """
        hints = get_type_hints(cls)
        kinds = {part.name: hints[part.name] for part in fields(cls)}
        parts: dict[str, Any] = {}
        for subject, given in values.items():
            if subject not in kinds:
                raise ConfigError(f"config: no subject {subject!r}; there are {sorted(kinds)}.")
            parts[subject] = _build(kinds[subject], given)
        return cls(**parts)

    def having(self, **parts: object) -> Self:
        """The same settings with other subjects, such as ``run``."""
        return replace(self, **parts)

    def save(self, path: Path) -> None:
        """Write the settings as JSON: the whole file or nothing."""
        text = json.dumps({"version": self.VERSION, **self.to_dict()}, indent=2)
        partial = path.with_suffix(".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what :meth:`save` wrote.

        Raises:
            ConfigError: no such file, no JSON, or settings of a newer version.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as missing:
            raise ConfigError(f"{path}: no settings there; is it a run folder?") from missing
        except ValueError as damage:
            raise ConfigError(f"{path}: is damaged ({damage}); restore it from a copy.") from damage
        if values.pop("version", None) != cls.VERSION:
            raise ConfigError(f"{path}: was written by another version of surefoot; use that one.")
        return cls.from_dict(values)

    def differences(self, other: Self) -> list[str]:
        """``flag: theirs -> ours`` for every setting that is not the same in ``other``."""
        ours, theirs = self.to_dict(), other.to_dict()
        return [
            f"--{name.replace('_', '-')}: {theirs[part][name]} -> {value}"
            for part, values in ours.items()
            for name, value in values.items()
            if theirs[part][name] != value and name not in self.PLACES
        ]


def _plain(options: Any) -> dict[str, Any]:
    return {f.name: _json(getattr(options, f.name)) for f in fields(options)}


def _json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _build(kind: type, given: Mapping[str, Any]) -> Any:
    assert is_dataclass(kind)
    hints = get_type_hints(kind)
    unknown = sorted(set(given) - set(hints))
    if unknown:
        raise ConfigError(f"config: {kind.__name__} has no settings {unknown}.")
    return kind(**{name: _typed(value, str(hints[name])) for name, value in given.items()})


def _typed(value: Any, hint: str) -> Any:
    """JSON knows neither paths nor tuples."""
    if isinstance(value, str) and "Path" in hint:
        return Path(value)
    return tuple(value) if isinstance(value, list) else value
