"""What every source of episodes has in common: item ``i`` depends on (seed, epoch, i) alone."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from surefoot.data.epochs import Epochs
from surefoot.errors import ConfigError
from surefoot.shapes import Episode

__all__ = ["MIN_VISIBLE", "Episodes", "images_to_tensor"]

MIN_VISIBLE = 0.35
"""Below this share of its pixels an object is neither present nor absent."""


class Episodes(Epochs, Dataset[Episode], ABC):
    """A data set whose items are whole episodes; load it with ``DataLoader(..., batch_size=None)``.

    Item ``index`` of epoch ``epoch`` is a pure function of ``(seed, epoch, index)``: the number of
    workers and what was read before change nothing, so a resumed run sees what it would have seen.
    """

    def __init__(self, *, episodes: int, seed: int) -> None:
        super().__init__()
        if episodes < 1:
            raise ConfigError(f"episodes is {episodes}; an epoch needs at least 1.")
        if seed < 0:
            raise ConfigError(f"seed is {seed}; it is an integer, 0 or more.")
        self._episodes = episodes
        self._seed = seed

    def __len__(self) -> int:
        """Episodes in an epoch."""
        return self._episodes

    def __getitem__(self, index: int) -> Episode:
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index}: an epoch has {len(self)}, numbered from 0")
        random = np.random.default_rng([self._seed, self.epoch, index])
        return self._episode(random, f"epoch {self.epoch} episode {index}")

    @abstractmethod
    def _episode(self, random: np.random.Generator, name: str) -> Episode:
        """The episode drawn with ``random``; ``name`` says which one it is."""


def images_to_tensor(images: NDArray[np.uint8]) -> Tensor:
    """``... H W 3`` bytes to ``... 3 H W`` float32 in [0, 1], contiguous.

    >>> images_to_tensor(np.full((2, 4, 5, 3), 255, dtype=np.uint8)).shape
    torch.Size([2, 3, 4, 5])
    """
    planes = torch.from_numpy(np.moveaxis(images, -1, -3)).contiguous()
    return planes.to(torch.float32).div_(255)
