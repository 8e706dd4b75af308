"""From settings to the parts of a run: model, loss, optimizer, schedule, average, guard."""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from surefoot.losses import segmentation_terms, uncertainty_ramp
from surefoot.models.camouflage import (
    CamouflageNet,
    freeze_backbone,
    parameter_groups,
    unfreeze_backbone,
)
from surefoot.recipes.camouflage.config import CamouflageConfig
from surefoot.recipes.camouflage.options import LossOptions, ModelOptions
from surefoot.recipes.camouflage.schedule import Plan
from surefoot.recipes.hardware import Amp
from surefoot.recipes.learner import Learner, Steps
from surefoot.recipes.ranks import ALONE, Ranks
from surefoot.recipes.run_folder import to_resume
from surefoot.shapes import LossTerms

__all__ = ["Batch", "CamouflageLearner", "build_model", "term_weights"]


class Batch(TypedDict):
    """Items that were collated: ``image`` B 3 S S, ``mask`` B 1 S S, names and places."""

    image: Tensor
    mask: Tensor
    id: list[str]
    index: Tensor


def build_model(options: ModelOptions, *, weights: bool = True) -> CamouflageNet:
    """The network of the settings.

    Args:
        options: the settings.
        weights: whether the backbone's published weights are wanted; not where a checkpoint's are
            loaded afterwards.

    Raises:
        ConfigError: no such backbone.
        CheckpointError: its weights cannot be had.
    """
    published = options.backbone_weights or (options.pretrained and options.backbone != "tiny")
    return CamouflageNet(
        options.backbone,
        channels=options.channels,
        pretrained=published if weights else False,
        experts=options.num_experts,
    )


def term_weights(options: LossOptions, progress: float, *, experts: bool) -> dict[str, float]:
    """Weights of the loss terms when ``progress`` of the run, in [0, 1], is over.

    >>> round(term_weights(LossOptions(), 0.5, experts=False)["uncertainty"], 3)
    0.5
    """
    weights = {
        "structure": options.structure_weight,
        "deep": options.deep_supervision_weight,
        "edge": options.edge_weight,
        "uncertainty": options.uncertainty_weight * uncertainty_ramp(progress),
        "dice": options.dice_weight,
        "focal": options.focal_weight,
        "balance": options.balance_weight,
    }
    asked = {"dice": options.dice_weight, "focal": options.focal_weight, "balance": experts}
    return {name: weight for name, weight in weights.items() if asked.get(name, True)}


class CamouflageLearner(Learner[CamouflageNet, Batch]):
    """The network, and its two stages."""

    def __init__(
        self,
        config: CamouflageConfig,
        plan: Plan,
        device: torch.device,
        amp: Amp,
        ranks: Ranks = ALONE,
    ) -> None:
        self.plan, self._loss, options = plan, config.loss, config.optimizer
        run = config.run
        fresh = to_resume(run.resume, run.save_dir) is None and run.checkpoint is None
        model = build_model(config.model, weights=fresh).to(device)
        model = ranks.synchronised(model, device, wanted=config.hardware.sync_batchnorm)
        if plan.first_steps:
            freeze_backbone(model)
        groups = parameter_groups(
            model, options.lr, options.backbone_lr_scale, weight_decay=options.weight_decay
        )
        super().__init__(
            model,
            None,
            optimizer=torch.optim.AdamW(groups, fused=True),
            factor=plan.factor,
            steps=Steps(
                clip=options.grad_clip,
                accumulate=options.accumulation_steps,
                ema_decay=options.ema_decay if options.use_ema else 0.0,
            ),
            amp=amp,
            ranks=ranks,
        )

    def enter_stage(self, epoch: int) -> int:
        """Freeze or unfreeze the backbone for an epoch; gives its stage."""
        stage = self.plan.stage(epoch)
        if stage == 1:
            freeze_backbone(self.model)
        elif self.model.backbone_frozen:
            unfreeze_backbone(self.model)
        return stage

    def terms(self, batch: Batch) -> LossTerms:
        """The loss of a batch."""
        progress = self.schedule.last_epoch / self.plan.total_steps
        weights = term_weights(self._loss, progress, experts=bool(len(self.model.experts)))
        return segmentation_terms(self.model(batch["image"]), batch["mask"], weights=weights)
