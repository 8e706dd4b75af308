"""What learns in a RefDet run, whatever its stage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor, nn

from surefoot.models import RefDet
from surefoot.models.transfer import transfer
from surefoot.recipes.hardware import Amp
from surefoot.recipes.learner import Learner as Guarded
from surefoot.recipes.learner import Steps
from surefoot.recipes.ranks import ALONE, Ranks
from surefoot.recipes.refdet.build import (
    Plan,
    build_criterion,
    build_model,
    parameter_groups,
    warmup_cosine,
)
from surefoot.recipes.refdet.config import TrainConfig
from surefoot.recipes.refdet.contrast import Contrast
from surefoot.recipes.refdet.criterion import RefDetCriterion
from surefoot.shapes import Episode, LossTerms

__all__ = ["DetectorLearner", "Learner", "loss_of_episode"]

Batch = TypeVar("Batch")
Criterion = TypeVar("Criterion", bound=nn.Module)


class DetectorLearner(Guarded[RefDet, Batch], Generic[Batch, Criterion]):
    """The network under AdamW and a warmed-up cosine.

    Args:
        config: the run's settings.
        plan: how long it is.
        criterion: the loss.
        device: where it computes.
        amp: half precision of the forward pass.
        ranks: the processes that train together.
    """

    described_by = "--preset, --fusion and --support-encoder"

    def __init__(
        self,
        config: TrainConfig,
        plan: Plan,
        criterion: Criterion,
        *,
        device: torch.device,
        amp: Amp,
        ranks: Ranks = ALONE,
    ) -> None:
        self.plan, self.criterion, options = plan, criterion.to(device), config.optimizer
        model = build_model(config.model, labelled=config.learns_classes).to(device)
        if config.model.freeze_yolo:
            model.freeze("backbone")
        if model.config.mode == "dual":
            model.standard.requires_grad_(False)
        model = ranks.synchronised(model, device, wanted=config.hardware.sync_batchnorm)
        super().__init__(
            model,
            self.criterion,
            optimizer=torch.optim.AdamW(
                parameter_groups(model, options), betas=(0.9, options.beta2), fused=True
            ),
            factor=warmup_cosine(plan),
            steps=Steps(
                clip=options.gradient_clip_norm,
                accumulate=options.gradient_accumulation,
                ema_decay=options.ema_decay,
                ema_warmup=options.ema_warmup,
            ),
            amp=amp,
            ranks=ranks,
        )

    def start_from(self, weights: Mapping[str, Tensor], *, name: str = "model") -> list[str]:
        """Take over what fits of an earlier stage's weights; see :func:`transfer`."""
        found = transfer(self.model, weights)
        if self.averaged is not None:
            self.averaged.module.load_state_dict(self.model.state_dict())
        told = [f"  {name} weights: {len(found.loaded)} tensors taken over"]
        for what, names in (("left out", found.left_out), ("not in them", found.fresh)):
            if names:
                parts = Counter(one.partition(".")[0] for one in names)
                told.append(f"  {what}: " + ", ".join(f"{k} ({n})" for k, n in parts.items()))
        return told

    @property
    def evaluated(self) -> tuple[str, RefDet]:
        """What is measured, by the name its weights have in a checkpoint: ``ema`` or ``model``."""
        name, module = list(self.candidates.items())[-1]
        return name, cast(RefDet, module)


class Learner(DetectorLearner[Episode, RefDetCriterion]):
    """The network and its loss of episodes."""

    def __init__(
        self,
        config: TrainConfig,
        plan: Plan,
        device: torch.device,
        amp: Amp,
        ranks: Ranks = ALONE,
    ) -> None:
        criterion = build_criterion(config.loss)
        super().__init__(config, plan, criterion, device=device, amp=amp, ranks=ranks)
        self._contrast = Contrast.of(config.loss)

    def terms(self, batch: Episode) -> LossTerms:
        """The loss of an episode."""
        return loss_of_episode(self.model, self.criterion, self._contrast, batch)


def loss_of_episode(
    model: RefDet, criterion: RefDetCriterion, contrast: Contrast, episode: Episode
) -> LossTerms:
    """All terms of an episode. A standard head beside the prototype head is not asked: it would
    take the statistics of what it does not learn from.
    """
    if model.config.mode == "dual":
        prediction = model.detect(episode.images, model.encode(episode.supports))
    else:
        prediction = model(episode.images, episode.supports)
    return contrast(criterion(prediction, episode), model, prediction, episode)
