"""A guarded step of processes that train together, one of which may have to compute in pieces.

Under ``DistributedDataParallel`` the others need not know. A process that runs out of memory owes
them one sum of gradients, and nothing before it: so it undoes the attempt, adds up its pieces'
gradients by itself, past the hooks that would send them, and then hands the sum to the reducer by a
backward pass that consists of it. The others wait in their sum for that long. Where memory ran out
in the midst of the backward pass, what the reducer has sent already stands (it is the gradient of
the whole batch), and it is handed the rest. No message is sent that a healthy step does not send.

Under FSDP every layer's forward and backward pass is a message, to be made by all alike; there the
error ends the run, in words that say so.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from surefoot.guard.guard import Guard
from surefoot.guard.halved_step import _carrier, _nothing, _precision, _replaced, _unheard
from surefoot.guard.halves import Compute, Halves, Micro
from surefoot.guard.out_of_memory import TooLarge, is_out_of_memory
from surefoot.records import StepRecord
from surefoot.shapes import LossTerms

__all__ = ["StepsTogether"]


class StepsTogether:
    """Steps of a process among others; :func:`step_in_halves` is for one that is alone.

    Args:
        guard: over a ``DistributedDataParallel``, or over a module in shards.
        halves: how a batch is cut, of the module inside the wrapper.
        compute: mean loss of a batch, or of a piece of it, by way of the guard's module.
    """

    def __init__(self, guard: Guard, halves: Halves, compute: Compute) -> None:
        self._guard, self._halves, self._compute = guard, halves, compute
        model = guard._stepper._model
        self._unable = _why_not(model, guard._replicated)
        self._undivided = [p for p in model.parameters() if not isinstance(p, DTensor)]
        self._sharded = len(self._undivided) < len(list(model.parameters()))
        self._quiet = False
        self._used: set[int] = set()

    def step(self, batch: Any, *, sample_ids: Sequence[str] = ()) -> StepRecord:
        """Forward pass under the guard's autocast, and ``guard.step``.

        Raises:
            TooLarge: not even the smallest piece fits, or nothing can be cut here.
            TrainingDiverged: as :meth:`Guard.step`.
        """
        if self._unable:
            return self._whole(batch, sample_ids)
        guard, halves = self._guard, self._halves
        again = partial(self._compute, batch)
        finish = partial(guard.step, sample_ids=sample_ids, recompute=again)
        if not guard._window.micro_batches:
            halves.forget()
        with _Entrance(guard._replicated[0], halves) as entrance:
            with guard.autocast():
                precision = partial(_precision, guard)
                micro = halves.begin(self._compute, batch, self._backward, precision)
                terms = halves.forward(micro, nullcontext)
            if terms is None:
                terms = self._in_pieces(micro, entrance, spoilt=False)
                with _replaced(guard, _nothing):
                    return finish(_carrier(terms))
            whole = terms

            def in_pieces_if_need_be(total: Tensor) -> None:
                before = _stamps(halves._parameters)
                if halves.try_backward(micro, whole, total):
                    halves.keep(micro)
                    return
                after = _stamps(halves._parameters)
                sent = {i for i, mark in after.items() if mark != before.get(i)}
                self._in_pieces(micro, entrance, spoilt=True, sent=sent)

            with _replaced(guard, in_pieces_if_need_be):
                return finish(whole)

    def _whole(self, batch: Any, sample_ids: Sequence[str]) -> StepRecord:
        guard, problem = self._guard, ""
        # What computes it again would do so twice on one process, where it gives another loss.
        again = None if self._sharded else partial(self._compute, batch)
        backward = _replaced(guard, self._backward_in_shards) if self._sharded else nullcontext()
        try:
            with guard.autocast():
                loss = self._compute(batch)
            with backward:
                return guard.step(loss, sample_ids=sample_ids, recompute=again)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            problem = str(error).partition("\n")[0]
        raise TooLarge(
            f"out of memory on process {torch.distributed.get_rank()}, and the step cannot be "
            f"computed in halves: {self._unable}. The device said: {problem} Take smaller batches "
            "in every process, or half precision; a run that is saved goes on with them."
        )

    def _backward_in_shards(self, total: Tensor) -> None:
        """What cannot be divided is averaged here, all of it in one message for each window."""
        guard = self._guard
        Guard._backward(guard, total)
        closes = guard._last_batch or guard._window.micro_batches == guard._accumulate
        if not closes or not (numbers := [p for p in self._undivided if p.requires_grad]):
            return
        found = [torch.zeros_like(p) if p.grad is None else p.grad for p in numbers]
        flat = torch.cat([gradient.reshape(-1).float() for gradient in found])
        torch.distributed.all_reduce(flat)
        flat /= torch.distributed.get_world_size()
        parts = flat.split([p.numel() for p in numbers])
        for parameter, part in zip(numbers, parts, strict=True):
            parameter.grad = part.view_as(parameter).to(parameter.dtype, copy=True)

    def _in_pieces(
        self,
        micro: Micro,
        entrance: _Entrance,
        *,
        spoilt: bool,
        sent: set[int] | None = None,
    ) -> LossTerms:
        """As :meth:`Halves.in_pieces`; where the others wait for the window's gradient they get it.

        Args:
            micro: what did not fit.
            entrance: the wrapper's.
            spoilt: memory ran out in the backward pass.
            sent: parameters whose gradient the reducer had then.
        """
        closes = entrance.wrapper.require_backward_grad_sync
        self._quiet = True
        self._used = set()
        try:
            with _unheard(self._guard), entrance.apart():
                terms = self._halves.in_pieces(micro, spoilt=spoilt)
        finally:
            self._quiet = False
        if closes:
            self._hand_over(entrance, sent)
            entrance.wrapper.require_forward_param_sync = True  # as after every exchange
            self._guard._mark.set()
        return terms

    def _backward(self, total: Tensor) -> None:
        if not self._quiet:
            Guard._backward(self._guard, total)
            return
        parameters = [p for p in self._halves._parameters if p.requires_grad]
        one = torch.ones((), device=total.device, dtype=total.dtype, requires_grad=True)
        Guard._backward(self._guard, one)  # what the guard multiplies a loss by
        found = torch.autograd.grad(total, parameters, one.grad, allow_unused=True)
        gradients = cast("Sequence[Tensor | None]", found)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is None:
                continue
            self._used.add(id(parameter))
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    def _hand_over(self, entrance: _Entrance, sent: set[int] | None) -> None:
        wanted = self._used - (sent or set())
        parameters = [p for p in self._halves._parameters if id(p) in wanted]
        pairs = [(p, cast(Tensor, p.grad)) for p in parameters]
        for parameter in parameters:
            parameter.grad = None

        def carry() -> Tensor:
            parts = [torch.dot(p.flatten(), gradient.flatten()) for p, gradient in pairs]
            return torch.stack([part.float() for part in parts]).sum()

        (carry() if sent is not None else entrance.through(carry)).backward()


class _Entrance:
    """The way into a ``DistributedDataParallel``, which is gone once for each micro-batch: there
    its buffers are brought to be the first process's, and its reducer is told to wait.
    """

    def __init__(self, wrapper: DistributedDataParallel, halves: Halves) -> None:
        self.wrapper, self._halves = wrapper, halves
        self._entered = False

    def __enter__(self) -> _Entrance:
        self._handle = self.wrapper.module.register_forward_pre_hook(self._inside)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _inside(self, module: nn.Module, _: Any) -> None:
        """The buffers are everybody's now: what goes back to before goes back to these."""
        if not self._entered:
            halves, self._entered = self._halves, True
            (halves._before if halves._window else halves._before_window).capture()

    @contextmanager
    def apart(self) -> Generator[None]:
        """The wrapper's forward pass is the module's: nothing is sent, but for the buffers."""
        wrapper = self.wrapper
        closes, wrapper.require_backward_grad_sync = wrapper.require_backward_grad_sync, False
        forward = wrapper.forward

        def alone(*args: Any, **kwargs: Any) -> Any:
            if self._entered:
                return wrapper.module(*args, **kwargs)
            return forward(*args, **kwargs)

        wrapper.forward = alone  # of this one wrapper
        try:
            yield
        finally:
            del wrapper.forward
            wrapper.require_backward_grad_sync = closes
            wrapper.require_forward_param_sync = False

    def through(self, loss: Callable[[], Tensor]) -> Tensor:
        """A loss as if the module inside had computed it."""
        wrapper, module = self.wrapper, self.wrapper.module
        wrapper.module = _Loss(loss)
        try:
            return cast(Tensor, wrapper.forward())
        finally:
            wrapper.module = module


class _Loss(nn.Module):
    def __init__(self, compute: Callable[[], Tensor]) -> None:
        super().__init__()
        self.forward = compute


def _stamps(parameters: Sequence[Tensor]) -> dict[int, tuple[int, int]]:
    return {id(p): (id(p.grad), p.grad._version) for p in parameters if p.grad is not None}


def _why_not(model: nn.Module, wrappers: Sequence[DistributedDataParallel]) -> str:
    """Why a process could not compute in pieces by itself; empty where it could."""
    if any(isinstance(parameter, DTensor) for parameter in model.parameters()):
        return "the weights are divided between the processes, and all have to make the same passes"
    if any(isinstance(module, nn.SyncBatchNorm) for module in model.modules()):
        return "BatchNorm takes its statistics over all processes, which one cannot do again alone"
    if len(wrappers) != 1 or wrappers[0].gradient_as_bucket_view or wrappers[0].static_graph:
        return "it is not one DistributedDataParallel with gradients of its own and any graph"
    return ""
