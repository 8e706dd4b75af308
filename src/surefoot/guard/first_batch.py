"""One batch, run as often as need be in one precision or another, and a model left as it was."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Literal, TypeAlias, cast

import torch
from torch import Tensor, nn

from surefoot.errors import UsageError
from surefoot.guard.deviation import Passed
from surefoot.guard.locate import backward_fault, forward_fault
from surefoot.guard.rerun import left_alone
from surefoot.guard.trace import Trace, Tracer
from surefoot.records import ForwardFault, Origin
from surefoot.shapes import LossTerms

__all__ = ["Compute", "FirstBatch", "Half", "Precision", "rounded"]

Half: TypeAlias = Literal["bf16", "fp16"]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]
Compute: TypeAlias = Callable[[], Tensor | LossTerms]

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class FirstBatch:
    """Forward and backward passes over one batch, each with the same random numbers.

    Args:
        model: what is run; its ``.grad``, buffers, modes and the random sequences do not change.
        compute: forward pass and loss.
    """

    def __init__(self, model: nn.Module, compute: Compute) -> None:
        self._model, self._compute = model, compute
        self._learning = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._device = next(model.parameters()).device

    def run(self, precision: Precision, scale: float = 1.0) -> Passed:
        """One pass; its true gradient, however the loss was scaled.

        Raises:
            UsageError: the loss depends on no parameter.
        """
        with left_alone(self._model, {}):
            return self._run(precision, scale)

    def run_rounded(self, half: Half) -> Passed:
        """A pass in float32 with the weights that ``half`` can hold.

        Dropout on a GPU draws other numbers in another precision; so it does here.
        """
        with rounded(self._learning.values(), _DTYPES[half]), left_alone(self._model, {}):
            if self._device.type != "cpu":
                torch.rand(4096, device=self._device)
            return self._run("fp32", 1.0)

    def where(self, half: Half, scale: float) -> str:
        """Where the first value that is not finite comes up, and what stands there in float32."""
        trace, finite = self._trace(half, scale)
        exact, _ = self._trace("fp32", None)
        fault = forward_fault(trace, loss_bad=not finite)
        if fault is None:
            fault = backward_fault(trace) if finite else ForwardFault(origin=Origin.LOSS)
        if fault.origin is not Origin.MODULE:
            return f"in {half}, {fault}" + (f", at a loss scale of {scale:g}" if finite else "")
        outputs = [v.outputs for v in exact.visits if v.name == fault.module]
        ranges = [sight.look.range for sights in outputs for sight in sights]
        reach = max((max(-r.minimum, r.maximum) for r in ranges), default=math.nan)
        return (
            f"in {half}, {fault}; its output reaches {reach:.3g} in float32, and {half} ends at "
            f"{torch.finfo(_DTYPES[half]).max:.6g}"
        )

    def _run(self, precision: Precision, scale: float) -> Passed:
        total = self._forward(precision)
        found = self._gradients(total * scale)
        if not found:
            raise UsageError(
                "check_precision: the loss depends on no parameter of the model that is not "
                "frozen; pass the model that compute() trains."
            )
        gradients = {name: gradient.float() / scale for name, gradient in found.items()}
        return Passed.of(float(total.detach()), gradients)

    def _forward(self, precision: Precision) -> Tensor:
        half = _DTYPES.get(precision)
        with torch.autocast(self._device.type, dtype=half, enabled=half is not None):
            loss = self._compute()
        return loss.total if isinstance(loss, LossTerms) else loss

    def _gradients(self, total: Tensor) -> dict[str, Tensor]:
        # Not backward(): .grad stays as it is, and no hook on it fires.
        found = torch.autograd.grad(total, list(self._learning.values()), allow_unused=True)
        pairs = zip(self._learning, cast(Sequence[Tensor | None], found), strict=True)
        return {name: gradient for name, gradient in pairs if gradient is not None}

    def _trace(self, precision: Precision, scale: float | None) -> tuple[Trace, bool]:
        """A pass under hooks, with its gradient where there is a scale; and if its loss is
        finite.
        """
        tracer = Tracer(self._model)
        with left_alone(self._model, {}), tracer.watching():
            total = self._forward(precision)
            finite = math.isfinite(float(total.detach()))
            if scale is not None and finite:
                tracer.watch_parameters()
                self._gradients(total * scale)
        return tracer.read(), finite


@contextmanager
def rounded(weights: Iterable[Tensor], dtype: torch.dtype) -> Generator[None]:
    """In here the weights are those that ``dtype`` can hold; afterwards they are what they were.

    >>> weight = torch.tensor([1.001])
    >>> with rounded([weight], torch.bfloat16):
    ...     print(weight)
    tensor([1.])
    >>> weight
    tensor([1.0010])
    """
    kept = [(weight, weight.detach().clone()) for weight in weights]
    try:
        with torch.no_grad():
            for weight, _ in kept:
                weight.copy_(weight.to(dtype))
        yield
    finally:
        with torch.no_grad():
            for weight, before in kept:
                weight.copy_(before)
