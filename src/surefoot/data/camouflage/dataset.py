"""Pairs of files as items to train on and to evaluate with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from surefoot.data.cache import ByteCache
from surefoot.data.camouflage.augment import Augment
from surefoot.data.camouflage.files import read_mask, read_picture
from surefoot.data.camouflage.items import CamouflageItems
from surefoot.data.camouflage.pairs import PairList
from surefoot.errors import ConfigError

__all__ = ["CamouflageDataset"]

_Both = tuple[NDArray[np.uint8], NDArray[np.uint8]]


class CamouflageDataset(CamouflageItems):
    """Items of pairs of files; see :class:`CamouflageItems` for what an item is.

    An image of another size than its mask is brought to the mask's. EXIF orientations are ignored
    in both.

    Args:
        pairs: from :func:`find_pairs`.
        size: side of the items in pixels.
        augment: how items are changed; None for not at all, as in validation.
        seed: of the changes.
        cache_mb: memory for decoded files, per process; worth it for small sets.

    Raises:
        ConfigError: settings that cannot work, or no pairs.

    Example:
        pairs = find_pairs("COD10K-v3", split="train")
        print(pairs.report)
        training, validation = hold_out(pairs)
        data = CamouflageDataset(training, size=384, augment=Augment(), seed=0)
    """

    def __init__(
        self,
        pairs: PairList,
        *,
        size: int,
        augment: Augment | None,
        seed: int = 0,
        cache_mb: float = 0,
    ) -> None:
        super().__init__(size=size, augment=augment, seed=seed)
        if not len(pairs):
            raise ConfigError("CamouflageDataset: the list of pairs is empty; at least one.")
        self.pairs = pairs
        self._cache = ByteCache[_Both](cache_mb, size=_bytes)

    def __len__(self) -> int:
        """Items in an epoch."""
        return len(self.pairs)

    def id_of(self, index: int) -> str:
        """The id of the pair."""
        return self.pairs[index].id

    def original(self, index: int) -> _Both:
        """See :meth:`CamouflageItems.original`."""
        return self._cache.get(index, lambda: self._read(index))

    def _read(self, index: int) -> _Both:
        pair = self.pairs[index]
        image = read_picture(pair.image)
        if pair.mask is None:
            return image, np.zeros(image.shape[:2], dtype=np.uint8)
        mask = read_mask(pair.mask)
        if image.shape[:2] != mask.shape:
            size = mask.shape[1], mask.shape[0]
            image = np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        return image, mask


def _bytes(both: _Both) -> int:
    return both[0].nbytes + both[1].nbytes
