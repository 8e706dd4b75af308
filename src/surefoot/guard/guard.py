"""The guard around the optimizer step, for a loop of one's own."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from surefoot.errors import ConfigError, UsageError
from surefoot.guard.accumulation import Accumulation, as_terms
from surefoot.guard.apply import decides_on_device, device_of
from surefoot.guard.arrival import LazyRecord
from surefoot.guard.clip import Clip, as_clip
from surefoot.guard.kept import Recompute
from surefoot.guard.leftovers import GradientMark
from surefoot.guard.policy import Policy
from surefoot.guard.scale import LossScale
from surefoot.guard.stepper import Stepper
from surefoot.guard.together import (
    replicated_parts,
    several_ranks,
    trains_together,
    want_the_wrapper,
)
from surefoot.guard.verdict import Tally
from surefoot.records import StepRecord, Verdict
from surefoot.shapes import LossTerms

__all__ = ["Guard"]

_AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
_END = object()


class Guard:
    """Backward, accumulate, measure, judge, apply or refuse, zero: one call.

    A refused step leaves no trace: weights, optimizer state and counters, module buffers, and
    whatever was given to :meth:`schedule` and :meth:`average` are bit for bit as before it.

    Args:
        model: the module in training; the names of parameters and the buffers come from it.
        optimizer: any torch optimizer. Adam, AdamW, SGD and Adagrad with ``fused=True`` are
            unscaled, clipped and refused inside their own kernel.
        clip: largest global L2 norm of the true gradient, a rule of :mod:`surefoot.guard.clip`, or
            several that act one after the other; None for no clipping.
        accumulate: micro-batches per optimizer step; the gradient is their mean.
        amp: ``"bf16"``, ``"fp16"`` (with a dynamic loss scale) or None (float32).
        policy: what happens when something is wrong.
        decide: where the verdict falls. On the host it costs a read, which is free on the CPU and
            which an optimizer without a fused kernel needs; on the device it costs no
            synchronisation and the record arrives later. ``"auto"`` takes the device where it can.

    Raises:
        ConfigError: a setting that cannot work.

    >>> model = nn.Linear(2, 1)
    >>> guard = Guard(model, torch.optim.SGD(model.parameters(), lr=0.1), clip=1.0)
    >>> guard.step(model(torch.ones(4, 2)).mean()).applied
    True
    >>> print(guard.step(model(torch.full((4, 2), torch.nan)).mean()))
    step 1: the step was refused; everything is as it was before it: the loss was NaN or Inf; the \
model's own input was not finite: NaN in input[0]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        clip: float | Clip | Sequence[Clip] | None = None,
        accumulate: int = 1,
        amp: Literal["bf16", "fp16"] | None = None,
        policy: Policy | None = None,
        decide: Literal["auto", "host", "device"] = "auto",
    ) -> None:
        if accumulate < 1:
            raise ConfigError(f"accumulate={accumulate}: micro-batches per step, at least 1.")
        if amp is not None and amp not in _AMP:
            raise ConfigError(f"amp={amp!r}: 'bf16', 'fp16' or None.")
        device = device_of(optimizer)
        self.policy = policy or Policy()
        self._device, self._replicated = device, replicated_parts(model)
        together = trains_together(model)
        self._alone = want_the_wrapper(model) if several_ranks() and not together else None
        self._accumulate, self._amp = accumulate, amp
        self._stepper = Stepper(
            model,
            optimizer,
            clip=as_clip(clip),
            policy=self.policy,
            on_device=decides_on_device(optimizer, decide),
            together=together,
        )
        self._scale = LossScale(self.policy, device) if amp == "fp16" else None
        self._stepper.scale = self._scale
        self._window, self._mark = Accumulation(), GradientMark(self._stepper.table)
        self._last_batch = False

    @property
    def applied_steps(self) -> int:
        """Optimizer steps applied so far."""
        self._stepper.read()
        return self._stepper.tally.applied

    @property
    def refused_steps(self) -> int:
        """Optimizer steps refused so far."""
        self._stepper.read()
        return self._stepper.tally.refused

    @property
    def silent_parameters(self) -> tuple[str, ...]:
        """Names of the optimizer's parameters that never had a gradient: frozen by mistake?"""
        return self._stepper.table.silent

    @contextmanager
    def autocast(self) -> Generator[None]:
        """Forward passes run in here: mixed precision, and no gradient exchange before the last
        micro-batch of a window under ``DistributedDataParallel``.
        """
        if self._stepper.averages:
            self._stepper.settle()  # an average of buffers sees them before this forward moves them
        closes = self._last_batch or self._window.micro_batches + 1 == self._accumulate
        for ddp in self._replicated:
            ddp.require_backward_grad_sync = closes
        dtype = None if self._amp is None else _AMP[self._amp]
        self._stepper.inspector.begin(dtype)
        if dtype is None:
            precision = nullcontext()
        else:
            precision = torch.autocast(self._device.type, dtype=dtype)
        with precision:
            yield

    def batches(self, loader: Iterable[Any]) -> Iterator[Any]:
        """The loader's batches; the last one closes its window even when it is not full.

        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> guard = Guard(model, optimizer, accumulate=2)
        >>> [guard.step(model(x).mean()).verdict.value for x in guard.batches(torch.ones(3, 1, 2))]
        ['accumulated', 'applied', 'applied']
        """
        iterator = iter(loader)
        ahead = next(iterator, _END)
        while ahead is not _END:
            batch, ahead = ahead, next(iterator, _END)
            self._last_batch = ahead is _END
            yield batch
        self._last_batch = False
        self._stepper.settle()

    def step(
        self,
        loss: Tensor | LossTerms,
        *,
        sample_ids: Sequence[str] = (),
        recompute: Recompute | None = None,
    ) -> StepRecord:
        """One micro-batch: backward, and on the window's last one the whole step.

        Args:
            loss: a scalar, or named terms.
            sample_ids: names of the batch's samples; the record carries them.
            recompute: computes this loss again, called without arguments and only to look into a
                refusal; give ``functools.partial(compute, batch)``, for a lambda would see the next
                batch. It runs with the random numbers and the precision of then and must not call
                ``backward``.

        Returns:
            What happened. Where the verdict falls on the device the values are read when they are
            first looked at; the step is applied or refused already.

        Raises:
            TrainingDiverged: the policy's limit of refusals was reached.
            UsageError: no gradient can come from this loss, or none came, and none ever did. Once a
                step was applied, a batch without gradient is refused instead.
        """
        started = self._stepper.tally.applied > 0 and not self._stepper.together
        terms = as_terms(loss, may_be_constant=started)
        total = terms.total
        window = self._window
        if window.micro_batches and not window.poisoned and self._mark.changes():
            window.touched = True
        window.add(terms, total, sample_ids)
        inspector, scale = (
            self._stepper.inspector,
            1.0 if self._scale is None else self._scale.value,
        )
        inspector.end(total, sample_ids, recompute)
        # Where ranks train together the others wait for this one's gradients: backward runs.
        look = not (self._stepper.on_device or self._stepper.together)
        if look and not math.isfinite(float(total.detach())):
            if not window.poisoned:
                inspector.suspect(terms, float(scale))
            window.poison(sample_ids)
        if not window.poisoned and total.requires_grad:
            if window.micro_batches == 1:
                inspector.sample(terms, self._stepper.tally.step, scale)
            self._backward(total)
        if window.micro_batches < self._accumulate and not self._last_batch:
            self._mark.set()
            return self._accumulated(total)
        return self._close()

    def flush(self) -> StepRecord | None:
        """Close a window that is not full, and look the state through; call it at the end of a run.

        Returns:
            The window's record; or the last step's once more, where the state it left was bad and
            has gone back; or None.
        """
        record = self._close() if self._window.micro_batches else None
        return self._stepper.finish(record)

    def schedule(
        self, scheduler: torch.optim.lr_scheduler.LRScheduler
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Step this scheduler after every applied step, and only then; returns it.

        Raises:
            UsageError: a scheduler that steps on a validation metric.
        """
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise UsageError(
                "guard.schedule: ReduceLROnPlateau steps on a validation metric, which the guard "
                "does not see; call its step(metric) after validation instead."
            )
        self._stepper.schedulers.append(scheduler)
        return scheduler

    def average(
        self, averaged: torch.optim.swa_utils.AveragedModel
    ) -> torch.optim.swa_utils.AveragedModel:
        """Update this average after every applied step, and only then; returns it."""
        self._stepper.averages.append(averaged)
        self._stepper.protected.append(averaged)
        return averaged

    def keep_failures(self, folder: Path | str) -> None:
        """Keep refused steps in this folder, to be run again by :func:`~surefoot.guard.replay`.

        Of those that are looked into, the first eight and the latest stay, each with the inputs,
        the random states, and the weights as they were before it.

        Raises:
            ConfigError: the policy looks into no refusal.
        """
        self._stepper.inspector.keep_failures(folder)

    def state_dict(self) -> dict[str, Any]:
        """Counters, windows and loss scale, as plain values.

        Raises:
            UsageError: a window is open; its gradients are in no checkpoint.
        """
        if self._window.micro_batches:
            raise UsageError(
                f"guard.state_dict: {self._window.micro_batches} of {self._accumulate} "
                "micro-batches wait for their optimizer step and would be lost. Save after a step, "
                "or call guard.flush() first."
            )
        self._stepper.read()
        return {
            "version": 1,
            "tally": asdict(self._stepper.tally),
            "spikes": self._stepper.spikes.state_dict(),
            "clip": self._stepper.shortener.state_dict(),
            "recovery": self._stepper.recovery.state_dict(),
            "scale": None if self._scale is None else self._scale.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; a scale that this guard does not use is left out."""
        self._stepper.settle()
        self._stepper.tally = Tally(**state["tally"])
        self._stepper.spikes.load_state_dict(state["spikes"])
        self._stepper.shortener.load_state_dict(state["clip"])
        self._stepper.recovery.load_state_dict(state["recovery"])
        if self._scale is not None and state["scale"] is not None:
            self._scale.load_state_dict(state["scale"])

    def detach(self) -> None:
        """Take the guard's hooks off the model."""
        self._stepper.read()
        if self._alone is not None:
            self._alone.remove()
        self._stepper.buffers.remove()
        self._stepper.inspector.remove()

    def _backward(self, total: Tensor) -> None:
        if self._accumulate > 1:
            total = total / self._accumulate
        if self._scale is not None:
            total = total * self._scale.value.to(total.device)
        total.backward()

    def _close(self) -> StepRecord:
        window, self._window = self._window, Accumulation()
        return self._stepper.close(window, self._accumulate)

    def _accumulated(self, total: Tensor) -> StepRecord:
        number, micro = self._stepper.tally.step, self._window.micro_batches
        ids, total = tuple(self._window.sample_ids), total.detach()

        def fetch() -> StepRecord:
            return StepRecord(
                step=number,
                verdict=Verdict.ACCUMULATED,
                loss=float(total),
                micro_batches=micro,
                sample_ids=ids,
            )

        free = total.device.type == "cpu" and not self._stepper.on_device
        return fetch() if free else LazyRecord(fetch)
