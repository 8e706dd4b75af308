"""What every source of images and masks has in common: an item depends on its numbers alone."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from surefoot.data.camouflage.augment import Augment, augment_pair, resize_pair
from surefoot.data.epochs import Epochs
from surefoot.errors import ConfigError

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "CamouflageItems",
    "EvaluationItems",
    "Item",
    "collate_evaluation",
    "normalise",
]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of R, G and B in [0, 1] over ImageNet; see :func:`normalise`."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation of R, G and B in [0, 1] over ImageNet; see :func:`normalise`."""


class Item(TypedDict):
    """One image and its mask; torch's default collation makes batches of them."""

    image: Tensor
    """3 S S, float32, RGB in [0, 1]: normalising is the model's, which keeps its own numbers."""
    mask: Tensor
    """1 S S, float32, 0 or 1; in evaluation H W, uint8, 0 or 1, as large as the file."""
    id: str
    index: int


def normalise(images: Tensor) -> Tensor:
    """Images for a network that does not normalise them itself, as those of surefoot do.

    Args:
        images: ``... 3 H W``, RGB in [0, 1].

    Returns:
        The same less ImageNet's mean, by its standard deviation.

    >>> normalise(torch.ones(3, 1, 1)).flatten()
    tensor([2.2489, 2.4286, 2.6400])
    """
    mean, std = (images.new_tensor(values)[:, None, None] for values in _IMAGENET)
    return (images - mean) / std


_IMAGENET = (IMAGENET_MEAN, IMAGENET_STD)


class CamouflageItems(Epochs, Dataset[Item], ABC):
    """A map-style data set of images and masks.

    Item ``index`` of epoch ``epoch`` is a pure function of ``(seed, epoch, index)``: the number of
    workers and what was read before change nothing, so a resumed run sees what it would have seen.

    Args:
        size: side of the items in pixels, at least 16. Both sides of an image are brought to it.
        augment: how items are changed; None for not at all.
        seed: of the changes, 0 or more.

    Raises:
        ConfigError: settings that cannot work.
    """

    def __init__(self, *, size: int, augment: Augment | None, seed: int) -> None:
        super().__init__()
        if size < 16:
            raise ConfigError(f"{type(self).__name__}: size is {size}; at least 16 pixels.")
        if seed < 0:
            raise ConfigError(f"{type(self).__name__}: seed is {seed}; an integer, 0 or more.")
        self.size, self.augment, self.seed = size, augment, seed

    @abstractmethod
    def __len__(self) -> int:
        """Items in an epoch."""

    @abstractmethod
    def id_of(self, index: int) -> str:
        """What an item is called."""

    @abstractmethod
    def original(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """An image, H W 3 RGB bytes, and its mask, H W bytes 0 or 1, at their own resolution.

        Raises:
            DataError: a file cannot be read.
        """

    def __getitem__(self, index: int) -> Item:
        image, mask = self._tensors(index)
        if self.augment is None:
            image, mask = resize_pair(image, mask, self.size)
        else:
            random = np.random.default_rng([self.seed, self.epoch, index])
            image, mask = augment_pair(image, mask, size=self.size, random=random, how=self.augment)
        return Item(
            image=image.to(torch.float32) / 255,
            mask=mask[None].to(torch.float32),
            id=self.id_of(index),
            index=index,
        )

    def evaluation_item(self, index: int) -> Item:
        """The image at the size of the model, never augmented; the mask at its own resolution.

        Resize the prediction to the mask, not the mask to the prediction.
        """
        image, mask = self._tensors(index)
        small, _ = resize_pair(image, mask, self.size)
        return Item(
            image=small.to(torch.float32) / 255, mask=mask, id=self.id_of(index), index=index
        )

    def _tensors(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index}: there are {len(self)}, numbered from 0")
        image, mask = self.original(index)
        planes = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 0)))
        return planes, torch.from_numpy(mask.copy())  # a cache may hold the other


class EvaluationItems(Dataset[Item]):
    """The items for evaluation of a data set; load it with :func:`collate_evaluation`."""

    def __init__(self, items: CamouflageItems) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items.evaluation_item(index)


def collate_evaluation(items: Sequence[Item]) -> dict[str, Any]:
    """A batch for evaluation: ``image`` B 3 S S; ``mask``, ``id`` and ``index`` lists of B."""
    batch: dict[str, Any] = {name: [item[name] for item in items] for name in items[0]}
    return batch | {"image": torch.stack(batch["image"])}
