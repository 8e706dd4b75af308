"""What learns in stage 1: the scene's network under a standard head."""

from __future__ import annotations

import torch

from surefoot.data import DetectionBatch
from surefoot.losses import DetectionLoss, DetectionLossConfig
from surefoot.models import positive_points, task_aligned
from surefoot.recipes.hardware import Amp
from surefoot.recipes.ranks import ALONE, Ranks
from surefoot.recipes.refdet.build import Plan
from surefoot.recipes.refdet.config import TrainConfig
from surefoot.recipes.refdet.learner import DetectorLearner
from surefoot.shapes import LossTerms

__all__ = ["BaseLearner"]


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
        loss = config.loss
        criterion = DetectionLoss(
            DetectionLossConfig(
                bbox_weight=loss.bbox_weight,
                cls_weight=loss.cls_weight,
                dfl_weight=loss.dfl_weight,
                bbox_loss=loss.bbox_loss,
            )
        )
        super().__init__(config, plan, criterion, device=device, amp=amp, ranks=ranks)

    def terms(self, batch: DetectionBatch) -> LossTerms:
        """The loss of a batch of images."""
        prediction = self.model.classify(batch.images)
        found = positive_points(prediction, batch, task_aligned(prediction, batch))
        return self.criterion(prediction.logits, found)
