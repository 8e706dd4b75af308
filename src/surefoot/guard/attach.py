"""The same judgement inside somebody else's loop: whoever calls ``optimizer.step()``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from surefoot.errors import UsageError
from surefoot.guard.accumulation import Accumulation
from surefoot.guard.apply import decides_on_device
from surefoot.guard.arrival import LazyRecord
from surefoot.guard.clip import Clip, as_clip
from surefoot.guard.hooked import HookedStep
from surefoot.guard.leftovers import LeftoverWatch
from surefoot.guard.policy import Policy
from surefoot.guard.scale import ForeignScale
from surefoot.guard.scaler_watch import ScalerWatch
from surefoot.guard.stepper import Stepper
from surefoot.guard.together import several_ranks, trains_together
from surefoot.guard.verdict import Tally
from surefoot.records import StepRecord
from surefoot.shapes import LossTerms

__all__ = ["Attachment", "attach"]

_KEY = "surefoot"


def attach(
    optimizer: torch.optim.Optimizer,
    model: nn.Module | None = None,
    *,
    clip: float | Clip | Sequence[Clip] | None = None,
    policy: Policy | None = None,
    scaler: torch.amp.GradScaler | None = None,
    on_record: Callable[[StepRecord], object] | None = None,
    decide: Literal["auto", "host", "device"] = "auto",
) -> Attachment:
    """Guard every ``optimizer.step()`` from here on, whoever calls it.

    A step whose gradients are not finite leaves weights, optimizer state and the model's buffers
    as they were, and a state that has gone bad goes back to the last good one; the loop that called
    it goes on. Works for every torch optimizer, because torch leaves a parameter without gradient
    alone, and with ``optimizer.step(closure)``.

    Args:
        optimizer: the one that the loop steps; a framework's wrapper around it will do.
        model: gives parameters their names and buffers their protection; without it parameters are
            numbered and buffers are on their own.
        clip: as for :class:`~surefoot.guard.Guard`; None leaves clipping to the loop.
        policy: what happens when something is wrong.
        scaler: the loop's GradScaler. It works without being told; told, its skipped steps are
            recorded as well, and calls in the wrong order are answered with the line to move.
        on_record: called with the record of every step, e.g. ``journal.write``.
        decide: as for :class:`~surefoot.guard.Guard`.

    Raises:
        UsageError: no torch optimizer, one that is guarded already, or ``LBFGS``.

    >>> model = nn.Linear(2, 1)
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> attachment = attach(optimizer, model)
    >>> model(torch.full((1, 2), torch.inf)).sum().backward()
    >>> optimizer.step()
    >>> print(attachment.last)
    step 0: the step was refused; everything is as it was before it: a gradient was NaN or Inf in \
weight (Inf); the model's own input was not finite: Inf in input[0]
    """
    inner = _innermost(optimizer)
    _refuse_others(inner)
    # Not "model or": a compiled module has a length that raises.
    model, policy = nn.Module() if model is None else model, policy or Policy()
    stepper = Stepper(
        model,
        inner,
        clip=as_clip(clip),
        policy=policy,
        on_device=decides_on_device(inner, decide),
        together=trains_together(model) or several_ranks(),
        repair=True,
    )
    scale = ForeignScale(inner, scaler, policy, stepper.table.device)
    return Attachment(stepper, scale, scaler, on_record)


def _refuse_others(optimizer: torch.optim.Optimizer) -> None:
    if isinstance(optimizer, torch.optim.LBFGS):
        raise UsageError(
            "surefoot.attach: LBFGS computes gradients many times inside one step, where nothing "
            "can be judged beforehand. Use another optimizer, or Guard around each evaluation."
        )
    if _KEY in optimizer.__dict__:
        raise UsageError(
            "surefoot.attach: this optimizer is guarded already; detach() the first attachment."
        )


class Attachment:
    """A guard that sits in an optimizer's step hooks. Made by :func:`attach`."""

    def __init__(
        self,
        stepper: Stepper,
        scale: ForeignScale,
        scaler: torch.amp.GradScaler | None,
        on_record: Callable[[StepRecord], object] | None,
    ) -> None:
        self._stepper, self._on_record = stepper, on_record
        self._scale = stepper.scale = scale
        optimizer = stepper.optimizer
        self._hand = HookedStep(optimizer, stepper.table, lambda: stepper.recovery.rates(optimizer))
        stepper.hand = self._hand
        self._leftovers = LeftoverWatch(stepper.table)
        self._window = Accumulation()
        self._under_way: StepRecord | None = None
        self._unsaid: StepRecord | None = None
        self.last: StepRecord | None = None
        """Of the last step; on a GPU its values are read when they are first looked at."""
        self._scaler_watch = None
        if scaler is not None and scaler.is_enabled():
            self._scaler_watch = ScalerWatch(scaler, stepper.table, self._scaler_skipped)
        optimizer.__dict__[_KEY] = self
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
            optimizer.register_state_dict_post_hook(self._save),
            optimizer.register_load_state_dict_pre_hook(self._load),
        ]

    @property
    def tally(self) -> Tally:
        """How many steps were applied and refused so far."""
        self._read()
        return self._stepper.tally

    @property
    def silent_parameters(self) -> tuple[str, ...]:
        """Names of the optimizer's parameters that never had a gradient: frozen by mistake?"""
        return self._stepper.table.silent

    def observe(self, loss: Tensor | LossTerms | float, *, sample_ids: Sequence[str] = ()) -> None:
        """Tell the loss of a micro-batch before its step, which no hook can see.

        Then records carry it, and spikes and divergence are judged by it instead of by the
        gradient's norm alone. Of ``optimizer.step(closure)`` the loss is known without it.

        Args:
            loss: a scalar, or named terms; it is not changed.
            sample_ids: names of the batch's samples; the record carries them.
        """
        with torch.no_grad():
            terms = loss if isinstance(loss, LossTerms) else _as_terms(loss)
            self._window.add(terms, terms.total, sample_ids)
            self._stepper.inspector.end(terms.total, sample_ids, None)

    def keep_failures(self, folder: Path | str) -> None:
        """As :meth:`surefoot.guard.Guard.keep_failures`.

        Raises:
            ConfigError: the policy looks into no refusal.
        """
        self._stepper.inspector.keep_failures(folder)

    def protect(
        self, averaged: torch.optim.swa_utils.AveragedModel
    ) -> torch.optim.swa_utils.AveragedModel:
        """Roll an average that the loop updates itself back with the weights; returns it.

        >>> model = nn.Linear(2, 1)
        >>> attachment = attach(torch.optim.SGD(model.parameters(), lr=0.1), model)
        >>> ema = attachment.protect(torch.optim.swa_utils.AveragedModel(model))
        """
        self._stepper.protected.append(averaged)
        return averaged

    def detach(self) -> None:
        """Take every hook off; optimizer and model are as they were before :func:`attach`."""
        self._hand.put_back()
        self._read()
        self._say()
        for handle in self._handles:
            handle.remove()
        if self._scaler_watch is not None:
            self._scaler_watch.remove()
        self._stepper.buffers.remove()
        self._stepper.inspector.remove()
        self._stepper.optimizer.__dict__.pop(_KEY, None)

    # -- the step, from the hooks -----------------------------------------------------------------

    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        self._hand.put_back()  # what a step that raised left behind
        changed = self._run_closure(args, kwargs)
        if self._scaler_watch is not None:
            self._scaler_watch.reached = True
        self._judge()
        return changed

    def _run_closure(self, args: Any, kwargs: Any) -> Any:
        """Gradients that are computed inside the step are computed now; the step gets the loss."""
        closures = [a for a in (*args, *kwargs.values()) if callable(a)]
        if not closures:
            return None
        told = self._window.micro_batches
        with torch.enable_grad():
            loss: Any = closures[0]()
        number = isinstance(loss, float) or (isinstance(loss, Tensor) and loss.numel() == 1)
        if number and self._window.micro_batches == told:  # it did not tell its loss itself
            self.observe(loss)
        known = lambda a: (lambda: loss) if callable(a) else a  # noqa: E731
        return tuple(map(known, args)), {name: known(a) for name, a in kwargs.items()}

    def _judge(self) -> None:
        stale = self._settle()
        window, self._window = self._window, Accumulation()
        self._stepper.gradients_kept = self._leftovers.before(window.micro_batches)
        if any(p.grad is not None for p in self._stepper.table.parameters):
            self._under_way = self._stepper.decide(window, window.micro_batches or 1, stale=stale)

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._hand.put_back()
        self._leftovers.after()
        record, self._under_way = self._under_way, None
        if record is None:
            return
        try:
            self._stepper.follow(record)
        finally:
            self.last = self._unsaid = record
            if not (isinstance(record, LazyRecord) and record.pending):
                self._say()
            self._stepper.buffers.window_closed()

    def _scaler_skipped(self) -> None:
        self._scale.skipped = True
        try:
            self._judge()
        finally:
            self._scale.skipped = False
        self._after(None, (), {})

    def _settle(self) -> bool:
        """Follow the step whose verdict is still on its way; True if that was a rollback."""
        try:
            return self._stepper.settle()
        finally:
            self._say()

    def _read(self) -> None:
        """The same, but for what has to wait for the next step because one rank alone may ask."""
        if self._stepper.together:
            self._stepper.read()
        else:
            self._settle()

    def _say(self) -> None:
        record, self._unsaid = self._unsaid, None
        if record is not None and self._on_record is not None:
            self._on_record(record)

    # -- the guard's state travels in the optimizer's own checkpoint -------------------------------

    def _save(self, optimizer: Any, state: dict[str, Any]) -> None:
        self._read()
        state[_KEY] = {
            "version": 2,
            "tally": asdict(self._stepper.tally),
            "spikes": self._stepper.spikes.state_dict(),
            "clip": self._stepper.shortener.state_dict(),
            "recovery": self._stepper.recovery.state_dict(),
        }

    def _load(self, optimizer: Any, state: dict[str, Any]) -> None:
        saved = state.get(_KEY)
        if saved is None:
            return
        self._settle()
        stepper = self._stepper
        stepper.tally = Tally(**saved["tally"])
        if saved["version"] >= 2:
            stepper.spikes.load_state_dict(saved["spikes"])
            stepper.shortener.load_state_dict(saved["clip"])
            stepper.recovery.load_state_dict(saved["recovery"])


def _innermost(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer whose ``step`` runs the hooks, out of a framework's wrapper."""
    for name in ("optimizer", "_optimizer"):
        inner = getattr(optimizer, "__dict__", {}).get(name)
        if isinstance(inner, torch.optim.Optimizer):
            return _innermost(inner)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(
            f"surefoot.attach: a torch.optim.Optimizer was expected, not {type(optimizer).__name__}"
            "; attach before it is wrapped."
        )
    return optimizer


def _as_terms(loss: Tensor | float) -> LossTerms:
    tensor = loss if isinstance(loss, Tensor) else torch.tensor(float(loss))
    if tensor.numel() != 1:
        raise UsageError(
            f"attachment.observe: the loss has shape {tuple(tensor.shape)}; a scalar was expected. "
            "Reduce it with .mean() or .sum() first."
        )
    return LossTerms({"loss": tensor.reshape(())}, {})
