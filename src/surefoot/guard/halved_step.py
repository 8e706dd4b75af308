"""A guarded step whose micro-batch may be computed in pieces."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from surefoot.guard.guard import Guard
from surefoot.guard.halves import Compute, Halves
from surefoot.records import StepRecord
from surefoot.shapes import LossTerms

__all__ = ["step_in_halves"]


def step_in_halves(
    guard: Guard, halves: Halves, compute: Compute, batch: Any, *, sample_ids: Sequence[str] = ()
) -> StepRecord:
    """Forward pass under the guard's autocast, and ``guard.step``; in pieces where memory runs out.

    Args:
        guard: over the model of ``halves``.
        halves: how a batch is cut; one for the whole run.
        compute: mean loss of a batch, or of a piece of it: a scalar or named terms.
        batch: what it is given.
        sample_ids: as for :meth:`Guard.step`; ``recompute`` is seen to here.

    Raises:
        TooLarge: not even the smallest piece fits.
        TrainingDiverged: as :meth:`Guard.step`.

    >>> model = torch.nn.Linear(3, 1)
    >>> def compute(batch: Tensor) -> Tensor:
    ...     if len(batch) > 2:
    ...         raise torch.OutOfMemoryError("out of memory")
    ...     return model(batch).mean()
    >>> guard, halves = Guard(model, torch.optim.SGD(model.parameters(), lr=0.1)), Halves(model)
    >>> step_in_halves(guard, halves, compute, torch.ones(4, 3)).applied, halves.pieces
    (True, 2)
    """
    finish = partial(guard.step, sample_ids=sample_ids, recompute=partial(compute, batch))
    if guard._stepper.together:
        with guard.autocast():
            loss = compute(batch)
        return finish(loss)
    if not guard._window.micro_batches:
        halves.forget()
    with guard.autocast():  # before anything is kept: it may still have a step to undo
        micro = halves.begin(compute, batch, guard._backward, partial(_precision, guard))
        terms = halves.forward(micro, nullcontext)
    if terms is None:
        with _unheard(guard):
            terms = halves.in_pieces(micro, spoilt=False)
        with _replaced(guard, _nothing):
            return finish(_carrier(terms))

    def in_pieces_if_need_be(total: Tensor) -> None:
        if halves.try_backward(micro, terms, total):
            halves.keep(micro)
            return
        with _unheard(guard):
            halves.in_pieces(micro, spoilt=True)

    with _replaced(guard, in_pieces_if_need_be):
        return finish(terms)


def _carrier(terms: LossTerms) -> LossTerms:
    """Values whose backward pass has been made, as the guard wants them: with a graph."""
    return LossTerms({n: v.requires_grad_() for n, v in terms.values.items()}, terms.weights)


def _nothing(total: Tensor) -> None:
    """The gradients are there already."""


def _precision(guard: Guard) -> AbstractContextManager[Any]:
    if guard._amp is None:
        return nullcontext()
    half = torch.float16 if guard._amp == "fp16" else torch.bfloat16
    return torch.autocast(guard._device.type, dtype=half)


@contextmanager
def _unheard(guard: Guard) -> Generator[None]:
    """The pieces are no forward passes of the micro-batch, which stands there as a whole."""
    keeper = guard._stepper.inspector._keeper
    with nullcontext() if keeper is None else keeper.deaf():
        yield
    guard._mark.set()


@contextmanager
def _replaced(guard: Guard, backward: Callable[[Tensor], None]) -> Generator[None]:
    """The guard's step with another backward pass in it."""
    inspector, done = guard._stepper.inspector, backward is _nothing
    fail, inspector._samples_fail = inspector._samples_fail, done or inspector._samples_fail
    guard.__dict__["_backward"] = backward
    try:
        yield
    finally:
        del guard.__dict__["_backward"]
        inspector._samples_fail = fail if done else inspector._samples_fail
