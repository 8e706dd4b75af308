"""The batches of a camouflage run."""

from __future__ import annotations

import torch

from surefoot.data.camouflage import CamouflageItems
from surefoot.recipes.camouflage.build import Batch
from surefoot.recipes.camouflage.config import CamouflageConfig
from surefoot.recipes.feed import Feed, FeedOrder

__all__ = ["CamouflageFeed"]


class CamouflageFeed(Feed[Batch]):
    """Images and masks.

    Args:
        config: the run's settings.
        items: the training set.
        device: where batches are put.
    """

    def __init__(
        self, config: CamouflageConfig, items: CamouflageItems, device: torch.device
    ) -> None:
        self._images = items
        super().__init__(
            items,
            FeedOrder(items, batch_size=config.data.batch_size, seed=config.run.seed),
            workers=config.data.workers,
            accumulate=config.optimizer.accumulation_steps,
            device=device,
        )

    def moved(self, batch: Batch) -> Batch:
        """See :class:`Feed`."""
        for name in ("image", "mask"):
            batch[name] = batch[name].to(self._device, non_blocking=True)
        return batch

    def names(self, batch: Batch) -> tuple[str, ...]:
        """Of the images."""
        return tuple(batch["id"])

    def name_of(self, index: int) -> str:
        """Of an image."""
        return self._images.id_of(index)
