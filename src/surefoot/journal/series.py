"""What any log comes down to: columns of numbers over steps, and lines that say something in words.

Readers of every format fill a :class:`LoggedRun`; the doctor's rules see nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

__all__ = ["Column", "LoggedRun", "Message", "Role"]


class Role(Enum):
    """What a column means, as far as its name, its unit and its values tell."""

    LOSS = "loss"
    """The total training loss."""
    TERM = "term"
    """One term of it, raw or weighted."""
    VALIDATION_LOSS = "validation_loss"
    METRIC = "metric"
    """Accuracy, mAP, perplexity of a validation, reward: the column's ``better`` says which way."""
    GRADIENT_NORM = "gradient_norm"
    CLIP_THRESHOLD = "clip_threshold"
    LOSS_SCALE = "loss_scale"
    LEARNING_RATE = "learning_rate"
    SKIPPED = "skipped"
    """Count of skipped steps, running."""
    HOST_MEMORY = "host_memory"
    """Bytes."""
    DEVICE_MEMORY = "device_memory"
    """Bytes."""
    THROUGHPUT = "throughput"
    STEP_TIME = "step_time"
    """Seconds."""
    OTHER = "other"


@dataclass(frozen=True)
class Column:
    """One quantity over the run. All arrays have the same length N and are in the log's order."""

    name: str
    """As the log spells it."""
    role: Role
    values: np.ndarray
    """N, float64; NaN and infinities as logged."""
    steps: np.ndarray
    """N, float64: step (or epoch, see ``per``) of each value; 0, 1, 2... where the log has none."""
    lines: np.ndarray
    """N, int64: line of the file, from 1."""
    per: str = "step"
    """``step`` or ``epoch``."""
    better: str = ""
    """``higher`` or ``lower`` for a metric."""
    group: str = ""
    """``train``, ``validation``, or a name that tells columns of one kind apart (a parameter
    group, a rank)."""
    read_as: str = ""
    """Why it was taken for this, in words: shown by ``surefoot doctor --series``."""
    unit: str = ""
    """``bytes``, ``seconds``, ``per second`` or ``%``, where known; the values are in it."""
    section: str = ""
    """The heading that it stood under in the log, such as ``Gradient Norms``."""


@dataclass(frozen=True)
class Message:
    """A line in words that is evidence: an exception, a warning, an overflow, a configuration."""

    kind: str
    """``overflow``, ``exception``, ``out_of_memory``, ``worker_killed``, ``nan_warning``,
    ``scaler_misuse``, ``refused``, ``rolled_back``, ``clipped``, ``config``, ``resumed``, ...; one
    word, stable."""
    line: int
    text: str
    """The line, cut to 300 characters, control characters removed."""
    step: float = float("nan")
    values: Mapping[str, float] = field(default_factory=dict)
    """Numbers in it by name, such as ``scale``."""


@dataclass(frozen=True)
class LoggedRun:
    """One run as its log tells it; a file may hold several."""

    source: str
    """Path of the file."""
    format: str
    """Name of the reader."""
    columns: tuple[Column, ...]
    messages: tuple[Message, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    """Configuration that the log shows: ``lr``, ``dtype``, ``clip``, ``batch_size``... as text."""
    lines: int = 0
    """Lines that were read."""
    notes: tuple[str, ...] = ()
    """What the reader could not make sense of, or had to assume."""

    def of(self, role: Role) -> tuple[Column, ...]:
        """The columns of one role, in the log's order."""
        return tuple(column for column in self.columns if column.role is role)
