"""Masks of a data set and their scores, at the resolution of the files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from surefoot.checkpoint.signals import leave_signals_to_parent
from surefoot.data.camouflage import CamouflageItems, EvaluationItems, Predictor, collate_evaluation
from surefoot.metrics.segmentation import SegmentationScores
from surefoot.models.camouflage import CamouflageNet
from surefoot.recipes.hardware import Amp
from surefoot.recipes.ranks import ALONE, Ranks

__all__ = ["Masks", "Predicted", "score", "score_predictor"]


class Predicted(NamedTuple):
    """One image's mask."""

    place: int
    """In the data set."""
    id: str
    probability: NDArray[np.float32]
    """H W, 0 to 1, as large as the file."""
    mask: NDArray[np.uint8]
    """H W, 0 or 1: the truth."""


class Masks:
    """A network that is asked for masks, and how.

    Args:
        model: on its device; it is in evaluation mode while it is asked.
        device: where.
        amp: half precision of the forward pass.
        batch_size: images at once; no mask depends on it.
        workers: processes that decode.
    """

    def __init__(
        self,
        model: CamouflageNet,
        device: torch.device,
        amp: Amp = None,
        *,
        batch_size: int = 4,
        workers: int = 0,
    ) -> None:
        self.model, self._device, self._amp = model, device, amp
        self._batch_size, self._workers = batch_size, workers

    @torch.no_grad()
    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """B 3 S S in [0, 1] -> B 1 S S, float32."""
        training = self.model.training
        self.model.eval()
        dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, None: None}[self._amp]
        try:
            with torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None):
                return self.model(images.to(self._device)).mask.float()
        finally:
            self.model.train(training)

    def of(self, items: CamouflageItems, ranks: Ranks = ALONE) -> Iterator[Predicted]:
        """The masks of a data set, or of this process's part of its batches, in its order; each is
        enlarged before it is made a probability, so that an outline stays sharp.
        """
        places = range(len(items))
        batches = [list(places[i : i + self._batch_size]) for i in places[:: self._batch_size]]
        loader = DataLoader(
            EvaluationItems(items),
            batch_sampler=batches[ranks.rank :: ranks.size],
            num_workers=self._workers,
            collate_fn=collate_evaluation,
            worker_init_fn=leave_signals_to_parent,
            generator=torch.Generator(),
        )
        for batch in loader:
            logits = self.logits(batch["image"])
            for one, mask, name, index in zip(
                logits, batch["mask"], batch["id"], batch["index"], strict=True
            ):
                yield Predicted(index, name, enlarged(one[None], mask.shape), mask.numpy())


def enlarged(logits: torch.Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    """1 1 S S logits -> H W probabilities."""
    full = F.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)
    return full.sigmoid()[0, 0].cpu().numpy()


def score(
    masks: Masks, items: CamouflageItems, *, stretch: bool = False, ranks: Ranks = ALONE
) -> SegmentationScores:
    """Scores of a network on a data set.

    Args:
        masks: the network.
        items: the data set.
        stretch: bring every map to 0..1 first, as published tables do.
        ranks: processes that divide the images among them, and all have the scores of all.
    """
    scores = SegmentationScores(stretch=stretch)
    for one in masks.of(items, ranks):
        scores.add(one.id, one.probability, one.mask, index=one.place)
    for rows in ranks.gather(scores.per_image):
        scores.merge(rows)
    return scores


def score_predictor(
    predict: Predictor, items: CamouflageItems, *, stretch: bool = False
) -> SegmentationScores:
    """Scores of whatever makes a mask of a picture, one after the other.

    Args:
        predict: H W 3 bytes -> H W, 0 to 1; one that took no training, or a segmenter's.
        items: the data set.
        stretch: bring every map to 0..1 first, as published tables do.
    """
    scores = SegmentationScores(stretch=stretch)
    for index in range(len(items)):
        image, mask = items.original(index)
        scores.add(items.id_of(index), predict(image), mask, index=index)
    return scores
