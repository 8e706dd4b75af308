"""What must not move with a refused step: a host's schedulers, and its averages of weights."""

from __future__ import annotations

from typing import Any

from surefoot.guard import Attachment

__all__ = ["HeldScheduler", "StepCount"]


class StepCount:
    """Whether a guard has applied a step since it was last asked.

    Args:
        guard: whose steps are counted.
    """

    def __init__(self, guard: Attachment) -> None:
        self._guard, self._seen = guard, guard.tally.applied

    def moved(self) -> bool:
        """True once for every time that one step or more were applied."""
        applied = self._guard.tally.applied
        moved, self._seen = applied > self._seen, applied
        return moved


class HeldScheduler:
    """A scheduler whose ``step`` does nothing where no optimizer step was applied since the last.

    Everything else is the scheduler's own, its class included, so that loggers, checkpoints and
    ``isinstance`` see what they expect.

    Args:
        scheduler: any learning rate scheduler.
        guard: of the optimizer that it schedules.
    """

    def __init__(self, scheduler: Any, guard: Attachment) -> None:
        self.held = scheduler
        self.count = StepCount(guard)

    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return type(self.held)

    def step(self, *args: Any, **kwargs: Any) -> None:
        """As the scheduler's own, or nothing."""
        if self.count.moved():
            self.held.step(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.held, name)
