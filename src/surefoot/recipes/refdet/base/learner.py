"""What learns in stage 1: the scene's network under a standard head."""

from __future__ import annotations

import torch

from surefoot.data import DetectionBatch
from surefoot.losses import DetectionLoss, DetectionLossConfig
from surefoot.models import RefDet, positive_points, task_aligned
from surefoot.recipes.hardware import Amp
from surefoot.recipes.ranks import ALONE, Ranks
from surefoot.recipes.refdet.build import Plan
from surefoot.recipes.refdet.config import TrainConfig
from surefoot.recipes.refdet.learner import DetectorLearner
from surefoot.recipes.refdet.options import LossOptions
from surefoot.shapes import LossTerms

__all__ = ["BaseLearner", "criterion_of", "loss_of_images"]


class BaseLearner(DetectorLearner[DetectionBatch, DetectionLoss]):
    """The network and YOLOv8's loss of it, over task-aligned points."""

    described_by = "--preset and the data's classes"

    def __init__(
        self,
        config: TrainConfig,
        plan: Plan,
        device: torch.device,
        amp: Amp,
        ranks: Ranks = ALONE,
    ) -> None:
        criterion = criterion_of(config.loss)
        super().__init__(config, plan, criterion, device=device, amp=amp, ranks=ranks)

    def terms(self, batch: DetectionBatch) -> LossTerms:
        """The loss of a batch of images."""
        return loss_of_images(self.model, self.criterion, batch)


def criterion_of(options: LossOptions) -> DetectionLoss:
    """The loss, with the weights of its terms."""
    return DetectionLoss(
        DetectionLossConfig(
            bbox_weight=options.bbox_weight,
            cls_weight=options.cls_weight,
            dfl_weight=options.dfl_weight,
            bbox_loss=options.bbox_loss,
        )
    )


def loss_of_images(model: RefDet, criterion: DetectionLoss, batch: DetectionBatch) -> LossTerms:
    """All terms of a batch of labelled images."""
    prediction = model(batch.images)
    found = positive_points(prediction, batch, task_aligned(prediction, batch))
    return criterion(prediction.logits, found)
