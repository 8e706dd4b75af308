"""What the guard says about a step: plain values, no tensors, no torch.

A :class:`StepRecord` is what travels from the guard to the journal and from there to the doctor.
It is versioned: a reader of today reads every older version.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, Self

__all__ = ["RECORD_VERSION", "Cause", "Culprit", "Event", "StepRecord", "TermRecord", "Verdict"]

RECORD_VERSION = 1


class _Sentence(Enum):
    """An enum whose members carry, beside their name in a journal, the sentence a person reads."""

    sentence: str

    def __new__(cls, value: str, sentence: str) -> Self:
        member = object.__new__(cls)
        member._value_ = value
        member.sentence = sentence
        return member

    def __str__(self) -> str:
        return self.sentence


class Verdict(_Sentence):
    """What became of a call to ``guard.step``."""

    APPLIED = "applied", "the optimizer stepped"
    REFUSED = "refused", "the step was refused; everything is as it was before it"
    ACCUMULATED = "accumulated", "the gradient was added to the window; the step comes later"


class Cause(_Sentence):
    """Why a step was refused."""

    NONE = "none", "nothing was wrong"
    NONFINITE_LOSS = "nonfinite_loss", "the loss was NaN or Inf"
    NONFINITE_GRADIENT = "nonfinite_gradient", "a gradient was NaN or Inf"
    OVERFLOW = "overflow", "gradients overflowed fp16 at this loss scale; the scale was backed off"
    STALE = "stale", "the gradient belonged to weights that have been rolled back since"
    SPIKE = "spike", "the loss or the gradient was far above that of the accepted steps"
    NORM_OVERFLOW = (
        "norm_overflow",
        "every gradient was finite, but their norm is beyond float32: an absurd gradient",
    )


class Event(_Sentence):
    """What else happened during a step, beside its verdict."""

    CLIPPED = "clipped", "the gradient was longer than the threshold and was shortened to it"
    LOSS_SPIKE = "loss_spike", "the loss was far above that of the accepted steps"
    GRADIENT_SPIKE = (
        "gradient_spike",
        "the gradient norm was far above that of the accepted steps",
    )
    ROLLED_BACK = (
        "rolled_back",
        "the state was bad, so weights, buffers and optimizer went back to the last good snapshot",
    )
    ROLLBACK_UNDONE = (
        "rollback_undone",
        "going back did not help, so the state from before it was put in again",
    )
    PARTIAL_WINDOW = (
        "partial_window",
        "the window closed with fewer micro-batches than asked; their mean was used",
    )
    SCALE_BACKED_OFF = "scale_backed_off", "the loss scale was reduced"
    SCALE_GREW = "scale_grew", "the loss scale was raised"
    SCALE_AT_FLOOR = "scale_at_floor", "the loss scale stands at its floor"
    BACKWARD_SKIPPED = "backward_skipped", "the loss was not finite, so backward was not run"
    BUFFERS_RESTORED = (
        "buffers_restored",
        "module buffers were put back to what they were before the forward pass",
    )


@dataclass(frozen=True, slots=True)
class TermRecord:
    """One term of the loss: its raw value, its weight, and the product of the two."""

    name: str
    raw: float
    weight: float

    @property
    def weighted(self) -> float:
        """What the term adds to the total."""
        return self.raw * self.weight


@dataclass(frozen=True, slots=True)
class Culprit:
    """A parameter whose gradient was bad: its name, and the norm that showed it."""

    name: str
    norm: float

    @property
    def kind(self) -> str:
        """``NaN``, ``Inf`` or ``finite``."""
        return "NaN" if math.isnan(self.norm) else "Inf" if math.isinf(self.norm) else "finite"


@dataclass(frozen=True, kw_only=True)
class StepRecord:
    """What happened in one call to ``guard.step``.

    ``grad_norm`` is the global L2 norm of the true (unscaled) gradient, before clipping, and
    ``clip_coefficient`` is what it was multiplied by (1.0: untouched). ``loss`` and the raw term
    values are means over the window's micro-batches. Values never reached are NaN.
    """

    step: int
    """Optimizer step this call belongs to, from 0; refused steps count."""
    verdict: Verdict
    cause: Cause = field(default_factory=lambda: Cause.NONE)
    loss: float = field(default_factory=lambda: math.nan)
    terms: tuple[TermRecord, ...] = field(default_factory=tuple)
    grad_norm: float = field(default_factory=lambda: math.nan)
    clip_coefficient: float = field(default_factory=lambda: 1.0)
    loss_scale: float = field(default_factory=lambda: 1.0)
    learning_rates: tuple[float, ...] = field(default_factory=tuple)
    micro_batches: int = field(default_factory=lambda: 1)
    applied_steps: int = field(default_factory=int)
    refused_steps: int = field(default_factory=int)
    culprits: tuple[Culprit, ...] = field(default_factory=tuple)
    sample_ids: tuple[str, ...] = field(default_factory=tuple)
    rank: int = field(default_factory=int)
    """Process that says so, 0 where there is only one."""
    events: tuple[Event, ...] = field(default_factory=tuple)
    version: int = field(default_factory=lambda: RECORD_VERSION)

    @property
    def applied(self) -> bool:
        """Whether the optimizer stepped."""
        return self.verdict is Verdict.APPLIED

    @property
    def refused(self) -> bool:
        """Whether the step was refused."""
        return self.verdict is Verdict.REFUSED

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, StepRecord):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        line = f"step {self.step}: {self.verdict}"
        if self.cause is not Cause.NONE:
            line += f": {self.cause}"
        if self.culprits:
            named = ", ".join(f"{c.name} ({c.kind})" for c in self.culprits[:3])
            more = len(self.culprits) - 3
            line += f" in {named}" + (f" and {more} more" if more > 0 else "")
        if Event.ROLLED_BACK in self.events or Event.ROLLBACK_UNDONE in self.events:
            line += "; " + "; ".join(str(e) for e in self.events if "rol" in e.value)
        return line

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is not finite becomes ``"nan"``, ``"inf"`` or ``"-inf"``.

        >>> record = StepRecord(step=3, verdict=Verdict.APPLIED, loss=float("inf"))
        >>> StepRecord.from_dict(record.to_dict()) == record
        True
        """
        values = {f.name: getattr(self, f.name) for f in fields(StepRecord)}
        values["terms"] = [[t.name, _plain(t.raw), _plain(t.weight)] for t in self.terms]
        values["culprits"] = [[c.name, _plain(c.norm)] for c in self.culprits]
        values["events"] = [e.value for e in self.events]
        values["verdict"], values["cause"] = self.verdict.value, self.cause.value
        for name in ("learning_rates", "sample_ids"):
            values[name] = [_plain(v) for v in values[name]]
        return {name: _plain(value) for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StepRecord:
        """The inverse of :meth:`to_dict`; unknown keys of a newer version are left out.

        Raises:
            KeyError, ValueError: ``values`` is not what :meth:`to_dict` gives.
        """
        known = {f.name for f in fields(StepRecord)}
        got = {name: value for name, value in values.items() if name in known}
        got["verdict"] = Verdict(got["verdict"])
        got["cause"] = Cause(got.get("cause", "none"))
        got["terms"] = tuple(
            TermRecord(name, float(raw), float(weight))
            for name, raw, weight in got.get("terms", ())
        )
        got["culprits"] = tuple(Culprit(n, float(v)) for n, v in got.get("culprits", ()))
        got["events"] = tuple(Event(e) for e in got.get("events", ()))
        got["learning_rates"] = tuple(float(v) for v in got.get("learning_rates", ()))
        got["sample_ids"] = tuple(got.get("sample_ids", ()))
        for name in ("loss", "grad_norm", "clip_coefficient", "loss_scale"):
            if name in got:
                got[name] = float(got[name])
        return cls(**got)


def _plain(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they travel as the strings that ``float`` reads."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value
