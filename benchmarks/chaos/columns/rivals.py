"""Other guards, added to the hand-written loop as their documentation says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from benchmarks.chaos.columns.hand import Amp

if TYPE_CHECKING:
    from benchmarks.chaos.run import Run

__all__ = ["Arc", "StabilityGuard", "ZClip"]


class Arc(Amp):
    """arc-training: one call between backward and the step."""

    needs = ("arc",)
    fp16 = "can"

    def __init__(self) -> None:
        super().__init__("arc", "ARC")

    def begin(self, run: Run) -> None:
        """The controller is made."""
        import arc

        super().begin(run)
        config = arc.ControllerConfig(gradient_accumulation_steps=run.setting.accumulate)
        scaler = self.scaler if self.half else None
        self._controller = arc.Controller(self.net, self.optimizer, config=config, scaler=scaler)
        self._action: Any = None

    def see(self, loss: Tensor, ids: Tensor) -> None:
        """The controller looks; it unscales by itself."""
        self._action = self._controller.step(loss)
        if self._action.failure_type is not None:
            print(self._action)

    def clip(self) -> None:
        """What the controller has unscaled is clipped as ever."""
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)

    def step(self, loss: Tensor) -> None:
        """Unless the controller says no."""
        if not self._action.should_skip:
            super().step(loss)

    def end(self, run: Run) -> None:
        """Its own account."""
        print(self._controller.summary())


class StabilityGuard(Amp):
    """stabilityguard: an optimizer around the optimizer."""

    needs = ("stabilityguard",)
    fp16 = "can"

    def __init__(self, action: str) -> None:
        super().__init__(f"stabilityguard-{action}", f"stabilityguard {action}")
        self._action = action

    def begin(self, run: Run) -> None:
        """The optimizer is wrapped."""
        from stabilityguard import GuardedOptimizer

        super().begin(run)
        self._base = self.optimizer
        guarded: Any = GuardedOptimizer(self._base, self.net, nan_action=self._action)
        self.optimizer = guarded

    def state(self, step: int) -> dict[str, Any]:
        """Of the optimizer inside."""
        return super().state(step) | {"optimizer": self._base.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Into the optimizer inside."""
        self.net.load_state_dict(state["model"])
        self._base.load_state_dict(state["optimizer"])


class ZClip(Amp):
    """zclip: adaptive clipping in the place of clipping."""

    needs = ("zclip",)
    fp16 = "can"

    def __init__(self) -> None:
        super().__init__("zclip", "zclip")

    def begin(self, run: Run) -> None:
        """The clipper is made."""
        from zclip import ZClip as Clipper

        super().begin(run)
        self._clipper = Clipper()

    def clip(self) -> None:
        """Clip what is far above the moving average."""
        if self.half:
            self.scaler.unscale_(self.optimizer)
        self._clipper.step(self.net)
