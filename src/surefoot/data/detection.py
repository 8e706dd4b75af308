"""Labelled images as items to train a detector of fixed classes on, and to evaluate it with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from surefoot.data.cache import ByteCache
from surefoot.data.episodes import images_to_tensor
from surefoot.data.epochs import Epochs
from surefoot.data.labelled import LabelledImages, read_upright
from surefoot.data.mosaic import LabelledPicture, mosaic
from surefoot.data.transforms import Augmentation, Letterbox, augment, letterbox
from surefoot.errors import ConfigError
from surefoot.shapes import Batch

__all__ = [
    "DetectionAugmentation",
    "DetectionBatch",
    "DetectionDataset",
    "DetectionItem",
    "collate_detection",
]

Picture = NDArray[np.uint8]
_Square = tuple[Picture, Letterbox]


class DetectionItem(TypedDict):
    """One image and its boxes; :func:`collate_detection` makes batches of them."""

    image: Tensor
    """3 S S, float32, RGB in [0, 1]."""
    boxes: Tensor
    """M 4, float32, x1 y1 x2 y2 in pixels of ``image``."""
    labels: Tensor
    """M, int64."""
    id: str
    index: int


@dataclass(frozen=True, kw_only=True)
class DetectionBatch(Batch):
    """Images, and the labelled boxes of all of them together."""

    boxes: Tensor
    """M 4, float32, x1 y1 x2 y2 in pixels of ``images``."""
    box_image: Tensor
    """M, int64: which image a box is in."""
    box_class: Tensor
    """M, int64."""


@dataclass(frozen=True, kw_only=True)
class DetectionAugmentation:
    """How training items are changed; none of it in validation."""

    change: Augmentation = field(default_factory=Augmentation)
    """Flip, zoom, shift and colour."""
    mosaic: float = 0.0
    """Probability that an item is a mosaic of its image and three others."""
    mosaic_scale: tuple[float, float] = (0.5, 1.0)
    """Smallest and largest longer side of a mosaic's image, as a share of the item's side."""
    least_left: float = 0.1
    """Boxes of which less than this share of the area is left are left out."""
    least_side: float = 2.0
    """Boxes with a shorter side than this, in pixels, are left out."""

    def __post_init__(self) -> None:
        for name in ("mosaic", "least_left"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(
                    f"DetectionAugmentation.{name} is {getattr(self, name)}; expected 0 to 1."
                )
        if not 0 < self.mosaic_scale[0] <= self.mosaic_scale[1] <= 1:
            raise ConfigError(
                f"DetectionAugmentation.mosaic_scale is {self.mosaic_scale}; expected 0 < "
                "smallest <= largest <= 1."
            )
        if not self.least_side >= 0:
            raise ConfigError(
                f"DetectionAugmentation.least_side is {self.least_side}; pixels, 0 or more."
            )


class DetectionDataset(Epochs, Dataset[DetectionItem]):
    """A map-style data set of letterboxed images and their boxes.

    Item ``index`` of epoch ``epoch`` is a pure function of ``(seed, epoch, index)``: the number of
    workers and what was read before change nothing, so a resumed run sees what it would have seen.

    Args:
        source: from :func:`surefoot.data.coco.read_coco` or
            :func:`surefoot.data.yolo_format.read_yolo`.
        size: side of the items in pixels.
        augment: how items are changed; None for not at all, as in validation.
        seed: of the changes, 0 or more.
        cache_mb: memory for decoded images, per process; worth it for small sets.

    Raises:
        ConfigError: settings that cannot work.

    Example:
        data = DetectionDataset(read_coco("instances.json"), size=640,
                                augment=DetectionAugmentation(mosaic=0.5))
        loader = DataLoader(data, batch_size=16, collate_fn=collate_detection)
    """

    def __init__(
        self,
        source: LabelledImages,
        *,
        size: int = 640,
        augment: DetectionAugmentation | None,
        seed: int = 0,
        cache_mb: float = 0,
    ) -> None:
        super().__init__()
        if size < 32:
            raise ConfigError(f"DetectionDataset: size is {size}; at least 32 pixels.")
        if seed < 0:
            raise ConfigError(f"DetectionDataset: seed is {seed}; an integer, 0 or more.")
        self.source, self.size, self.augment, self.seed = source, size, augment, seed
        self._cache = ByteCache[_Square](cache_mb, size=_bytes)

    def __len__(self) -> int:
        """Items in an epoch."""
        return len(self.source)

    def __getitem__(self, index: int) -> DetectionItem:
        """An item.

        Raises:
            DataError: the image cannot be read.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"item {index}: there are {len(self)}, numbered from 0")
        random = np.random.default_rng([self.seed, self.epoch, index])
        scene = self._whole(index) if self.augment is None else self._changed(index, random)
        return DetectionItem(
            image=images_to_tensor(scene.picture),
            boxes=torch.from_numpy(scene.boxes),
            labels=torch.from_numpy(scene.labels),
            id=self.source[index].id,
            index=index,
        )

    def place(self, index: int) -> Letterbox:
        """Where the image lies in an item that is not augmented: ``invert`` maps boxes back."""
        return self._square(index)[1]

    def _square(self, index: int) -> _Square:
        return self._cache.get(
            index, lambda: letterbox(read_upright(self.source[index]), self.size)
        )

    def _whole(self, index: int) -> LabelledPicture:
        image = self.source[index]
        picture, place = self._square(index)
        boxes = place.apply(image.boxes).astype(np.float32)
        return LabelledPicture(
            picture, boxes, image.labels.copy(), np.ones(len(boxes), dtype=np.float32)
        )

    def _changed(self, index: int, random: np.random.Generator) -> LabelledPicture:
        how = self.augment or DetectionAugmentation()
        several = random.uniform() < how.mosaic
        scene = self._mosaic(index, random, how) if several else self._whole(index)
        picture, boxes, left = augment(scene.picture, scene.boxes, random, how.change)
        left = left * scene.left
        kept = (left >= how.least_left) & ((boxes[:, 2:] - boxes[:, :2]) >= how.least_side).all(1)
        return LabelledPicture(picture, boxes[kept], scene.labels[kept], left[kept])

    def _mosaic(
        self, index: int, random: np.random.Generator, how: DetectionAugmentation
    ) -> LabelledPicture:
        """The image and three others, in any order."""
        others = random.integers(len(self), size=3).tolist()
        tiles = [self._bare(one) for one in random.permutation([index, *others]).tolist()]
        return mosaic(tiles, self.size, random, how.mosaic_scale)

    def _bare(self, index: int) -> LabelledPicture:
        """The image without the grey around it."""
        whole, place, image = self._whole(index), self.place(index), self.source[index]
        wide, high = (max(1, int(s * place.scale + 1e-6)) for s in (image.width, image.height))
        inner = whole.picture[place.pad_y :, place.pad_x :][:high, :wide]
        pads = np.array([place.pad_x, place.pad_y] * 2, dtype=np.float32)
        return replace(whole, picture=inner, boxes=whole.boxes - pads)


def _bytes(square: _Square) -> int:
    return square[0].nbytes


def collate_detection(items: Sequence[DetectionItem]) -> DetectionBatch:
    """A batch of items; their boxes stand one image after the other."""
    counts = torch.tensor([len(item["labels"]) for item in items])
    return DetectionBatch(
        images=torch.stack([item["image"] for item in items]),
        sample_ids=tuple(item["id"] for item in items),
        boxes=torch.cat([item["boxes"] for item in items]),
        box_image=torch.arange(len(items)).repeat_interleave(counts),
        box_class=torch.cat([item["labels"] for item in items]),
    )
