"""Run a kept step again, alone and under full inspection."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from surefoot.guard.bundle import Bundle
from surefoot.guard.rerun import Rerun, left_alone, run_again
from surefoot.guard.terms import finite_alone
from surefoot.guard.trace import Sight, Trace
from surefoot.records import ForwardFault, Origin, Range, StepRecord, TermRecord
from surefoot.shapes import LossTerms

__all__ = ["Link", "Replay", "Run", "replay"]

Compute = Callable[..., "Tensor | LossTerms"]

_BEFORE, _AFTER = 6, 3
_Row = tuple[float, str, str, bool]
_NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", None: "fp32"}


@dataclass(frozen=True, slots=True)
class Link:
    """One call of one module, in the order of the forward pass."""

    module: str
    kind: str
    depth: int
    """Modules it lies in."""
    given: Range
    """Of its first input."""
    made: Range
    """Of its first output."""
    bad: bool
    """Whether something that came out of it was not finite."""

    @property
    def where(self) -> str:
        """Name and class."""
        return f"{self.module or 'the model'} ({self.kind})"


@dataclass(frozen=True, kw_only=True)
class Run:
    """The step, once."""

    precision: str
    """``fp32``, ``bf16`` or ``fp16``."""
    micro_batch: int
    fault: ForwardFault | None
    """None: everything was finite."""
    chain: tuple[Link, ...]
    """Every call of a module."""
    terms: tuple[TermRecord, ...]
    """Of the loss, with gradients; empty where it was not computed."""
    gradients: tuple[tuple[str, Range], ...]
    """Parameters whose gradient was bad, in the order in which the backward pass made them."""

    def lines(self) -> Iterator[str]:
        """For people."""
        yield f"In {self.precision}: {self.fault or 'every output and gradient was finite'}"
        yield from _chain_lines(self.chain, self.fault)
        width = max((len(t.name) for t in self.terms), default=0)
        for term in self.terms:
            yield f"  term {term.name:{width}}  {term.said}"
        if self.gradients:
            yield "  bad gradients, in the order of the backward pass:"
        for name, found in self.gradients[:_BEFORE]:
            yield f"    {name}  {found}"
        if len(self.gradients) > _BEFORE:
            yield f"    and {len(self.gradients) - _BEFORE} more"


@dataclass(frozen=True, kw_only=True)
class Replay:
    """What came of running a kept step again; ``print`` it."""

    path: Path
    record: StepRecord
    """As it was written then."""
    runs: tuple[Run, ...]
    """In the precision of then, and in float32 where that was another."""
    left_out: tuple[str, ...] = ()

    @property
    def conclusion(self) -> str:
        """What the two runs say together."""
        then, wide = self.runs[0], self.runs[-1]
        if then.fault is None:
            return (
                "It was finite this time. Something that is not kept has changed it: another "
                "device or torch, a generator of its own, memory written to from outside."
            )
        if then.fault.origin is Origin.INPUT:
            return "It is the data: what the model was given was not finite."
        if then.fault.state:
            return "It is the state: a weight or buffer was not finite before the step began."
        if len(self.runs) > 1 and wide.fault is None:
            where = then.fault.where if then.fault.kind else "the loss"
            wider = ", or train in bf16" if then.precision == "fp16" else ""
            return (
                f"It is the precision: float32 gets through what {then.precision} does not. Run "
                f"{where} in float32 (torch.autocast(..., enabled=False)){wider}."
            )
        if then.fault.origin is Origin.FAILED:
            return "It could not be run again."
        what = {
            Origin.LOSS: "the loss function, for what the model gave it",
            Origin.BACKWARD: "the backward pass of an operation, for what it was given",
        }.get(then.fault.origin, "an operation, for what it was given")
        also = ": in float32 it fails as well" if len(self.runs) > 1 else ""
        return f"It is {what}, and not the precision{also}. Make it safe."

    def __str__(self) -> str:
        lines = [f"{self.path}", f"Then: {self.record}"]
        lines += [f"Left out when it was kept: {', '.join(self.left_out)}"] if self.left_out else []
        lines.append(
            "Below: what came out of each module; > where it went wrong, ! what that spoilt."
        )
        for run in self.runs:
            lines += ["", *run.lines()]
        return "\n".join([*lines, "", self.conclusion])


def replay(
    path: Path | str, model: nn.Module, compute: Compute | None = None, *, weights: bool = True
) -> Replay:
    """Run a kept step again: in the precision it failed in, and in float32.

    Args:
        path: a folder ``step-...`` that :meth:`surefoot.guard.Guard.keep_failures` had written.
        model: built as it was; its weights and buffers are overwritten by the kept ones.
        compute: makes the loss from the arguments of the ``functools.partial`` that was given as
            ``recompute``, or else from what the model was called with. None: the forward pass
            alone is run.
        weights: False leaves the model's own.

    Raises:
        CheckpointError: the folder is damaged, lacks something, or is of another model.

    >>> import tempfile
    >>> from surefoot.guard import Guard
    >>> model = nn.Sequential(nn.Linear(2, 2), nn.LogSoftmax(0))
    >>> guard = Guard(model, torch.optim.SGD(model.parameters(), lr=0.1))
    >>> guard.keep_failures(tempfile.mkdtemp())
    >>> record = guard.step(model(torch.full((1, 2), torch.nan)).sum())
    >>> replay(record.bundle, model).conclusion
    'It is the data: what the model was given was not finite.'
    """
    bundle = Bundle.load(path)
    if weights:
        bundle.load_weights(model)
    model.train()
    runs: list[Run] = []
    with left_alone(model, dict(model.named_buffers())):
        first = _failing(bundle, model, compute)
        runs.append(first)
        if first.precision != "fp32":
            runs.append(_run(bundle, model, compute, first.micro_batch, wide=True))
    return Replay(
        path=bundle.path, record=bundle.record, runs=tuple(runs), left_out=bundle.left_out
    )


def _failing(bundle: Bundle, model: nn.Module, compute: Compute | None) -> Run:
    """The first micro-batch that fails; where none does, the last."""
    first, *rest = bundle.places
    run = _run(bundle, model, compute, first, wide=False)
    for place in rest:
        if run.fault is not None:
            break
        run = _run(bundle, model, compute, place, wide=False)
    return run


def _run(
    bundle: Bundle, model: nn.Module, compute: Compute | None, place: int, *, wide: bool
) -> Run:
    micro = bundle.micro_batch(place, model, compute)
    scale = 1.0 if wide else bundle.record.loss_scale
    if wide:
        micro.autocast, micro.calls = None, [replace(c, autocast=None) for c in micro.calls]
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss_bad = micro.total is not None and not math.isfinite(float(micro.total))
    again = run_again(
        model,
        micro,
        loss_bad=loss_bad,
        backward=parameters if micro.recompute is not None else (),
        scale=scale,
    )
    fault = again.fault
    if fault is None and again.terms is None and loss_bad and not wide:
        fault = ForwardFault(origin=Origin.LOSS)
    return Run(
        precision=_NAMES.get(micro.precision, "fp32"),
        micro_batch=place,
        fault=None if fault is None else replace(fault, micro_batch=place),
        chain=tuple(_links(again.trace)),
        terms=_terms(again, parameters, scale),
        gradients=tuple(
            (f"{visit.name}.{sight.label}".lstrip("."), sight.look.range)
            for visit, sight, leaves in again.trace.backward
            if leaves and sight.look.kind and sight.of_parameter
        ),
    )


def _terms(again: Rerun, parameters: Sequence[Tensor], scale: float) -> tuple[TermRecord, ...]:
    if again.terms is None:
        return ()
    found = finite_alone(again.terms, parameters, scale)
    return tuple(
        TermRecord(name, float(value.detach()), again.terms.weight(name), *gradient)
        for (name, value), gradient in zip(again.terms.values.items(), found, strict=True)
    )


def _links(trace: Trace) -> Iterator[Link]:
    for visit in trace.visits:
        yield Link(
            module=visit.name,
            kind=visit.kind,
            depth=visit.depth,
            given=_first(visit.inputs),
            made=_first(visit.outputs),
            bad=any(sight.look.strong for sight in visit.outputs),
        )


def _first(sights: Sequence[Sight]) -> Range:
    """Of the first tensor that is bad, or else of the first."""
    bad = [sight for sight in sights if sight.look.kind]
    return (bad or list(sights))[0].look.range if sights else Range()


def _chain_lines(chain: Sequence[Link], fault: ForwardFault | None) -> Iterator[str]:
    """The innermost calls around the fault, each with the range of what came out of it."""
    if fault is None or not chain:
        return
    rows: list[_Row] = [
        (float(i), link.where, str(link.made), link.bad) for i, link in _innermost(chain)
    ]
    place, row = _row_of(chain, fault)
    rows = [r for r in rows if r[0] != place] + ([row] if row else [])
    rows.sort(key=lambda r: r[0])
    center = next((i for i, r in enumerate(rows) if r[0] >= place), len(rows))
    shown = rows[max(0, center - _BEFORE) : center + _AFTER + 1]
    width = max(len(where) for _, where, _, _ in shown)
    for key, where, made, bad in shown:
        mark = ">" if key == place and row else "!" if bad else " "
        yield f"  {mark} {where:{width}}  {made}"


def _row_of(chain: Sequence[Link], fault: ForwardFault) -> tuple[float, _Row | None]:
    """Where the fault stands in the order of the calls, and its line; calls have whole numbers."""
    if fault.origin is Origin.INPUT:
        first = next((i for i, link in _innermost(chain) if link.bad), 0) - 0.5
        return first, (first, f"what went in, {fault.position}", str(fault.made), True)
    known = [i for i, link in enumerate(chain) if (link.module, link.kind) == _key(fault)]
    if not known or fault.origin not in (Origin.MODULE, Origin.BACKWARD):
        return float(len(chain)), None
    at = next((i for i in known if chain[i].bad), known[0])
    if fault.before:
        at = next((i for i, link in enumerate(chain) if link.module == fault.before), at)
        return at - 0.5, (at - 0.5, f"{fault.where}, its own code", str(fault.made), True)
    end = next((i for i in range(at + 1, len(chain)) if chain[i].depth <= chain[at].depth), None)
    last = (len(chain) if end is None else end) - 1
    place = float(at) if last == at else last + 0.5
    return place, (place, chain[at].where, str(chain[at].made), True)


def _innermost(chain: Sequence[Link]) -> Iterator[tuple[int, Link]]:
    """The calls that call nothing, with their places."""
    for i, link in enumerate(chain):
        if i + 1 == len(chain) or chain[i + 1].depth <= link.depth:
            yield i, link


def _key(fault: ForwardFault) -> tuple[str, str]:
    return fault.module, fault.kind
