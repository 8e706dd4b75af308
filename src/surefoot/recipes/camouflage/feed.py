"""The batches of a run, one epoch after the other, from wherever it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch.utils.data import DataLoader

from surefoot.checkpoint import SampleOrder
from surefoot.checkpoint.signals import leave_signals_to_parent
from surefoot.data.camouflage import CamouflageItems
from surefoot.recipes.camouflage.build import Batch
from surefoot.recipes.camouflage.config import CamouflageConfig

__all__ = ["CamouflageFeed"]


class CamouflageFeed:
    """Loads batches in an order that can be saved.

    Args:
        config: the run's settings.
        items: the training set.
        device: where batches are put.
    """

    def __init__(
        self, config: CamouflageConfig, items: CamouflageItems, device: torch.device
    ) -> None:
        data = config.data
        self.order = SampleOrder(items, batch_size=data.batch_size, seed=config.run.seed)
        self._items, self._device = items, device
        self._accumulate = config.optimizer.accumulation_steps
        workers = data.workers
        self._loader: DataLoader[Batch] = DataLoader(
            items,  # type: ignore[arg-type]
            batch_sampler=self.order,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            pin_memory=device.type == "cuda",
            worker_init_fn=leave_signals_to_parent,
            # Its own: drawing the workers' seeds from the global one would move the run's random
            # numbers.
            generator=torch.Generator().manual_seed(config.run.seed),
        )

    def begin(self, epoch: int, steps: int) -> int:
        """Go to an epoch of so many optimizer steps; gives the micro-batches left of it."""
        self.order.set_epoch(epoch)
        whole = len(self.order)
        return min(whole, steps * self._accumulate) - self.order.position

    def batches(self, count: int) -> Iterator[Batch]:
        """The next ones of the epoch; each is to be counted by ``order.advance()``."""
        self._items.set_epoch(self.order.epoch)
        for batch in islice(self._loader, count):
            for name in ("image", "mask"):
                batch[name] = batch[name].to(self._device, non_blocking=True)
            yield batch

    def names(self, batch: Batch) -> tuple[str, ...]:
        """Of the images."""
        return tuple(batch["id"])
