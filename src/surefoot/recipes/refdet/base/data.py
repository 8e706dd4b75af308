"""The labelled images of stage 1, from whatever layout they came in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from surefoot.data import (
    DetectionAugmentation,
    DetectionBatch,
    DetectionDataset,
    collate_detection,
    read_coco,
    read_yolo,
)
from surefoot.data.labelled import LabelledImages
from surefoot.errors import ConfigError
from surefoot.guard.splits import Piece
from surefoot.recipes.feed import Feed, FeedOrder
from surefoot.recipes.refdet.build import IMAGE_SIZES
from surefoot.recipes.refdet.config import TrainConfig

__all__ = ["BaseSources", "ImageFeed", "cut_images", "open_base_sources"]


@dataclass(frozen=True, kw_only=True)
class BaseSources:
    """Images that are learnt from, and images that are measured on."""

    training: DetectionDataset
    held_out: DetectionDataset | None
    """None: nothing is measured."""
    classes: tuple[str, ...]
    """Their names, by label."""
    report: str
    """What was found on reading, for a person."""


def open_base_sources(config: TrainConfig) -> BaseSources:
    """What ``--data`` names.

    Raises:
        ConfigError: it names nothing, or the held-out images have other classes.
        DataError: it cannot be read, or leaves nothing to learn from.
    """
    data = config.data
    if not data.data:
        raise ConfigError(
            "--stage 1 learns from labelled images: give --data instances.json (COCO), --data "
            "data.yaml (YOLO), or --data procedural for drawn scenes with references."
        )
    training, held_out = _read(config)
    if held_out is not None and held_out.classes != training.classes:
        raise ConfigError(
            f"--val-data {data.val_data}: its classes are {', '.join(held_out.classes)}; those of "
            f"{data.data} are {', '.join(training.classes)}. They have to be the same, in order."
        )
    size = config.episode.image_size or IMAGE_SIZES[config.model.preset][0]
    return BaseSources(
        training=DetectionDataset(
            training,
            size=size,
            augment=DetectionAugmentation(mosaic=data.mosaic),
            seed=config.run.seed,
            cache_mb=data.cache_mb / max(data.num_workers, 1),
        ),
        held_out=None
        if held_out is None
        else DetectionDataset(held_out, size=config.episode.val_image_size or size, augment=None),
        classes=training.classes,
        report="\n".join(str(one.report) for one in (training, held_out) if one is not None),
    )


def _read(config: TrainConfig) -> tuple[LabelledImages, LabelledImages | None]:
    data, path = config.data, Path(config.data.data)
    if path.suffix == ".json":
        held_out = None if data.val_data is None else read_coco(data.val_data, data.val_images)
        return read_coco(path, data.images), held_out
    if data.val_data is not None:
        raise ConfigError("--val-data goes with a COCO file; a YOLO data.yaml names its val split.")
    try:
        return read_yolo(path, "train"), read_yolo(path, "val")
    except ConfigError as missing:
        if "val" not in str(missing):
            raise
        return read_yolo(path, "train"), None


class ImageFeed(Feed[DetectionBatch]):
    """Batches of labelled images.

    Args:
        config: the run's settings.
        images: the training set.
        device: where batches are put.
    """

    def __init__(self, config: TrainConfig, images: DetectionDataset, device: torch.device) -> None:
        self._images = images
        super().__init__(
            images,
            FeedOrder(images, batch_size=config.hardware.batch_size, seed=config.run.seed),
            workers=config.data.num_workers,
            accumulate=config.optimizer.gradient_accumulation,
            device=device,
            collate=collate_detection,
        )

    def moved(self, batch: DetectionBatch) -> DetectionBatch:
        """See :class:`Feed`."""
        return batch.to(self._device, non_blocking=True)

    def names(self, batch: DetectionBatch) -> tuple[str, ...]:
        """Of the images."""
        return batch.sample_ids

    def name_of(self, index: int) -> str:
        """Of an image."""
        return self._images.source[index].id


def cut_images(batch: DetectionBatch) -> Sequence[Piece]:
    """Two halves of a batch that does not fit into memory, or none of a single image.

    The terms are means over what the assigner finds, which is not known before the forward pass;
    the halves are weighed by their boxes, to which it is near to proportional.
    """
    count, boxes = len(batch.images), len(batch.boxes)
    if count < 2:
        return []
    middle = (count + 1) // 2
    halves = [_images(batch, 0, middle), _images(batch, middle, count)]
    return [
        Piece(half, len(half.images), max(len(half.boxes), 1) / max(boxes, 1)) for half in halves
    ]


def _images(batch: DetectionBatch, start: int, stop: int) -> DetectionBatch:
    mine: Tensor = (batch.box_image >= start) & (batch.box_image < stop)
    return replace(
        batch,
        images=batch.images[start:stop],
        sample_ids=batch.sample_ids[start:stop],
        boxes=batch.boxes[mine],
        box_image=batch.box_image[mine] - start,
        box_class=batch.box_class[mine],
    )
