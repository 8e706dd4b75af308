"""From a clipping rule's proposal to what the apply step needs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from surefoot.guard.clip import Clip, NormClip, Seen, Shortening
from surefoot.guard.measure import Measured, ParameterTable, local, tensor_norms

__all__ = ["Shortened", "Shortener"]


class Shortened(NamedTuple):
    """What is left to do, and how much shorter the gradient will be for it."""

    divisor: Tensor
    """0-d: the true gradient is still to be divided by it."""
    effective: Tensor
    """0-d: norm before over norm after, 1 or more."""


class Shortener:
    """Asks the rule, and does what does not fit into the kernel: factors and limits."""

    def __init__(self, clip: Clip | None, table: ParameterTable) -> None:
        self.clip, self._table = clip, table

    def on_host(self, measured: Measured, norm: float, unit: float) -> tuple[float, float]:
        """Divisor and effective divisor, for a gradient of this true norm."""
        if self.clip is None:
            return 1.0, 1.0
        if isinstance(self.clip, NormClip):
            divisor = self.clip.divisor(norm)
            return divisor, divisor
        unit_tensor = torch.as_tensor(unit, device=measured.total.device)
        done = self.on_device(measured, measured.total / unit, unit_tensor)
        return float(done.divisor), float(done.effective)

    def on_device(self, measured: Measured, norm: Tensor, unit: Tensor) -> Shortened:
        """The same without a read."""
        if self.clip is None:
            return Shortened(torch.ones_like(norm), torch.ones_like(norm))
        table, norms = self._table, measured.norms / unit
        seen = Seen(
            norm=norm,
            norms=norms,
            parameters=[table.parameters[i] for i in measured.indices],
            groups=[table.groups[i] for i in measured.indices],
        )
        proposed = self.clip.propose(seen)
        return self._carry_out(proposed, measured, seen, unit)

    def _carry_out(
        self, proposed: Shortening, measured: Measured, seen: Seen, unit: Tensor
    ) -> Shortened:
        left, parts = seen.norm, [local(g) for g in measured.gradients]
        if proposed.factors is not None:
            factors = proposed.factors.to(seen.norms)
            torch._foreach_mul_(parts, list(factors.unbind()))
            left = torch.linalg.vector_norm(seen.norms * factors)
        if proposed.limit is not None:
            limits = [(proposed.limit * unit).to(g.dtype) for g in parts]
            torch._foreach_minimum_(parts, limits)
            torch._foreach_maximum_(parts, [-limit for limit in limits])
            left = torch.linalg.vector_norm(tensor_norms(measured.gradients)) / unit
        effective = proposed.divisor * seen.norm / left.clamp(min=1e-30)
        return Shortened(proposed.divisor, torch.clamp(effective, min=1.0))

    def learn(self, norm: Tensor | float, good: Tensor | bool) -> None:
        """Let the rule see an accepted step's norm."""
        if self.clip is None or isinstance(self.clip, NormClip):
            return
        norm = torch.as_tensor(norm, dtype=torch.float32)
        self.clip.learn(norm, torch.as_tensor(good, device=norm.device))

    def state_dict(self) -> dict[str, Any]:
        """What the rule has learnt."""
        return {} if self.clip is None else self.clip.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; a state of another rule is left out."""
        if self.clip is not None and state.keys() == self.clip.state_dict().keys():
            self.clip.load_state_dict(state)
