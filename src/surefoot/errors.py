"""Every exception surefoot raises on purpose.

    SurefootError
    ├── ConfigError          a setting, or two together, that cannot work
    ├── UsageError           calls in an order that cannot be right
    ├── DataError            the data set is not what it has to be; ``path`` says where
    ├── CheckpointError      a checkpoint cannot be written, or is damaged; ``path`` says which
    ├── JournalError         a journal cannot be read or written; ``path`` and ``line`` say where
    └── TrainingDiverged     the guard gave up; ``record`` is the step that made it

A message says what was being done, what came, what was expected and what to do about it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from surefoot.records import StepRecord

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "JournalError",
    "SurefootError",
    "TrainingDiverged",
    "UsageError",
]


class SurefootError(Exception):
    """Base of every exception surefoot raises on purpose."""


class ConfigError(SurefootError):
    """A setting, or two settings together, that cannot work."""


class UsageError(SurefootError):
    """Calls in an order, or with arguments, that cannot be right."""


class DataError(SurefootError):
    """The data set is not what it has to be."""

    def __init__(self, message: str, *, path: Path | str | None = None) -> None:
        super().__init__(message)
        self.path = path


class CheckpointError(SurefootError):
    """A checkpoint cannot be written, or is damaged."""

    def __init__(self, message: str, *, path: Path | str | None = None) -> None:
        super().__init__(message)
        self.path = path


class JournalError(SurefootError):
    """A journal cannot be written, or cannot be read."""

    def __init__(
        self, message: str, *, path: Path | str | None = None, line: int | None = None
    ) -> None:
        super().__init__(message)
        self.path = path
        self.line = line


class TrainingDiverged(SurefootError):
    """The guard gave up: too many refusals or rollbacks, or a policy that asks to stop.

    ``record`` is the step that made it; ``diagnosis`` says what came before it, a sentence each.
    """

    def __init__(
        self, message: str, *, record: StepRecord, diagnosis: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message)
        self.record = record
        self.diagnosis = diagnosis
