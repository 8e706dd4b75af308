"""The episodes of a RefDet run."""

from __future__ import annotations

import torch

from surefoot.data import Episodes
from surefoot.recipes.feed import Feed, FeedOrder
from surefoot.recipes.refdet.config import TrainConfig
from surefoot.shapes import Episode

__all__ = ["EpisodeFeed"]


class EpisodeFeed(Feed[Episode]):
    """Whole episodes, each a micro-batch.

    Args:
        config: the run's settings.
        episodes: the data set.
        device: where episodes are put.
    """

    def __init__(self, config: TrainConfig, episodes: Episodes, device: torch.device) -> None:
        super().__init__(
            episodes,
            FeedOrder(episodes, batch_size=None, shuffle=False, seed=config.run.seed),
            workers=config.data.num_workers,
            accumulate=config.optimizer.gradient_accumulation,
            device=device,
        )

    def moved(self, batch: Episode) -> Episode:
        """See :class:`Feed`."""
        return batch.to(self._device, non_blocking=True)

    def names(self, batch: Episode) -> tuple[str, ...]:
        """Of the frames."""
        return batch.sample_ids
