"""How long a run is, in optimizer steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Length"]


@dataclass(frozen=True)
class Length:
    """How long a run is, in optimizer steps.

    >>> length = Length(steps_per_epoch=10, total_steps=25)
    >>> length.epochs, [length.steps_in(epoch) for epoch in range(3)]
    (3, [10, 10, 5])
    """

    steps_per_epoch: int
    total_steps: int

    @property
    def epochs(self) -> int:
        """Epochs, the last of which may be cut short."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    def steps_in(self, epoch: int) -> int:
        """Optimizer steps of epoch ``epoch``, from 0."""
        return min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch)
