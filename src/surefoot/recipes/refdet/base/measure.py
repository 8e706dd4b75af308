"""COCO's measure of a standard head on held-out images, boxes in the images' own pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from surefoot.data import DetectionDataset
from surefoot.metrics import DetectionMap
from surefoot.metrics.detection import MapResult
from surefoot.models import RefDet
from surefoot.models.decode import detections
from surefoot.recipes.hardware import Amp
from surefoot.recipes.ranks import ALONE, Ranks

__all__ = ["BaseDetector", "mean_precision"]

Found = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]
"""Boxes M 4 in pixels of the image itself, scores M, labels M."""


@dataclass(frozen=True, kw_only=True)
class BaseDetector:
    """A network with a standard head, and how images reach it."""

    model: RefDet
    device: torch.device
    amp: Amp = None
    batch_size: int = 16

    @torch.inference_mode()
    def find(self, images: DetectionDataset, at: Sequence[int]) -> list[Found]:
        """Everything in some items of a set that is not augmented."""
        self.model.eval()
        half = torch.float16 if self.amp == "fp16" else torch.bfloat16
        pictures = torch.stack([images[index]["image"] for index in at]).to(self.device)
        with torch.autocast(self.device.type, dtype=half, enabled=self.amp is not None):
            found = detections(self.model.classify(pictures))
        return [
            (
                images.place(index).invert(one.boxes.double().cpu().numpy()),
                one.scores.double().cpu().numpy(),
                one.objects.cpu().numpy(),
            )
            for index, one in zip(at, found, strict=True)
        ]


def mean_precision(
    detector: BaseDetector, images: DetectionDataset, ranks: Ranks = ALONE
) -> MapResult:
    """mAP over a set that is not augmented; processes divide it and come to the same result."""
    size, count = detector.batch_size, len(images)
    chunks = [range(at, min(at + size, count)) for at in range(0, count, size)]
    score = DetectionMap()
    found: list[Any] = ranks.each(chunks, lambda chunk: detector.find(images, chunk))
    for chunk, several in zip(chunks, found, strict=True):
        for index, (boxes, scores, labels) in zip(chunk, several, strict=True):
            image = images.source[index]
            score.add(index, boxes, scores, labels, image.boxes, image.labels)
    return score.result()
