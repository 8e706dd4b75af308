"""Run forward passes of a step again, and leave no trace of it."""

from __future__ import annotations

import math
import random
import sys
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from surefoot.errors import SurefootError
from surefoot.guard.kept import MicroBatch, RandomState, precision_of
from surefoot.guard.locate import backward_fault, forward_fault
from surefoot.guard.terms import terms_of
from surefoot.guard.trace import Trace, Tracer
from surefoot.records import ForwardFault, Origin
from surefoot.shapes import LossTerms

__all__ = ["CAN_HAPPEN", "Rerun", "another_loss", "compute_again", "left_alone", "run_again"]

CAN_HAPPEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    SurefootError,
    TypeError,
    ValueError,
)
"""What somebody's forward pass may raise when it is run once more; the training goes on."""
_NEAR = 0.05


class Rerun(NamedTuple):
    """What came of one micro-batch."""

    trace: Trace
    fault: ForwardFault | None
    """None: everything was finite."""
    terms: LossTerms | None
    """The loss of it, with graph where gradients were asked for; None where nobody told how."""

    @property
    def order(self) -> int:
        """How much was seen before the first bad value: what came first, of several processes."""
        forward, backward = self.trace.forward, self.trace.backward
        at = next((i for i, (_, s, _) in enumerate(forward) if s.look.strong), len(forward))
        if at < len(forward):
            return at
        return at + next((i for i, (_, s, _) in enumerate(backward) if s.look.kind), len(backward))


def run_again(
    model: nn.Module,
    micro: MicroBatch,
    *,
    loss_bad: bool,
    backward: Sequence[Tensor] = (),
    scale: float = 1.0,
) -> Rerun:
    """One micro-batch under hooks.

    Args:
        model: whose modules are watched.
        micro: what was kept of it.
        loss_bad: its loss was not finite.
        backward: parameters to take the gradient of, where the forward pass is clean; it takes a
            micro-batch that knows how to compute its loss.
        scale: loss scale of that gradient.
    """
    tracer = Tracer(model, len(micro.sample_ids))
    terms, took_gradients = None, False
    with tracer.watching(), torch.set_grad_enabled(bool(backward)):
        if micro.recompute is None:
            for call in micro.calls:
                call.again()
        else:
            terms = compute_again(model, micro)
            total = terms.total
            if backward and bool(torch.isfinite(total.detach())) and total.requires_grad:
                took_gradients = True
                tracer.watch_parameters()
                torch.autograd.grad(
                    total * scale,
                    [p for p in backward if p.requires_grad],
                    retain_graph=True,
                    allow_unused=True,
                )
    trace = tracer.read()
    fault = forward_fault(trace, loss_bad=loss_bad, sample_ids=micro.sample_ids)
    # A NaN that a later backward step selects away, as a ReLU's does, harms nobody.
    harmed = (s.look.kind for _, s, _ in trace.backward if s.of_parameter)
    if fault is None and took_gradients and any(harmed):
        fault = backward_fault(trace)
    if fault is None and terms is not None and not bool(torch.isfinite(terms.total.detach())):
        fault = ForwardFault(origin=Origin.LOSS)
    return Rerun(trace, fault, terms)


def another_loss(micro: MicroBatch, again: LossTerms) -> str:
    """What to say where computing the loss again gave another one; empty where it is the same."""
    if micro.total is None:
        return ""
    then, now = float(micro.total), float(again.total.detach())
    both_bad = not math.isfinite(then) and not math.isfinite(now)
    if both_bad or abs(then - now) <= _NEAR * max(abs(then), 1e-3):
        return ""
    return (
        f"recompute gave the loss {now:.4g} and not {then:.4g}: a lambda in a loop sees the loop's "
        "variables as they are now; give functools.partial(compute, batch)"
    )


def compute_again(model: nn.Module, micro: MicroBatch) -> LossTerms:
    """The loss of a micro-batch that knows how, with the random numbers and precision of then."""
    assert micro.recompute is not None
    if micro.start is not None:
        micro.start.rewind()
    with precision_of(model, micro.autocast):
        return terms_of(micro.recompute())


@contextmanager
def left_alone(model: nn.Module, before: Mapping[str, Tensor]) -> Generator[None]:
    """Whatever runs in here leaves the model and the random sequences as they were found.

    Buffers, modes and plain attributes of modules, parameters' ``.grad`` and the random states of
    Python, NumPy and torch come back; under ``DistributedDataParallel`` nothing is exchanged.

    Args:
        model: the one that is run.
        before: buffers by name to begin with, as they were before the step.
    """
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    settings = [(module, _plain_attributes(module)) for module in model.modules()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    sequences = _Sequences()
    now = dict(model.named_buffers())
    for name in now.keys() & before.keys():
        _put(now[name], before[name])
    for parameter, _ in gradients:
        parameter.grad = None
    with ExitStack() as stack:
        for context in _surroundings(model):
            stack.enter_context(context)
        try:
            yield
        finally:
            _reshard(model)
            for module, name, buffer, kept in buffers:
                module._buffers[name] = buffer
                _put(buffer, kept)
            for module, attributes in settings:
                module.__dict__.update(attributes)
            for parameter, gradient in gradients:
                parameter.grad = gradient
            sequences.rewind()


class _Sequences:
    """Random states of everything that a forward pass may draw from."""

    def __init__(self) -> None:
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        self._torch = RandomState.now(list(devices))
        self._python, self._numpy = random.getstate(), np.random.get_state()

    def rewind(self) -> None:
        self._torch.rewind()
        random.setstate(self._python)
        np.random.set_state(self._numpy)


def _surroundings(model: nn.Module) -> Generator[AbstractContextManager[Any]]:
    for module in model.modules():
        if isinstance(module, nn.parallel.DistributedDataParallel):
            yield _no_exchange(module)
    yield torch.autograd.set_detect_anomaly(False)
    yield warnings.catch_warnings(action="ignore")
    # What is compiled does not call the hooks of its parts.
    compiles = "torch._dynamo" in sys.modules
    yield torch.compiler.set_stance("force_eager") if compiles else nullcontext()


@contextmanager
def _no_exchange(ddp: nn.parallel.DistributedDataParallel) -> Generator[None]:
    before = ddp.require_backward_grad_sync, ddp.require_forward_param_sync
    ddp.require_backward_grad_sync = ddp.require_forward_param_sync = False
    try:
        yield
    finally:
        ddp.require_backward_grad_sync, ddp.require_forward_param_sync = before


def _reshard(model: nn.Module) -> None:
    """Weights that FSDP2 gathered for a forward pass without a backward pass would stay as they
    are now, whatever the optimizer does to the shards.
    """
    for module in model.modules():
        if "FSDPModule" in (kind.__name__ for kind in type(module).__mro__):
            module.reshard()  # type: ignore[operator]


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    kinds = (bool, int, float, str, type(None))
    return {name: value for name, value in vars(module).items() if type(value) in kinds}


def _put(buffer: Tensor, kept: Tensor) -> None:
    """Without counting as a change: a graph that is still to be run backwards may hold it."""
    if buffer.shape == kept.shape:
        buffer.data.copy_(kept)
