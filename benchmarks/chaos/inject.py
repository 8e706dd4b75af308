"""How a fault gets at a run: through its samples, its forward pass, its loss, its process.

The clock counts optimizer steps by the batches that the model sees in training, whoever's loop it
is; a second forward pass over the same batch (a closure, a look for blame) does not move it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Clock", "Injector", "Stage"]


@dataclass
class Stage:
    """What a fault can reach."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    folder: Path
    rank: int = 0

    def parameter(self, name: str) -> Tensor:
        """One parameter, without its history."""
        return dict(self.model.named_parameters())[name].data


class Injector:
    """A fault; one that does nothing, unless a subclass says otherwise."""

    def sample(self, batch: int, place: int, image: Tensor, label: int) -> tuple[Tensor, int]:
        """A sample on its way into batch number ``batch``, as its ``place``-th one."""
        return image, label

    def read(self, index: int) -> None:
        """The sample of this number is about to be read, perhaps in a worker."""

    def step(self, number: int, stage: Stage) -> None:
        """The forward pass of this step is about to read the weights."""

    def loss(self, number: int, loss: Tensor) -> Tensor:
        """The loss of this step, before anybody has seen it."""
        return loss


@dataclass
class Clock:
    """Tells the injectors what time it is."""

    injectors: Sequence[Injector]
    batch_size: int
    accumulate: int = 1
    rank: int = 0
    stage: Stage | None = None
    on_struck: Callable[[int], object] = print
    """Told the number of every sample that an injector changed, before it is handed out."""
    _read: int = 0
    _seen: int = 0
    _last: Any = None

    @property
    def number(self) -> int:
        """Optimizer step that is under way, from 0."""
        return max(self._seen - 1, 0) // self.accumulate

    def sample(self, index: int, image: Tensor, label: int) -> tuple[Tensor, int]:
        """A sample is read."""
        batch, place = divmod(self._read, self.batch_size)
        self._read += 1
        for injector in self.injectors:
            injector.read(index)
            try:
                changed = injector.sample(batch // self.accumulate, place, image, label)
            except OSError:
                self.on_struck(index)
                raise
            if changed[0] is not image or changed[1] != label:
                self.on_struck(index)
            image, label = changed
        return image, label

    def forward(self, model: nn.Module, x: Tensor) -> None:
        """A training batch enters the model."""
        if x is self._last:
            return
        self._last = x
        self._seen += 1
        if (self._seen - 1) % self.accumulate or self.stage is None:
            return
        for injector in self.injectors:
            injector.step(self.number, self.stage)

    def loss(self, loss: Tensor) -> Tensor:
        """A loss is computed."""
        for injector in self.injectors:
            loss = injector.loss(self.number, loss)
        return loss
