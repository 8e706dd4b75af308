"""From what was measured to what is said: functions on plain numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import compress

import torch
from torch import Tensor

from surefoot.guard.blame import culprits
from surefoot.guard.policy import Policy
from surefoot.records import Cause, Culprit, Event, StepRecord, TermRecord, Verdict

__all__ = ["Facts", "Tally", "landed", "learning_rates", "reason_to_stop", "record_of"]


_RATE_JUMP = 10.0
_NOT_THE_GRADIENTS = (Cause.NONE, Cause.NONFINITE_LOSS, Cause.SPIKE, Cause.STALE, Cause.NO_GRADIENT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything known of one optimizer step once it has reached the host."""

    step: int
    loss: float = math.nan
    raw_terms: Sequence[float] = ()
    term_names: Sequence[str] = ()
    term_weights: Sequence[float] = ()
    learning_rates: tuple[float, ...] = ()
    micro_batches: int = 1
    accumulate: int = 1
    sample_ids: tuple[str, ...] = ()
    scale: float = 1.0
    next_scale: float = 1.0
    scale_floor: float | None = None
    """None: no loss scale."""
    total_norm: float = math.nan
    """Norm of the gradients as they lay in memory; NaN where backward was not run."""
    unit: float = 1.0
    """How many times larger than the true gradient that is: scale x micro-batches / accumulate."""
    clip_divisor: float = 1.0
    norms: Sequence[float] = ()
    names: Sequence[str] = ()
    backward_skipped: bool = False
    buffers_moved: bool = False
    outlying: bool = False
    """The batch is applied, but left out of the running statistics."""
    mended: tuple[str, ...] = ()
    """Buffers that were bad before the forward pass, which no judged step has done."""
    rank: int = 0
    loss_votes: bool = True
    """Whether a bad loss alone refuses. Not where ranks train together: each sees its own loss, but
    all see the same gradient, and they have to decide alike."""
    rate_jumped: bool = False
    gradients_kept: bool = False
    gradients_touched: bool = False
    loss_spike: bool = False
    gradient_spike: bool = False
    loss_away: bool = False
    gradient_away: bool = False
    """After a spike: not back yet, see :class:`~surefoot.guard.spike.Spikes`."""
    usual_norm: float = math.inf
    """What a spike's gradient is shortened to."""
    spike_refused: bool = False
    stale: bool = False
    unreached: bool = False
    """The loss depends on no parameter, though those of the steps before did."""
    silent: tuple[str, ...] = ()
    """Parameters that have had no gradient for many steps; told once."""
    zero_rate: bool = False
    elements_finite: bool = False
    """A look at the elements found every one finite (only where the host decides)."""

    @property
    def good(self) -> bool:
        """Whether the step is applied."""
        return self.finite and not (self.spike_refused or self.stale)

    @property
    def finite(self) -> bool:
        """NaN compares false and so lands on the refusing side."""
        return self.total_norm < math.inf and (math.isfinite(self.loss) or not self.loss_votes)

    @property
    def far_off(self) -> tuple[bool, bool]:
        """Whether the run seems to leave its valley, and whether it would still be out of it.

        Of a loss that nobody told, that has no logarithm or that each rank sees for itself, the
        gradient has to say so.
        """
        if self.loss_votes and self.loss > 0.0:
            return self.loss_spike, self.loss_away
        return self.gradient_spike, self.gradient_away


@dataclass(slots=True)
class Tally:
    """Counts over the run."""

    step: int = 0
    """Optimizer steps closed so far, refused ones too."""
    applied: int = 0
    refused: int = 0
    consecutive: int = 0
    """Refusals since the last applied step."""
    highest_rate: float = 0.0
    """Largest learning rate of the run so far."""

    def count(self, *, good: bool) -> None:
        """One more verdict is known."""
        if good:
            self.applied, self.consecutive = self.applied + 1, 0
        else:
            self.refused, self.consecutive = self.refused + 1, self.consecutive + 1

    def rate_vanished(self, rates: Sequence[float]) -> bool:
        """Whether every rate is 0 and was not always: a warm-up's first step does not count."""
        return self.highest_rate > 0.0 and not any(rates)

    def rate_jumps(self, rates: Sequence[float], warmup: int) -> bool:
        """Whether a rate is ten times what it ever was; a warm-up's first steps do not count."""
        rate = max((r for r in rates if math.isfinite(r)), default=0.0)
        before, self.highest_rate = self.highest_rate, max(self.highest_rate, rate)
        return self.applied >= warmup and rate > _RATE_JUMP * before > 0.0


def landed(facts: Facts, values: Sequence[float]) -> Facts:
    """The facts once the device's values are there."""
    loss, total, clip_divisor, scale, next_scale, unit, *spikes = values[:12]
    split = 12 + len(facts.term_names)
    end = split + len(facts.names)
    return replace(
        facts,
        loss=loss,
        total_norm=total,
        clip_divisor=clip_divisor,
        loss_spike=spikes[0] > 0,
        gradient_spike=spikes[1] > 0,
        spike_refused=spikes[2] > 0,
        loss_away=spikes[3] > 0,
        gradient_away=spikes[4] > 0,
        outlying=spikes[5] > 0,
        scale=scale,
        next_scale=next_scale,
        unit=unit,
        raw_terms=values[12:split],
        norms=values[split:end],
        mended=tuple(compress(facts.mended, values[end:])),
    )


def record_of(facts: Facts, tally: Tally) -> StepRecord:
    """The record of a step that was just counted."""
    cause = _cause(facts)
    gradients_bad = cause not in _NOT_THE_GRADIENTS
    terms = zip(facts.term_names, facts.raw_terms, facts.term_weights, strict=True)
    return StepRecord(
        step=facts.step,
        verdict=Verdict.APPLIED if facts.good else Verdict.REFUSED,
        cause=cause,
        loss=facts.loss,
        terms=tuple(TermRecord(name, raw, weight) for name, raw, weight in terms),
        grad_norm=facts.total_norm / facts.unit,
        clip_coefficient=1.0 / facts.clip_divisor if facts.good else 1.0,
        loss_scale=facts.scale,
        learning_rates=facts.learning_rates,
        micro_batches=facts.micro_batches,
        applied_steps=tally.applied,
        refused_steps=tally.refused,
        culprits=(
            *(culprits(facts.names, facts.norms) if gradients_bad and facts.norms else ()),
            *(Culprit(name, math.nan) for name in facts.mended[:16]),
            *(Culprit(name, 0.0) for name in facts.silent[:16]),
        ),
        sample_ids=facts.sample_ids,
        rank=facts.rank,
        events=_events(facts),
    )


def reason_to_stop(record: StepRecord, tally: Tally, policy: Policy) -> str:
    """Why the policy ends the run with this refusal; empty: it goes on."""
    if record.applied:
        return ""
    limit = policy.max_consecutive_refusals
    asked = policy.spike if record.cause is Cause.SPIKE else policy.nonfinite
    if asked == "raise" and record.cause not in (Cause.OVERFLOW, Cause.STALE):
        return "The policy asks to stop at once."
    if tally.consecutive >= limit:
        return (
            f"{limit} steps in a row were refused, so the run is stopped; the weights are those of "
            "the last applied step."
        )
    return ""


def learning_rates(optimizer: torch.optim.Optimizer) -> tuple[float, ...]:
    """The rate of each group; NaN where it is a tensor that only a stop could read."""
    return tuple(_rate(group["lr"]) for group in optimizer.param_groups)


def _rate(rate: float | Tensor) -> float:
    if isinstance(rate, Tensor) and rate.device.type != "cpu":
        return math.nan
    return float(rate)


def _cause(facts: Facts) -> Cause:
    if facts.good:
        return Cause.NONE
    if facts.stale:
        return Cause.STALE
    if facts.unreached:
        return Cause.NO_GRADIENT
    if facts.finite:
        return Cause.SPIKE
    if facts.term_names and not math.isfinite(facts.loss):
        return Cause.NONFINITE_LOSS
    if facts.scale_floor is not None and facts.scale > facts.scale_floor:
        return Cause.OVERFLOW
    if facts.elements_finite or (facts.norms and all(map(math.isfinite, facts.norms))):
        return Cause.NORM_OVERFLOW
    return Cause.NONFINITE_GRADIENT


def _events(facts: Facts) -> tuple[Event, ...]:
    happened = {
        Event.CLIPPED: facts.good and facts.clip_divisor > 1.0,
        Event.RATE_JUMPED: facts.rate_jumped,
        Event.ZERO_RATE: facts.zero_rate,
        Event.SILENT_PARAMETER: bool(facts.silent),
        Event.GRADIENTS_KEPT: facts.gradients_kept,
        Event.GRADIENTS_TOUCHED: facts.gradients_touched,
        Event.GRADIENT_ZERO: facts.total_norm == 0.0,
        Event.LOSS_SPIKE: facts.loss_spike,
        Event.GRADIENT_SPIKE: facts.gradient_spike,
        Event.PARTIAL_WINDOW: facts.micro_batches < facts.accumulate,
        Event.BACKWARD_SKIPPED: facts.backward_skipped,
        Event.BUFFERS_MENDED: bool(facts.mended),
        Event.BATCH_OUTLYING: facts.outlying,
        Event.BUFFERS_RESTORED: facts.buffers_moved and not facts.good,
        Event.SCALE_BACKED_OFF: facts.next_scale < facts.scale,
        Event.SCALE_GREW: facts.next_scale > facts.scale,
        Event.SCALE_AT_FLOOR: facts.scale_floor is not None
        and facts.next_scale <= facts.scale_floor,
    }
    return tuple(event for event, so in happened.items() if so)
