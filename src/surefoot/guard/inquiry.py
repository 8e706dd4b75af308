"""What a refused step died of: its forward passes again, its backward passes, its loss terms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from surefoot.guard.kept import MicroBatch, bare
from surefoot.guard.rerun import another_loss, compute_again, run_again
from surefoot.guard.terms import finite_alone
from surefoot.records import ForwardFault, Origin, StepRecord
from surefoot.shapes import LossTerms

__all__ = ["Inquiry"]

_MICRO_BATCH, _NEVER = 2**32, 2**62
_COMPILED = "model.compile() has compiled the hooks away; torch.compile(model) leaves them"
_OVERWRITTEN = "an input was overwritten since"


@dataclass
class Inquiry:
    """Runs a closed window again. Every process has to come here alike, and asks alike."""

    model: nn.Module
    parameters: Sequence[Tensor]
    window: list[MicroBatch]
    record: StepRecord
    suspect: int | None
    """The micro-batch whose loss was seen to be bad."""
    agree: Callable[[bool], bool]
    """True on every process when it is on one."""
    tell: Callable[[int], list[int]]
    """Everybody's number."""
    together: bool
    sharded: bool
    _doubt: str = ""
    _order: int = 0
    _graph: tuple[int, LossTerms] | None = None

    def fault(self) -> ForwardFault:
        """Where the first bad value came up."""
        able = [i for i, m in enumerate(self.window) if m.calls or m.recompute is not None]
        if self.suspect in able:
            able = [self.suspect]
        if self.agree(not able):
            in_place = getattr(bare(self.model), "_compiled_call_impl", None) is not None
            return ForwardFault(origin=Origin.NOT_KEPT, detail=_COMPILED if in_place else "")
        if (found := self._first(able, self._forward)) is not None:
            return found
        unable = self.sharded or any(self.window[i].recompute is None for i in able)
        if self.agree(unable):
            return self._somewhere_after()
        if (found := self._first(able, self._backward)) is not None:
            return found
        return ForwardFault(origin=Origin.NOT_AGAIN, detail=self._doubt)

    def terms(self, place: int) -> list[tuple[float, float]] | None:
        """Norm and cosine of each term's gradient in that micro-batch; None where nothing can tell.

        Not where processes train together: their backward passes would have to be alike.
        """
        micro = self.window[place] if place < len(self.window) else MicroBatch()
        if len(self.record.terms) < 2 or self.together or self.sharded or micro.recompute is None:
            return None
        if self._graph is not None and self._graph[0] == place:
            terms = self._graph[1]
        else:
            with torch.enable_grad():
                terms = compute_again(self.model, micro)
        if terms.names != tuple(term.name for term in self.record.terms):
            return None
        return finite_alone(terms, self.parameters, self.record.loss_scale)

    def largest(self) -> int:
        """The micro-batch with the largest loss."""
        losses = [-math.inf if m.total is None else float(m.total) for m in self.window]
        return max(range(len(losses)), key=lambda i: losses[i]) if losses else 0

    def _first(
        self, able: Sequence[int], look: Callable[[int], ForwardFault | None]
    ) -> ForwardFault | None:
        """The first fault, on this process or on another: a collective inside the model spreads it,
        and then the process where it came up first is the one to blame.
        """
        found: ForwardFault | None = None
        order = _NEVER
        for i in able:
            fault = look(i)
            if found is None and fault is not None:
                found, order = replace(fault, micro_batch=i), i * _MICRO_BATCH + self._order
            if found is not None and not self.together:
                break
        first = min(self.tell(order))
        if first == _NEVER:
            return None
        return found if order == first else ForwardFault(origin=Origin.ELSEWHERE)

    def _forward(self, i: int) -> ForwardFault | None:
        micro = self.window[i]
        loss_bad = micro.total is not None and not math.isfinite(float(micro.total))
        if micro.recompute is not None:
            again = run_again(self.model, micro, loss_bad=loss_bad)
            self._order = again.order
            doubt = "" if again.terms is None else another_loss(micro, again.terms)
            if not doubt:
                return again.fault
            self._doubt, micro.recompute = doubt, None
            if not micro.calls:
                return None
        again = run_again(self.model, micro, loss_bad=loss_bad)
        self._order = again.order
        if again.fault is not None:
            return again.fault
        if any(call.overwritten for call in micro.calls):
            self._doubt = _OVERWRITTEN
            return None
        return ForwardFault(origin=Origin.LOSS) if loss_bad else None

    def _backward(self, i: int) -> ForwardFault | None:
        again = run_again(
            self.model,
            self.window[i],
            loss_bad=False,
            backward=self.parameters,
            scale=self.record.loss_scale,
        )
        self._order = again.order
        if again.terms is not None:
            self._graph = (i, again.terms)
        return again.fault

    def _somewhere_after(self) -> ForwardFault:
        if self._doubt:
            return ForwardFault(origin=Origin.NOT_AGAIN, detail=self._doubt)
        loss_known = bool(self.record.terms) and math.isfinite(self.record.loss)
        return ForwardFault(origin=Origin.BACKWARD if loss_known else Origin.AFTER)
