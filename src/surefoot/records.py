"""What the guard says about a step: plain values, no tensors, no torch.

A :class:`StepRecord` is what travels from the guard to the journal and from there to the doctor.
It is versioned: a reader of today reads every older version.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from textwrap import wrap
from typing import Any

from surefoot.faults import Culprit, ForwardFault, Origin, Range, TermRecord, plain
from surefoot.outcomes import Cause, Event, Verdict

__all__ = [
    "RECORD_VERSION",
    "Cause",
    "Culprit",
    "Event",
    "ForwardFault",
    "Origin",
    "Range",
    "StepRecord",
    "TermRecord",
    "Verdict",
    "ranks_said",
]

RECORD_VERSION = 2


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
    bad_ranks: tuple[int, ...] = field(default_factory=tuple)
    """Processes of several that train together on which it went wrong; all of them know. Where this
    one is none of them, ``loss``, ``terms``, ``sample_ids`` and ``fault`` are the first one's."""
    events: tuple[Event, ...] = field(default_factory=tuple)
    fault: ForwardFault | None = field(default_factory=lambda: None)
    """Where the first bad value came up; None where nobody looked."""
    bundle: str = field(default_factory=str)
    """Folder that holds what it takes to run this step again; empty where nothing was kept."""
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

    @property
    def samples(self) -> tuple[str, ...]:
        """The samples that the bad value stands in, as far as they could be told apart."""
        return self.fault.samples if self.fault and self.fault.samples else self.sample_ids

    @property
    def silent(self) -> tuple[str, ...]:
        """The parameters that have had no gradient for many steps, where that is the event."""
        return tuple(c.name for c in self.culprits if c.norm == 0.0)

    @property
    def silent_terms(self) -> tuple[str, ...]:
        """The terms that have had no gradient since the first step, where that is the event."""
        if Event.SILENT_TERM not in self.events:
            return ()
        return tuple(t.name for t in self.terms if t.weight != 0.0 and t.grad_norm == 0.0)

    def __str__(self) -> str:
        line = f"step {self.step}: {self.verdict}"
        if self.cause is not Cause.NONE:
            line += f": {self.cause}{self._on_ranks}"
        bad = [c for c in self.culprits if c.norm != 0.0]
        if bad:
            line += f" in {_some([f'{c.name} ({c.kind})' for c in bad])}"
        if self.fault is not None and self.fault.located:
            line += f"; {self.fault}"
        if self.refused:
            terms = [t.name for t in self.terms if t.bad]
            if 0 < len(terms) < len(self.terms):
                line += f"; in the term{'s'[: len(terms) - 1]} {_some(terms)}"
            line += f"; on {_some(self.samples)}" if self.samples else ""
        if Event.ROLLED_BACK in self.events or Event.ROLLBACK_UNDONE in self.events:
            line += "; " + "; ".join(str(e) for e in self.events if "rol" in e.value)
        if Event.SILENT_PARAMETER in self.events:
            line += f"; no gradient for many steps in {_some(self.silent)}"
        if self.silent_terms:
            line += f"; no gradient so far from {_some(self.silent_terms)}"
        return line

    @property
    def _on_ranks(self) -> str:
        known = self.bad_ranks and self.cause in (Cause.NONFINITE_LOSS, Cause.NONFINITE_GRADIENT)
        return f" on {ranks_said(self.bad_ranks)}" if known else ""

    def explain(self) -> str:
        """The whole story, several lines: what, where, by which term, on which samples, what next.

        >>> term = TermRecord("dist", float("nan"), 2.0)
        >>> print(StepRecord(step=3, verdict=Verdict.REFUSED, cause=Cause.NONFINITE_LOSS,
        ...                  terms=(term,), sample_ids=("a", "b")).explain())
        Step 3: the step was refused; everything is as it was before it.
        Cause       the loss was NaN or Inf
        Terms       dist  nan x 2
        Samples     a, b
        Next        look at the terms that are not finite, and at these samples
        """
        return _story(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is not finite becomes ``"nan"``, ``"inf"`` or ``"-inf"``.

        >>> record = StepRecord(step=3, verdict=Verdict.APPLIED, loss=float("inf"))
        >>> StepRecord.from_dict(record.to_dict()) == record
        True
        """
        values = {f.name: getattr(self, f.name) for f in fields(StepRecord)}
        values["terms"] = [t.to_list() for t in self.terms]
        values["culprits"] = [c.to_list() for c in self.culprits]
        values["fault"] = None if self.fault is None else self.fault.to_dict()
        values["events"] = [e.value for e in self.events]
        values["verdict"], values["cause"] = self.verdict.value, self.cause.value
        for name in ("learning_rates", "sample_ids", "bad_ranks"):
            values[name] = [plain(v) for v in values[name]]
        return {name: plain(value) for name, value in values.items()}

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
            TermRecord(name, float(raw), float(weight), *map(float, looked_at))
            for name, raw, weight, *looked_at in got.get("terms", ())
        )
        got["culprits"] = tuple(
            Culprit(name, float(norm), *map(float, looked_at))
            for name, norm, *looked_at in got.get("culprits", ())
        )
        fault = got.get("fault")
        got["fault"] = None if fault is None else ForwardFault.from_dict(fault)
        got["events"] = tuple(Event(e) for e in got.get("events", ()))
        got["learning_rates"] = tuple(float(v) for v in got.get("learning_rates", ()))
        got["sample_ids"] = tuple(got.get("sample_ids", ()))
        got["bad_ranks"] = tuple(int(r) for r in got.get("bad_ranks", ()))
        for name in ("loss", "grad_norm", "clip_coefficient", "loss_scale"):
            if name in got:
                got[name] = float(got[name])
        return cls(**got)


def ranks_said(ranks: Sequence[int]) -> str:
    """In words.

    >>> ranks_said([1]), ranks_said([0, 2]), ranks_said(range(6))
    ('rank 1', 'ranks 0, 2', 'ranks 0, 1, 2 and 3 more')
    """
    return f"rank{'s'[: len(ranks) - 1]} {_some([str(rank) for rank in ranks])}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - 3
    return ", ".join(names[:3]) + (f" and {more} more" if more > 0 else "")


_UNSAFE_BACKWARD = (
    "something there is safe forwards and not backwards: sqrt, norm, pow and atan2 have no finite "
    "gradient at 0, and torch.where lets through the NaN of the branch it does not take; make the "
    "argument safe before the operation"
)
_ASK_FOR_MORE = "; guard.step(loss, recompute=...) finds out which module and which loss term"
_AFTER_CAUSE = {
    Cause.NONFINITE_LOSS: "look at the terms that are not finite, and at these samples",
    Cause.NONFINITE_GRADIENT: _UNSAFE_BACKWARD + _ASK_FOR_MORE,
    Cause.OVERFLOW: "nothing: now and then this is how the loss scale finds its place",
    Cause.STALE: "nothing",
    Cause.SPIKE: "look at these samples; if the level stays it becomes the new one",
    Cause.NORM_OVERFLOW: "check the learning rate and the scale of the inputs",
    Cause.NO_GRADIENT: "look at how this batch's loss is made: a constant, .detach(), .item(), an "
    "empty selection, or torch.no_grad()",
}
_AFTER_ORIGIN = {
    Origin.INPUT: "look at these samples: the data is bad before the model sees it (a damaged "
    "file, a division in a transform)",
    Origin.LOSS: "look at what the loss function divides by and takes the logarithm or root of",
    Origin.BACKWARD: _UNSAFE_BACKWARD,
    Origin.AFTER: _UNSAFE_BACKWARD + "; attachment.observe(loss) tells the two apart",
    Origin.ELSEWHERE: "read the record of that process",
    Origin.NOT_AGAIN: "something outside the model changes what it computes (an input overwritten "
    "since, another thread, a faulty device); log the inputs of this step",
    Origin.NOT_KEPT: "call the model itself in the loop, model(x) and not only parts of it, or "
    "give guard.step(loss, recompute=...); the next such record says which module it was",
}


_RANGES = {
    Origin.INPUT: ("", "  values"),
    Origin.BACKWARD: ("  arrived", "  left"),
}


def _advice(record: StepRecord) -> str:
    fault = record.fault
    if fault is None or fault.origin is Origin.FAILED:
        return _AFTER_CAUSE.get(record.cause, "")
    if fault.origin is not Origin.MODULE:
        more = _ASK_FOR_MORE if fault.origin is Origin.BACKWARD and not fault.value else ""
        return _AFTER_ORIGIN[fault.origin] + more
    if fault.state:
        return "the state is bad, not the data: find the step that made it so, or go back behind it"
    if fault.before:
        return f"look at what {fault.where} computes before it calls {fault.before}"
    return (
        f"look at what {fault.where} divides by, takes the logarithm or root of or raises e to, "
        "and make that safe; where it only overflows, run it in float32"
    )


def _story(record: StepRecord) -> str:
    fault, lines = record.fault, list[tuple[str, str]]()
    if record.refused:
        lines.append(("Cause", f"{record.cause}{record._on_ranks}"))
    if fault is not None:
        lines.append(("Where", str(fault)))
        given, made = _RANGES.get(fault.origin, ("  input", "  output"))
        lines += [(given, str(fault.given))] if fault.given.known else []
        lines += [(made, str(fault.made))] if fault.made.known else []
        if fault.origin is Origin.MODULE and fault.detail:
            lines.append(("", fault.detail))
        if record.micro_batches > 1 and fault.located:
            lines.append(("", f"micro-batch {fault.micro_batch + 1} of {record.micro_batches}"))
    width = max((len(t.name) for t in record.terms), default=0)
    lines += [("Terms", f"{t.name:{width}}  {t.said}") for t in record.terms]
    width = max((len(c.name) for c in record.culprits), default=0)
    lines += [("Gradients", f"{c.name:{width}}  {_culprit(c)}") for c in record.culprits]
    lines += [("Samples", _some(record.samples))] if record.samples else []
    lines += [("Events", "; ".join(map(str, record.events)))] if record.events else []
    lines += [("Kept", record.bundle)] if record.bundle else []
    lines += [("Next", _advice(record))] if record.refused else []
    told, before = [f"Step {record.step}: {record.verdict}."], ""
    for label, text in lines:
        head = f"{'' if label == before else label:10}  "
        told += wrap(text, 100, initial_indent=head, subsequent_indent=" " * 12)
        before = label
    return "\n".join(told)


def _culprit(culprit: Culprit) -> str:
    size = f"norm {culprit.norm:.4g}" if culprit.kind == "finite" else culprit.kind
    return f"{size}; {culprit.range}" if culprit.range.known else size
