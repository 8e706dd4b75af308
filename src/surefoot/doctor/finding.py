"""What the doctor says: a cause, how sure it is, and the numbers that speak for it.

Plain values; every number in a finding stands in the log or is computed from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

from surefoot.faults import Sentence

__all__ = ["Evidence", "Finding", "RootCause", "Severity"]


class RootCause(Sentence):
    """What is at the bottom of it; the values are those of the JSON report."""

    LR_TOO_HIGH = "lr_too_high", "the learning rate is too high for this model and this loss"
    FP16_OVERFLOW = "fp16_overflow", "values beyond 65,504, the largest number of float16"
    LOSS_SCALE_COLLAPSE = (
        "loss_scale_collapse",
        "the loss scale was halved until nothing was left of it, and no step was taken",
    )
    BAD_DATA_OR_LABELS = "bad_data_or_labels", "some samples or labels are not what they must be"
    LOSS_TERM_DOMINATES = "loss_term_dominates", "one term of the loss drowns the others"
    EXPLODING_GRADIENTS = "exploding_gradients", "the gradients grow without bound"
    CLIP_TOO_TIGHT = "clip_too_tight", "the clip threshold is far below the gradient's usual norm"
    SCALER_MISUSE = "scaler_misuse", "the loop calls the gradient scaler in a wrong order"
    MEMORY_LEAK = "memory_leak", "the process holds on to memory that it no longer needs"
    DEAD_LOSS = "dead_loss", "a loss that the model cannot change: no gradient comes from it"
    PLATEAU_OR_COLLAPSE = "plateau_or_collapse", "the model learns nothing, or has unlearnt it"
    NUMERICALLY_UNSAFE_OP = (
        "numerically_unsafe_op",
        "a logarithm, root, division or power of a value at the edge of its domain",
    )
    SPIKE_RECOVERED = "spike_recovered", "the loss jumped and came back by itself"
    SWALLOWED_EXCEPTIONS = (
        "swallowed_exceptions",
        "errors were caught and passed over, so that no step was taken",
    )
    WRONG_DECODING_OR_TARGETS = (
        "wrong_decoding_or_targets",
        "what the model puts out and what it is compared with are not the same quantity",
    )
    SCHEDULE_ERROR = "schedule_error", "the learning rate is not what the schedule should make it"
    OVERFITTING = "overfitting", "the model learns the training set by heart"
    HEALTHY = "healthy", "nothing is wrong"
    UNKNOWN = "unknown", "the log shows that something is wrong, but not why"


class Severity(Enum):
    """How much it matters; only ``critical`` and ``warning`` make a run sick."""

    CRITICAL = "critical"
    """The run is lost from there on, or was never worth anything."""
    WARNING = "warning"
    """The run goes on and is worse for it."""
    NOTE = "note"
    """Worth knowing; nothing has to be done."""

    @property
    def weight(self) -> int:
        """0 for a note, 1 for a warning, 2 for what is critical."""
        return {"note": 0, "warning": 1, "critical": 2}[self.value]


@dataclass(frozen=True)
class Evidence:
    """One fact that a finding rests on.

    >>> print(Evidence("share", 0.93, "93 % of the total is dfl_loss"))
    93 % of the total is dfl_loss
    """

    name: str
    """Stable: ``share``, ``threshold``, ``first_value``..."""
    value: float | str
    text: str

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """The three fields; a number that JSON cannot hold is a string."""
        return {"name": self.name, "value": _plain(self.value), "text": self.text}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is, or looks, wrong in a run."""

    code: str
    """Of the rule, ``SF101``; ``surefoot rules SF101`` prints its page."""
    title: str
    """What happened, in one sentence."""
    cause: RootCause
    severity: Severity
    confidence: float
    """That ``cause`` is the cause, in [0, 1]."""
    step: float = math.nan
    """Where it begins, as the log counts; NaN where no step is known."""
    first_line: int | None = None
    """First line of the log that shows it, from 1."""
    evidence: tuple[Evidence, ...] = ()
    not_this: tuple[str, ...] = ()
    """What it looks like and is not, each with the reason."""
    remedy: tuple[str, ...] = ()
    """What to change, as settings, the most useful first."""
    log_next: tuple[str, ...] = ()
    """What would have to be in the log to be surer."""
    explains: tuple[str, ...] = ()
    """Codes of findings that are but consequences of this one."""

    @property
    def sick(self) -> bool:
        """Whether something has to be done."""
        return self.severity is not Severity.NOTE

    def to_dict(self) -> dict[str, Any]:
        """As it stands in ``surefoot doctor --json``."""
        return {
            "code": self.code,
            "title": self.title,
            "cause": self.cause.value,
            "severity": self.severity.value,
            "confidence": round(self.confidence, 3),
            "first_line": self.first_line,
            "step": _plain(self.step) if not math.isnan(self.step) else None,
            "evidence": [fact.to_dict() for fact in self.evidence],
            "not_this": list(self.not_this),
            "remedy": list(self.remedy),
            "log_next": list(self.log_next),
            "explains": list(self.explains),
        }


def _plain(value: float | str) -> float | int | str:
    if isinstance(value, str):
        return value
    if not math.isfinite(value):
        return str(float(value))
    return int(value) if value == int(value) and abs(value) < 2**53 else float(value)
