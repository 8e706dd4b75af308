"""What a RefDet run is set to, and how that is written down.

The command line is read off these fields by tyro; ``config.json`` in a run folder is the same
fields again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from surefoot.errors import ConfigError
from surefoot.recipes.refdet.options import (
    DataOptions,
    EpisodeOptions,
    HardwareOptions,
    LossOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
)

__all__ = ["CONFIG_VERSION", "TrainConfig"]

CONFIG_VERSION = 1
_PLACES = {"resume", "checkpoint", "save_dir"}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Train RefDet: three photos of an object and a drone video in, a box per frame out.

    >>> config = TrainConfig(optimizer=OptimizerOptions(lr=3e-5))
    >>> TrainConfig.from_dict(config.to_dict()) == config
    True
    """

    run: RunOptions = field(default_factory=RunOptions)
    data: DataOptions = field(default_factory=DataOptions)
    episode: EpisodeOptions = field(default_factory=EpisodeOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    loss: LossOptions = field(default_factory=LossOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    hardware: HardwareOptions = field(default_factory=HardwareOptions)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, by subject."""
        return {part.name: _plain(getattr(self, part.name)) for part in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Mapping[str, Any]]) -> TrainConfig:
        """The inverse of :meth:`to_dict`; what is left out has its default.

        Raises:
            ConfigError: a subject or a setting that does not exist, or an impossible value.
        """
        kinds = get_type_hints(cls)
        parts: dict[str, Any] = {}
        for subject, given in values.items():
            if subject not in kinds:
                raise ConfigError(f"config: no subject {subject!r}; there are {sorted(kinds)}.")
            parts[subject] = _build(kinds[subject], given)
        return cls(**parts)

    def save(self, path: Path) -> None:
        """Write the settings as JSON: the whole file or nothing."""
        text = json.dumps({"version": CONFIG_VERSION, **self.to_dict()}, indent=2)
        partial = path.with_suffix(".partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> TrainConfig:
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
        if values.pop("version", None) != CONFIG_VERSION:
            raise ConfigError(f"{path}: was written by another version of surefoot; use that one.")
        return cls.from_dict(values)

    def differences(self, other: TrainConfig) -> list[str]:
        """``flag: theirs -> ours`` for every setting that is not the same in ``other``.

        Where a run comes from and where it is written are no settings of the training.
        """
        ours, theirs = self.to_dict(), other.to_dict()
        return [
            f"--{name.replace('_', '-')}: {theirs[part][name]} -> {value}"
            for part, values in ours.items()
            for name, value in values.items()
            if theirs[part][name] != value and name not in _PLACES
        ]


def _plain(options: Any) -> dict[str, Any]:
    values = {f.name: getattr(options, f.name) for f in fields(options)}
    return {name: _json(value) for name, value in values.items()}


def _json(value: Any) -> Any:
    return (
        str(value)
        if isinstance(value, Path)
        else list(value)
        if isinstance(value, tuple)
        else value
    )


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
