"""The loss scale of fp16 training, on the device.

Dynamic loss scaling as in Micikevicius et al. 2018, "Mixed Precision Training", section 3.2, with
the update rule of torch.amp.GradScaler and, beyond it, a floor and a ceiling: without a floor a few
hundred NaN steps drive the scale to exactly 0, and clean gradients become NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from surefoot.guard.policy import Policy

__all__ = ["ForeignScale", "LossScale"]


class LossScale:
    """A scale that grows while steps are clean and is backed off when gradients overflow."""

    def __init__(self, policy: Policy, device: torch.device) -> None:
        self._policy = policy
        self.value = torch.full((), policy.initial_scale, dtype=torch.float32, device=device)
        self._clean_steps = torch.zeros((), dtype=torch.int32, device=device)

    @property
    def held(self) -> Tensor:
        """What the gradients in memory still have to be divided by."""
        return self.value

    @property
    def floor(self) -> float:
        """The scale never goes below it."""
        return self._policy.min_scale

    found_inf: Tensor | None = None
    """Nobody else judges these gradients."""

    def update(self, *, overflow: Tensor, freeze: Tensor) -> None:
        """After a step: back off, count, or grow.

        Args:
            overflow: 0-d bool, gradients were not finite.
            freeze: 0-d bool, the loss itself was not finite; no scale is to blame, nothing moves.
        """
        scale, clean = self.value.clone(), self._clean_steps.clone()
        policy = self._policy
        torch._amp_update_scale_(
            scale,
            clean,
            overflow.to(torch.float32),
            policy.growth_factor,
            policy.backoff_factor,
            policy.growth_interval,
        )
        scale.clamp_(policy.min_scale, policy.max_scale)
        # New tensors, never in place: the old value may still be on its way to the host.
        self.value = torch.where(freeze, self.value, scale)
        self._clean_steps = torch.where(freeze, self._clean_steps, clean)

    def state_dict(self) -> dict[str, Any]:
        """The scale and the number of clean steps since it last moved."""
        return {"scale": float(self.value), "clean_steps": int(self._clean_steps)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.value = torch.full_like(self.value, state["scale"])
        self._clean_steps = torch.full_like(self._clean_steps, state["clean_steps"])


class ForeignScale:
    """The scale of a GradScaler that is not ours, where there is one; it moves by itself.

    A scaler leaves unscaling to a fused kernel by ``optimizer.grad_scale``; before any other
    optimizer it has divided the gradients already.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None,
        policy: Policy,
        device: torch.device,
    ) -> None:
        self._optimizer, self._policy = optimizer, policy
        self._scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self._one = torch.ones((), device=device)
        self.skipped = False
        """The scaler refused the step that is judged now; its optimizer was not called."""

    @property
    def _lent(self) -> Tensor | None:
        return self._optimizer.__dict__.get("grad_scale")

    @property
    def held(self) -> Tensor:
        """What the gradients in memory still have to be divided by."""
        return self._one if self._lent is None else self._lent

    @property
    def value(self) -> Tensor:
        """The scale as far as it is known."""
        known = None if self._scaler is None else self._scaler._scale
        return self.held if known is None else known

    @property
    def floor(self) -> float | None:
        """From here on down an overflow is not the scale's fault; None: there is no scale."""
        known = self._scaler is not None or self._lent is not None
        return self._policy.min_scale if known else None

    @property
    def found_inf(self) -> Tensor | None:
        """The scaler's own verdict, above 0: it saw a gradient that was not finite."""
        return self._one if self.skipped else self._optimizer.__dict__.get("found_inf")

    def update(self, *, overflow: Tensor, freeze: Tensor) -> None:
        """The scaler moves by itself, but by what it saw on this rank alone: where the gradient was
        bad on another one its scale would part from theirs. It is told here.
        """
        if self._scaler is None:
            return
        seen = self._scaler._per_optimizer_states[id(self._optimizer)]["found_inf_per_device"]
        for found in seen.values():
            found.copy_(torch.maximum(found, overflow.to(found)))
