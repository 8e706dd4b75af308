"""Is this step's loss or gradient far outside what the accepted steps were like?"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from surefoot.guard.policy import Policy
from surefoot.guard.window import DeviceWindow, HostWindow

__all__ = ["DeviceSpikes", "HostSpikes", "Spikes"]

_SURE = 5
"""Steps in a row half as far off as a spike are no accident either."""


class Spikes(NamedTuple):
    """What is a spike, how long it has been going on, and what is not back yet."""

    loss: bool
    gradient: bool
    streak: int
    """Steps in a row with a spike, this one counted."""
    loss_away: bool
    """Half as far above as a spike: after one, the loss has not come back."""
    gradient_away: bool
    """The same of the gradient, on either side: in a dead network it is far below."""
    usual_norm: float
    """What a spike's gradient is shortened to: at the edge of being one."""

    def refuses(self, policy: Policy) -> bool:
        """Whether the step is refused for it. A level that stays is no spike but the new level."""
        limit = policy.max_consecutive_spikes
        asked = policy.spike in ("refuse", "raise")
        return asked and (self.loss or self.gradient) and self.streak <= limit


class HostSpikes:
    """Windows of the loss and of the gradient norm, where reading is free."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        size, warmup = policy.window_size, policy.window_warmup
        self._windows = [HostWindow(size=size, warmup=warmup) for _ in range(2)]
        self._streak, self._away = 0, [0, 0]

    def judge(self, loss: float, norm: float) -> Spikes:
        """Look at a step before it is applied; the windows do not move."""
        policy, found, far = self._policy, [False, False], [0.0, 0.0]
        for i, (window, value) in enumerate(zip(self._windows, (loss, norm), strict=True)):
            far[i] = window.deviation(value) / policy.spike_deviation
            self._away[i] = self._away[i] + 1 if far[i] > 0.5 else 0
            sure = far[i] > 1.0 or self._away[i] >= _SURE
            found[i] = sure and value > policy.spike_ratio * window.median()
        self._streak = self._streak + 1 if any(found) else 0
        return Spikes(
            loss=found[0],
            gradient=found[1],
            streak=self._streak,
            usual_norm=policy.spike_ratio * self._windows[1].median(),
            loss_away=far[0] > 0.5,
            gradient_away=abs(far[1]) > 0.5 or norm == 0.0,
        )

    def accept(self, loss: float, norm: float) -> None:
        """The step was applied: its numbers belong to the windows."""
        self._windows[0].accept(loss)
        self._windows[1].accept(norm)

    def forget(self) -> None:
        """What was usual is so no longer: start the windows anew."""
        self.load_state_dict({"windows": [{"logs": []}] * 2, "streak": 0})

    def state_dict(self) -> dict[str, Any]:
        """Both windows, the streak, and how long each has been away."""
        windows = [w.state_dict() for w in self._windows]
        return {"windows": windows, "streak": self._streak, "away": list(self._away)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`, on this side or the other."""
        for window, saved in zip(self._windows, state["windows"], strict=True):
            window.load_state_dict(saved)
        self._streak, self._away = state["streak"], list(state.get("away", [0, 0]))


class DeviceSpikes:
    """The same on the device, without a synchronisation."""

    def __init__(self, policy: Policy, device: torch.device) -> None:
        self._policy = policy
        size, warmup = policy.window_size, policy.window_warmup
        self._window = DeviceWindow(2, size=size, warmup=warmup, device=device)
        self._streak = torch.zeros((), dtype=torch.int64, device=device)
        self._away = torch.zeros(2, dtype=torch.int64, device=device)

    def watch(
        self, loss: Tensor, norm: Tensor, bad: Tensor, loss_votes: bool
    ) -> tuple[Tensor, Tensor]:
        """:meth:`judge` and :meth:`accept` a step; of one that is ``bad`` nothing is a spike."""
        values = torch.stack([loss if loss_votes else torch.full_like(loss, torch.nan), norm])
        found, usual = self.judge(values)
        self.accept(values, ~(bad | found[2]))
        return found & ~bad, usual

    def judge(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """What :class:`Spikes` says of loss and norm, 2.

        Returns:
            5, bool: which are spikes, whether to refuse for it, which are away; and the usual norm.
        """
        policy = self._policy
        far = self._window.deviation(values) / policy.spike_deviation
        limits = policy.spike_ratio * self._window.median()
        self._away = torch.where(far > 0.5, self._away + 1, 0)
        found = ((far > 1.0) | (self._away >= _SURE)) & (values > limits)
        self._streak = torch.where(found.any(), self._streak + 1, 0)
        refuse = found.any() & (self._streak <= policy.max_consecutive_spikes)
        refuse &= policy.spike in ("refuse", "raise")
        away = [far[0] > 0.5, (far[1].abs() > 0.5) | (values[1] == 0.0)]
        return torch.stack([*found, refuse, *away]), limits[1]

    def accept(self, values: Tensor, good: Tensor) -> None:
        """Where the step was applied its numbers belong to the window."""
        self._window.accept(values, good)

    def forget(self) -> None:
        """See :meth:`HostSpikes.forget`."""
        self.load_state_dict({"windows": [{"logs": []}] * 2, "streak": 0})

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`HostSpikes.state_dict` gives."""
        windows, away = self._window.state_dict(), self._away.tolist()
        return {"windows": windows, "streak": int(self._streak), "away": away}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`, on this side or the other."""
        self._window.load_state_dict(state["windows"])
        self._streak = torch.full_like(self._streak, state["streak"])
        away = state.get("away", [0, 0])
        self._away = torch.tensor(away, dtype=torch.int64, device=self._away.device)
