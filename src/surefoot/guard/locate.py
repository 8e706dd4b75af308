"""From what a trace saw to the fault: which module the first bad value came up in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from surefoot.guard.ranges import floating
from surefoot.guard.trace import Sight, Trace, Visit
from surefoot.records import ForwardFault, Origin, Range

__all__ = ["backward_fault", "forward_fault"]

_MOST_SAMPLES = 16


def forward_fault(
    trace: Trace, *, loss_bad: bool, sample_ids: Sequence[str] = ()
) -> ForwardFault | None:
    """The first tensor with a NaN or +Inf in it, and who made it; None where there is none.

    -Inf alone is what attention is masked with. It counts where the loss is bad, nothing else can
    have made it so, and it got as far as what the model put out.
    """
    first = next((event for event in trace.forward if event[1].look.strong), None)
    if first is None and loss_bad and _reaches_the_end(trace):
        first = next(event for event in trace.forward if event[1].look.kind)
    if first is None:
        return None
    visit, sight, goes_in = first
    if not goes_in:
        return _made_by(trace, visit, sight, sample_ids)
    if visit.parent is not None:
        return _made_by(trace, visit.parent, sight, sample_ids, before=visit)
    return ForwardFault(
        origin=Origin.INPUT,
        # Of the model itself no name is to be said; of a part that the loop called, there is.
        module=visit.name,
        kind=visit.kind,
        value=sight.look.kind,
        position=sight.label,
        input_finite=False,
        made=sight.look.range,
        samples=_samples(sight, sample_ids) if _is_the_batch(visit, sight) else (),
    )


def backward_fault(trace: Trace, culprit: str = "") -> ForwardFault:
    """The first module, in backward order, that was given a finite gradient and left a bad one."""
    for group in _together(trace.backward):
        if not any(sight.look.kind for _, sight, _ in group):
            continue
        leaving = [(v, s) for v, s, leaves in group if leaves and _arrived_finite(v)]
        if leaving:
            visit, sight = max(leaving, key=lambda pair: (_spoils_own(pair[0]), pair[0].number))
            return _spoilt_by(visit, sight)
        visit, sight, _ = group[-1]
        return _between(visit.parent, visit, sight)
    detail = f"in the gradient of {culprit}" if culprit else ""
    return ForwardFault(origin=Origin.BACKWARD, detail=detail)


def _made_by(
    trace: Trace,
    visit: Visit,
    sight: Sight,
    sample_ids: Sequence[str],
    *,
    before: Visit | None = None,
) -> ForwardFault:
    return ForwardFault(
        origin=Origin.MODULE,
        module=visit.name,
        kind=visit.kind,
        value=sight.look.kind,
        position=sight.label,
        before="" if before is None else before.name,
        input_finite=not any(given.look.strong for given in visit.inputs),
        given=visit.inputs[0].look.range if visit.inputs else Range(),
        made=sight.look.range,
        state=_bad_state(visit.module, {id(v.module) for v in trace.visits}),
        samples=_samples(sight, sample_ids) if _stays_in_its_rows(trace, sight) else (),
        detail=_also(trace, sight),
    )


def _spoilt_by(visit: Visit, sight: Sight) -> ForwardFault:
    return ForwardFault(
        origin=Origin.BACKWARD,
        module=visit.name,
        kind=visit.kind,
        value=sight.look.kind,
        position=sight.label,
        given=visit.arrived[0].look.range if visit.arrived else Range(),
        made=sight.look.range,
    )


def _between(parent: Visit | None, after: Visit, sight: Sight) -> ForwardFault:
    """The gradient was bad when it arrived at ``after``: what used its output made it so."""
    if parent is None:
        return ForwardFault(
            origin=Origin.BACKWARD,
            value=sight.look.kind,
            made=sight.look.range,
            detail=f"in the loss function; {sight.look.kind} arrived at the {sight.label} of "
            f"{after.name or 'the model'}",
        )
    return ForwardFault(
        origin=Origin.BACKWARD,
        module=parent.name,
        kind=parent.kind,
        value=sight.look.kind,
        position=f"the {sight.label} of {after.name}",
        given=parent.arrived[0].look.range if parent.arrived else Range(),
        made=sight.look.range,
        detail=f"in its own code, after it has called {after.name}",
    )


def _together(
    events: Sequence[tuple[Visit, Sight, bool]],
) -> Iterator[list[tuple[Visit, Sight, bool]]]:
    """Neighbours that saw one and the same gradient."""
    group: list[tuple[Visit, Sight, bool]] = []
    for event in events:
        if group and not event[1].same:
            yield group
            group = []
        group.append(event)
    if group:
        yield group


def _arrived_finite(visit: Visit) -> bool:
    return not any(sight.look.kind for sight in visit.arrived)


def _spoils_own(visit: Visit) -> bool:
    """Its own parameters' gradient is bad too: of several that share an input, it is this one."""
    return sum(bool(sight.look.kind) for sight in visit.left) > 1


def _reaches_the_end(trace: Trace) -> bool:
    last = [visit for visit in trace.visits if visit.parent is None]
    return any(sight.look.kind for visit in last[-1:] for sight in visit.outputs)


def _samples(sight: Sight, sample_ids: Sequence[str]) -> tuple[str, ...]:
    """Only where it is some of the rows: one that BatchNorm has spread stands in all of them."""
    if sight.bad_rows is None or len(sample_ids) != sight.bad_rows.numel():
        return ()
    rows: list[bool] = sight.bad_rows.tolist()
    if all(rows) and len(rows) > 1:
        return ()
    return tuple(name for name, bad in zip(sample_ids, rows, strict=True) if bad)[:_MOST_SAMPLES]


def _is_the_batch(visit: Visit, sight: Sight) -> bool:
    """Whether its rows are the samples: it comes first, or no other input has as many rows."""
    as_many = [given for given in visit.inputs if given.bad_rows is not None]
    return sight is visit.inputs[0] or len(as_many) == 1


def _stays_in_its_rows(trace: Trace, sight: Sight) -> bool:
    """Whether the same rows are bad in what came out of the model.

    A tensor inside may have as many rows as there are samples by chance (photos of the objects that
    every image is compared with); what is bad there then spoils other rows, or all.
    """
    outputs = [s for v in trace.visits if v.parent is None for s in v.outputs if s.look.kind]
    compared = [s.bad_rows for s in outputs if s.bad_rows is not None]
    mine = sight.bad_rows
    return mine is not None and bool(compared) and all(torch.equal(mine, c) for c in compared)


def _bad_state(module: nn.Module, called: set[int]) -> tuple[str, ...]:
    """Own weights and buffers that are not finite, and those of parts it uses without a call."""
    bad: list[str] = []
    for name, part in module.named_modules():
        if part is not module and id(part) in called:
            continue
        weights = list(part.named_parameters(recurse=False))
        buffers = list(part.named_buffers(recurse=False))
        for own, tensor in [*weights, *buffers]:
            numbers = floating(tensor)
            # A buffer of -Inf is a mask; a weight is not.
            wrong = numbers is not None and bool(
                (numbers.isnan() | numbers.isposinf()).any()
                or (isinstance(tensor, nn.Parameter) and not torch.isfinite(numbers).all())
            )
            if wrong:
                bad.append(f"{name}.{own}" if name else own)
    return tuple(bad[:4])


def _also(trace: Trace, sight: Sight) -> str:
    """What a reader would ask next: whether -Inf came before, and where Inf became NaN."""
    place = next(i for i, (_, s, _) in enumerate(trace.forward) if s is sight)
    before = next((v for v, s, _ in trace.forward[:place] if s.look.kind == "-Inf"), None)
    if before is not None:
        return f"-Inf, which may be a mask, stood in {before.name or 'the model'} before that"
    if sight.look.kind != "NaN":
        outputs = (v for v, s, goes_in in trace.forward[place:] if s.look.nan and not goes_in)
        if (after := next(outputs, None)) is not None:
            return f"the first NaN came out of {after.name or 'the model'} ({after.kind})"
    return ""
