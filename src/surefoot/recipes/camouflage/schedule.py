"""Two stages in optimizer steps, and one factor for all learning rates.

The peaks of the groups keep their ratios under every schedule, in warm-up and after a resume,
because a single factor multiplies them all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from surefoot.recipes.camouflage.config import CamouflageConfig
from surefoot.recipes.length import Length

__all__ = ["Plan"]

_RISE = 0.3
_START, _END = 1 / 25, 4e-6
"""One-cycle: share of a stage that rises, and what it starts from and ends at, of its peak. Smith
and Topin 2018, arXiv:1708.07120, as torch.optim.lr_scheduler.OneCycleLR has it."""
_COSINE_END = 0.01


@dataclass(frozen=True)
class Plan(Length):
    """How long a run is, and what its learning rates do.

    >>> plan = Plan(steps_per_epoch=10, total_steps=40, first_steps=20, second_peak=0.5)
    >>> [round(plan.factor(step), 3) for step in (0, 6, 19, 20, 26, 39)]
    [0.04, 0.987, 0.0, 0.02, 0.494, 0.0]
    """

    first_steps: int
    """Optimizer steps of stage 1."""
    second_peak: float = 0.5
    """Peak of stage 2, of that of stage 1."""
    warmup_steps: int = 0
    """Of each stage."""
    scheduler: str = "onecycle"

    @classmethod
    def of(cls, config: CamouflageConfig, batches: int) -> Plan:
        """The plan for epochs of ``batches`` micro-batches."""
        options = config.optimizer
        per_epoch = math.ceil(batches / options.accumulation_steps)
        total = config.run.max_steps or per_epoch * config.run.epochs
        return cls(
            steps_per_epoch=per_epoch,
            total_steps=total,
            first_steps=min(per_epoch * config.run.stage1_epochs, total),
            second_peak=options.second_lr / options.lr,
            warmup_steps=round(options.warmup_epochs * per_epoch),
            scheduler=options.scheduler,
        )

    def stage(self, epoch: int) -> int:
        """1 while the backbone is frozen, then 2."""
        return 1 if epoch * self.steps_per_epoch < self.first_steps else 2

    def factor(self, step: int) -> float:
        """What the peaks of stage 1 are multiplied by at an optimizer step, from 0."""
        if step < self.first_steps:
            return self._curve(step, self.first_steps)
        return self.second_peak * self._curve(
            step - self.first_steps, self.total_steps - self.first_steps
        )

    def _curve(self, step: int, length: int) -> float:
        warmup = min(self.warmup_steps, length // 2)
        if step < warmup:
            return self._shape(0, length - warmup) * (step + 1) / warmup
        return self._shape(step - warmup, length - warmup)

    def _shape(self, step: int, length: int) -> float:
        last = max(length - 1, 1)
        if self.scheduler == "none":
            return 1.0
        if self.scheduler == "cosine":
            return _between(1.0, _COSINE_END, step / last)
        top = max(_RISE * length - 1, 0.0)
        if step < top:
            return _between(_START, 1.0, step / top)
        return _between(1.0, _END, (step - top) / max(last - top, 1))


def _between(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
