"""The same judgement inside somebody else's loop: whoever calls ``optimizer.step()``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from surefoot.errors import UsageError
from surefoot.guard.apply import folds, seed_momentum
from surefoot.guard.arrival import Arrival, LazyRecord
from surefoot.guard.blame import all_finite
from surefoot.guard.buffers import BufferKeeper
from surefoot.guard.clip import Clip, as_clip
from surefoot.guard.measure import Measured, ParameterTable
from surefoot.guard.policy import Policy
from surefoot.guard.shorten import Shortener
from surefoot.guard.verdict import Facts, Tally, escalate, learning_rates, record_of
from surefoot.records import StepRecord

__all__ = ["Attachment", "attach"]

_KEY = "surefoot"


def attach(
    optimizer: torch.optim.Optimizer,
    model: nn.Module | None = None,
    *,
    clip: float | Clip | Sequence[Clip] | None = None,
    policy: Policy | None = None,
    on_record: Callable[[StepRecord], object] | None = None,
) -> Attachment:
    """Guard every ``optimizer.step()`` from here on, whoever calls it.

    A step whose gradients are not finite leaves weights, optimizer state and the model's buffers
    as they were; the loop that called it goes on. Works for every torch optimizer, with and without
    a GradScaler, because torch leaves a parameter without gradient alone.

    Args:
        optimizer: the one that the loop steps.
        model: gives parameters their names and buffers their protection; without it parameters are
            numbered and buffers are on their own.
        clip: as for :class:`~surefoot.guard.Guard`; None leaves clipping to the loop.
        policy: what happens when something is wrong.
        on_record: called with the record of every step, e.g. ``journal.write``.

    >>> model = nn.Linear(2, 1)
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> attachment = attach(optimizer, model)
    >>> model(torch.full((1, 2), torch.inf)).sum().backward()
    >>> optimizer.step()
    >>> print(attachment.last)
    step 0: the step was refused; everything is as it was before it: a gradient was NaN or Inf in \
weight (Inf)
    """
    if _KEY in optimizer.__dict__:
        raise UsageError(
            "surefoot.attach: this optimizer is guarded already; detach() the first attachment."
        )
    return Attachment(optimizer, model or nn.Module(), as_clip(clip), policy or Policy(), on_record)


class Attachment:
    """A guard that sits in an optimizer's step hooks. Made by :func:`attach`."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        clip: Clip | None,
        policy: Policy,
        on_record: Callable[[StepRecord], object] | None,
    ) -> None:
        self._optimizer, self._policy, self._on_record = optimizer, policy, on_record
        self._table = ParameterTable(model, optimizer)
        self._buffers = BufferKeeper(model, repair=True)
        self._shortener = Shortener(clip, self._table)
        self._folds = folds(optimizer)
        self._on_device = self._folds and self._table.device.type != "cpu"
        self._hidden: list[tuple[Tensor, Tensor]] = []
        self._borrowed: dict[str, Tensor | None] = {}
        self._pending: LazyRecord | None = None
        self.tally = Tally()
        self.last: StepRecord | None = None
        optimizer.__dict__[_KEY] = self
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
            optimizer.register_state_dict_post_hook(self._save),
            optimizer.register_load_state_dict_pre_hook(self._load),
        ]

    def detach(self) -> None:
        """Take every hook off; optimizer and model are as they were before :func:`attach`."""
        self._settle()
        for handle in self._handles:
            handle.remove()
        self._buffers.remove()
        self._optimizer.__dict__.pop(_KEY, None)

    # -- the step, from the hooks -----------------------------------------------------------------

    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if any(callable(a) for a in (*args, *kwargs.values())):
            raise UsageError(
                "surefoot.attach: optimizer.step(closure) computes its gradients inside the step, "
                "where nothing can be judged beforehand. Run the closure first, then step()."
            )
        self._put_back()  # what a step that raised left behind
        self._settle()
        if all(p.grad is None for p in self._table.parameters):
            return
        measured = self._table.measure()
        scale = optimizer.__dict__.get("grad_scale")  # a GradScaler leaves unscaling to the kernel
        if self._on_device and seed_momentum(optimizer):
            self._decide_on_device(measured, scale)
        else:
            self._decide_on_host(measured, 1.0 if scale is None else float(scale))

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._put_back()
        self._buffers.window_closed()

    def _facts(self, **known: Any) -> Facts:
        number, self.tally.step = self.tally.step, self.tally.step + 1
        rates = learning_rates(self._optimizer)
        return Facts(step=number, learning_rates=rates, loss_votes=False, **known)

    def _decide_on_host(self, measured: Measured, scale: float) -> None:
        facts = self._facts(total_norm=float(measured.total), unit=scale, scale=scale)
        if facts.good:
            norm = facts.total_norm / scale
            divisor, effective = self._shortener.on_host(measured, norm, scale)
            self._shortener.learn(norm, good=True)
            if divisor != 1.0:
                self._divide(measured, divisor, scale)
            facts = replace(facts, clip_divisor=effective)
        else:
            facts = replace(
                facts,
                norms=measured.norms.tolist(),
                names=[self._table.names[i] for i in measured.indices],
                elements_finite=all_finite(measured.gradients),
                buffers_moved=self._buffers.restore(),
            )
            self._hide()
        self._say(self._conclude(facts))

    def _divide(self, measured: Measured, divisor: float, scale: float) -> None:
        if self._folds:
            self._lend("grad_scale", torch.full_like(measured.total, divisor * scale).float())
        else:
            torch._foreach_div_(measured.gradients, divisor)

    def _decide_on_device(self, measured: Measured, scale: Tensor | None) -> None:
        total = measured.total.float()
        one = torch.ones_like(total)
        unit = one if scale is None else scale.to(total.device)
        good = total / unit < math.inf
        shortened = self._shortener.on_device(measured, total / unit, unit)
        found: Tensor | None = self._optimizer.__dict__.get("found_inf")
        bad = ~good if found is None else ~good | (found > 0)
        self._shortener.learn(total / unit, ~bad)
        self._lend("found_inf", bad.float())
        if self._shortener.clip is not None:
            self._lend("grad_scale", (shortened.divisor * unit).float())
        moved = self._buffers.restore(bad)
        arrival = Arrival(
            torch.cat([torch.stack([total, unit, shortened.effective]), measured.norms.float()])
        )
        facts = self._facts(
            names=[self._table.names[i] for i in measured.indices], buffers_moved=moved
        )

        def fetch() -> StepRecord:
            values = arrival.read()
            total, unit, divisor = values[:3]
            landed = replace(
                facts,
                total_norm=total,
                unit=unit,
                scale=unit,
                clip_divisor=divisor,
                norms=values[3:],
            )
            return self._conclude(landed)

        self._pending = LazyRecord(fetch)
        self.last = self._pending

    def _conclude(self, facts: Facts) -> StepRecord:
        self.tally.count(good=facts.good)
        return record_of(facts, self.tally)

    def _settle(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._say(pending)

    def _say(self, record: StepRecord) -> None:
        self.last = record
        if self._on_record is not None:
            self._on_record(record)
        escalate(record, self.tally, self._policy)

    # -- how the step is held back ----------------------------------------------------------------

    def _hide(self) -> None:
        """Without gradients the step that follows does nothing, whatever optimizer it is."""
        self._hidden = [(p, p.grad) for p in self._table.parameters if p.grad is not None]
        for parameter, _ in self._hidden:
            parameter.grad = None

    def _lend(self, name: str, value: Tensor) -> None:
        self._borrowed[name] = self._optimizer.__dict__.get(name)
        setattr(self._optimizer, name, value)

    def _put_back(self) -> None:
        for parameter, gradient in self._hidden:
            parameter.grad = gradient
        for name, value in self._borrowed.items():
            if value is None:
                self._optimizer.__dict__.pop(name, None)
            else:
                setattr(self._optimizer, name, value)
        self._hidden, self._borrowed = [], {}

    # -- the counters travel in the optimizer's own checkpoint -------------------------------------

    def _save(self, optimizer: Any, state: dict[str, Any]) -> None:
        self._settle()
        state[_KEY] = {"version": 1, "tally": asdict(self.tally)}

    def _load(self, optimizer: Any, state: dict[str, Any]) -> None:
        if _KEY in state:
            self.tally = Tally(**state[_KEY]["tally"])
