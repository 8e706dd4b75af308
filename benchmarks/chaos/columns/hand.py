"""Loops as they are written by hand, in float32 and with a GradScaler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.chaos.columns.base import Column

if TYPE_CHECKING:
    from benchmarks.chaos.run import Run

__all__ = ["Amp", "HandLoop", "Plain"]


class HandLoop(Column):
    """Backward, clip, step, zero; now and then ``torch.save``. Subclasses change single parts."""

    def __init__(self, name: str, title: str) -> None:
        self.name, self.title = name, title

    def train(self, run: Run) -> nn.Module:
        """As in many a repository."""
        self.net = run.net()
        self.optimizer = run.optimizer(self.net)
        model = run.parallel(self.net)
        self.begin(run)
        every, last = run.setting.accumulate, run.checkpoints / "last.pt"
        step = self._load(last) if run.resumes else 0
        micro = 0
        for x, y, ids in run.batches(self.protect):
            if step == run.steps:
                break
            loss = self.forward(run, model, x, y)
            self.backward(loss / every)
            self.see(loss, ids)
            micro += 1
            if run.misuse or micro % every == 0:
                self.clip()
            if micro % every:
                continue
            self.step(loss)
            self.optimizer.zero_grad()
            run.metric(step, loss)
            step += 1
            if run.checkpoint_every and step % run.checkpoint_every == 0:
                last.parent.mkdir(exist_ok=True)
                torch.save(self.state(step), last)
        self.end(run)
        return self.net

    # -- what a subclass changes ------------------------------------------------------------------

    def begin(self, run: Run) -> None:
        """Model and optimizer are there."""

    def protect(self, loader: DataLoader[Any], run: Run) -> None:
        """The loader is there."""

    def forward(self, run: Run, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The loss of a micro-batch."""
        return run.loss(model(x), y)

    def backward(self, loss: Tensor) -> None:
        """Its gradients."""
        loss.backward()

    def see(self, loss: Tensor, ids: Tensor) -> None:
        """A micro-batch is over."""

    def clip(self) -> None:
        """The gradient's norm is at most 1."""
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)

    def step(self, loss: Tensor) -> None:
        """The optimizer's step."""
        self.optimizer.step()

    def end(self, run: Run) -> None:
        """The last step is over."""

    def state(self, step: int) -> dict[str, Any]:
        """What is saved."""
        optimizer = self.optimizer.state_dict()
        return {"step": step, "model": self.net.state_dict(), "optimizer": optimizer}

    def load(self, state: dict[str, Any]) -> None:
        """Put back what was saved."""
        self.net.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def _load(self, path: Any) -> int:
        if not path.exists():
            return 0
        state = torch.load(path, weights_only=True)
        self.load(state)
        return state["step"]


class Plain(HandLoop):
    """float32 and ``clip_grad_norm_``."""

    def __init__(self, name: str = "plain", title: str = "plain loop") -> None:
        super().__init__(name, title)


class Amp(HandLoop):
    """float16 with a GradScaler, on the CPU."""

    fp16 = "always"

    def __init__(self, name: str = "amp", title: str = "plain AMP (fp16)") -> None:
        super().__init__(name, title)

    def begin(self, run: Run) -> None:
        """The scaler is made; where the run is float32 it does nothing."""
        self.half = run.setting.fp16 or self.fp16 == "always"
        self.scaler = torch.amp.GradScaler("cpu", enabled=self.half)

    def forward(self, run: Run, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Under autocast."""
        with torch.autocast("cpu", dtype=torch.float16, enabled=self.half):
            return run.loss(model(x), y)

    def backward(self, loss: Tensor) -> None:
        """Of the scaled loss."""
        self.scaler.scale(loss).backward()

    def clip(self) -> None:
        """Unscale, then clip."""
        self.scaler.unscale_(self.optimizer)
        super().clip()

    def step(self, loss: Tensor) -> None:
        """The scaler skips what overflowed."""
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def state(self, step: int) -> dict[str, Any]:
        """The scale, too."""
        return super().state(step) | {"scaler": self.scaler.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """The scale, too."""
        super().load(state)
        self.scaler.load_state_dict(state["scaler"])
