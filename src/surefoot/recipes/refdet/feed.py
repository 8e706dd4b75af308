"""The episodes of a run, one epoch after the other, from wherever it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import torch
from torch.utils.data import DataLoader

from surefoot.checkpoint import SampleOrder
from surefoot.checkpoint.signals import leave_signals_to_parent
from surefoot.data import Episodes
from surefoot.recipes.refdet.config import TrainConfig
from surefoot.shapes import Episode

__all__ = ["EpisodeFeed"]


class EpisodeFeed:
    """Loads episodes in an order that can be saved.

    Args:
        config: the run's settings.
        episodes: the data set.
        device: where episodes are put.
    """

    def __init__(self, config: TrainConfig, episodes: Episodes, device: torch.device) -> None:
        self.order = SampleOrder(episodes, batch_size=None, shuffle=False, seed=config.run.seed)
        self._episodes, self._device = episodes, device
        self._accumulate = config.optimizer.gradient_accumulation
        workers = config.data.num_workers
        self._loader: DataLoader[Episode] = DataLoader(
            episodes,
            batch_size=None,
            sampler=self.order,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            worker_init_fn=leave_signals_to_parent,
            # Its own: drawing the workers' seeds from the global one would move the run's random
            # numbers.
            generator=torch.Generator().manual_seed(config.run.seed),
        )

    def begin(self, epoch: int, steps: int) -> int:
        """Go to an epoch of so many optimizer steps; gives the episodes left of it."""
        self.order.set_epoch(epoch)
        whole = len(self.order)
        return min(whole, steps * self._accumulate) - self.order.position

    def batches(self, count: int) -> Iterator[Episode]:
        """The next ones of the epoch; each is to be counted by ``order.advance()``."""
        self._episodes.set_epoch(self.order.epoch)
        for episode in islice(self._loader, count):
            yield episode.to(self._device, non_blocking=True)

    def names(self, batch: Episode) -> tuple[str, ...]:
        """Of the frames."""
        return batch.sample_ids
