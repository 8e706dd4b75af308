"""Asks of a refused step what it died of: runs it again under hooks, when nobody is looking.

Not every refusal is looked into: the first few, and then every one whose number is a power of two.
A NaN at every seventh step so costs a handful of forward passes and no more.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from surefoot.errors import ConfigError
from surefoot.guard.arrival import Arrival
from surefoot.guard.buffers import BufferKeeper
from surefoot.guard.failures import FailureStore
from surefoot.guard.inquiry import Inquiry
from surefoot.guard.kept import ForwardKeeper, MicroBatch, Recompute, bare
from surefoot.guard.measure import ParameterTable
from surefoot.guard.policy import Policy
from surefoot.guard.ranks import agree, tell_all
from surefoot.guard.rerun import CAN_HAPPEN, left_alone
from surefoot.guard.terms import finite_alone, term_gradients, with_gradients
from surefoot.records import Cause, Event, ForwardFault, Origin, StepRecord
from surefoot.shapes import LossTerms

__all__ = ["Inspector"]

_MOST_SAMPLES = 16
_FIRST = 10
"""Steps in which every term of the loss has to have had a gradient once."""
_NOTHING_TO_SEE = (Cause.STALE, Cause.NO_GRADIENT)
_FINITE = (Cause.SPIKE, Cause.NORM_OVERFLOW)
_Gradients = list[tuple[float, float]]


@dataclass
class _Case:
    """One closed window, until its verdict is known."""

    window: list[MicroBatch]
    suspect: int | None = None
    """The micro-batch whose loss was seen to be bad."""
    suspect_terms: _Gradients = field(default_factory=list)
    sampled: Arrival | None = None


class Inspector:
    """Keeps what the step's forward passes were called with, and looks into refusals.

    Args:
        model: the one in training.
        table: its parameters.
        buffers: and its buffers, as they were before the step.
        policy: how often.
        together: whether other processes train the same model; they have to do all this alike.
    """

    def __init__(
        self,
        model: nn.Module,
        table: ParameterTable,
        buffers: BufferKeeper,
        policy: Policy,
        *,
        together: bool,
    ) -> None:
        self._model, self._table, self._buffers = model, table, buffers
        self._policy, self._together = policy, together
        self._agree = agree if together else bool
        self._sharded = any(isinstance(p, DTensor) for p in table.parameters)
        self._keeper = None
        if policy.inspect_refusals:
            self._keeper = ForwardKeeper(model, {p.device for p in table.parameters})
        self._count = 0
        self._cases: dict[int, _Case] = {}
        self._open = _Case([])
        self._samples_fail = False
        self._unheard: set[str] | None = None
        self._failures: FailureStore | None = None

    # -- while a window is open -------------------------------------------------------------------

    def begin(self, autocast: torch.dtype | None) -> None:
        """A micro-batch's forward passes start here, in this precision."""
        if self._keeper is not None:
            self._keeper.begin(autocast)

    def end(
        self, total: Tensor | None, sample_ids: Sequence[str], recompute: Recompute | None
    ) -> None:
        """A micro-batch's loss is known."""
        if self._keeper is not None:
            self._keeper.end(total, sample_ids, recompute)

    def suspect(self, terms: LossTerms, scale: float) -> None:
        """The loss of the last micro-batch is not finite, and its graph is still alive."""
        if self._keeper is None:
            return
        self._open.suspect = self._keeper.micro_batches - 1
        if self._due(self._count + 1) and len(terms.names) > 1 and not self._sharded:
            try:
                self._open.suspect_terms = finite_alone(terms, self._table.parameters, scale)
            except CAN_HAPPEN:
                self._open.suspect_terms = []

    def sample(self, terms: LossTerms, step: int, scale: Tensor | float) -> None:
        """In a healthy step, now and then: how long each term's gradient is, and where it points.

        In the first steps as well, until each term has had one: most often that is once. The graph
        is still needed for the step's own backward pass and stays alive.
        """
        if self._unheard is None:
            weighed = (name for name in terms.names if terms.weight(name) != 0.0)
            self._unheard = set(weighed if step < _FIRST else ())
        every = self._policy.term_gradients_every
        unheard = step < _FIRST and self._unheard
        due = every and (unheard or (step and step % every == 0))
        if not due or len(terms.names) < 2 or self._sharded or self._samples_fail:
            return
        try:
            found = term_gradients(terms, self._table.parameters, scale)
        except RuntimeError:  # no memory for it, or a graph that can be run backwards only once
            self._samples_fail = True
            return
        self._open.sampled = Arrival(found.flatten())

    def window_closed(self, step: int) -> None:
        """The verdict on this step is about to fall."""
        case, self._open = self._open, _Case([])
        if self._keeper is not None:
            case.window = self._keeper.window_closed()
        self._cases[step] = case
        for old in [number for number in self._cases if number < step - 1]:
            del self._cases[old]

    # -- once the verdict is known ----------------------------------------------------------------

    def add_samples(self, record: StepRecord) -> StepRecord:
        """The record with the gradients of its terms, where they were looked at."""
        case = self._cases.get(record.step)
        if case is not None and case.sampled is not None:
            flat = case.sampled.read()
            pairs = list(zip(flat[::2], flat[1::2], strict=True))
            record.__dict__["terms"] = with_gradients(record.terms, pairs)
            if self._unheard:
                self._unheard -= {term.name for term in record.terms if term.grad_norm != 0.0}
                if self._unheard and record.step >= _FIRST - 1:
                    record.__dict__["events"] = (*record.events, Event.SILENT_TERM)
                    self._unheard = set()
        return record

    def inspect(self, record: StepRecord) -> StepRecord:
        """The record with what was found of its fault, where it is its turn; nothing is raised."""
        case = self._cases.pop(record.step, None)
        if not record.refused or record.cause in _NOTHING_TO_SEE or case is None:
            return record
        if self._keeper is None or not self._agree(record.cause is not Cause.OVERFLOW):
            return record
        self._count += 1
        if self._due(self._count):
            found = dict[str, object]()
            before = self._buffers.named(before_forward=True)
            with left_alone(self._model, before), self._keeper.deaf(), self._buffers.deaf():
                try:
                    self._look_into(record, case, found)
                except CAN_HAPPEN as problem:
                    what = f"{type(problem).__name__}: {problem}".partition("\n")[0][:200]
                    found.setdefault("fault", ForwardFault(origin=Origin.FAILED, detail=what))
            record.__dict__.update(found)
            self._keep(record, case, before)
        return record

    def keep_failures(self, folder: Path | str) -> None:
        """Write what it takes to run a refused step again, of those that are looked into.

        Raises:
            ConfigError: the policy looks into none.
        """
        if self._keeper is None:
            raise ConfigError(
                f"keep_failures({str(folder)!r}): the policy looks into no refusal, so that none "
                "could be kept; give it an inspect_refusals above 0."
            )
        self._failures = FailureStore(folder)

    def remove(self) -> None:
        """Take the hooks off the model."""
        if self._keeper is not None:
            self._keeper.remove()

    def _due(self, number: int) -> bool:
        first = self._policy.inspect_refusals
        return bool(first) and (number <= first or number & (number - 1) == 0)

    def _keep(self, record: StepRecord, case: _Case, buffers: dict[str, Tensor]) -> None:
        elsewhere = record.fault is None or not record.fault.origin.located
        if self._failures is None or (self._together and record.rank and elsewhere):
            return
        model = bare(self._model)
        depth = len("module.") * (0 if model is self._model else 1)
        own = {name[depth:]: tensor for name, tensor in buffers.items()}
        try:
            path = self._failures.write(record, case.window, model, own)
        except OSError as problem:
            warnings.warn(
                f"surefoot: refused step {record.step} could not be kept to be run again: "
                f"{problem}. The training goes on.",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        record.__dict__["bundle"] = str(path)

    def _look_into(self, record: StepRecord, case: _Case, found: dict[str, object]) -> None:
        inquiry = Inquiry(
            model=self._model,
            parameters=self._table.parameters,
            window=case.window,
            record=record,
            suspect=case.suspect,
            agree=self._agree,
            tell=_everybodys if self._together else _mine,
            together=self._together,
            sharded=self._sharded,
        )
        place = inquiry.largest()
        if record.cause not in _FINITE:
            fault = inquiry.fault()
            place = fault.micro_batch
            if fault.located and not fault.samples and len(case.window) > 1:
                fault = replace(fault, samples=case.window[place].sample_ids[:_MOST_SAMPLES])
            found["fault"] = fault
        gradients = case.suspect_terms or inquiry.terms(place)
        if gradients:
            found["terms"] = with_gradients(record.terms, gradients)


def _everybodys(number: int) -> list[int]:
    return [numbers[0] for numbers in tell_all([number])]


def _mine(number: int) -> list[int]:
    return [number]
