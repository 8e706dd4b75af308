"""Run a refused step of a RefDet run again."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import nn

from surefoot.guard import Replay
from surefoot.guard import replay as replay_step
from surefoot.recipes.refdet.base.learner import criterion_of, loss_of_images
from surefoot.recipes.refdet.build import build_criterion, build_model
from surefoot.recipes.refdet.config import TrainConfig
from surefoot.recipes.refdet.contrast import Contrast
from surefoot.recipes.refdet.learner import loss_of_episode
from surefoot.recipes.run_folder import CONFIG

__all__ = ["replay_refdet"]


def replay_refdet(run: Path, step: Path, device: torch.device) -> Replay:
    """Build model and criterion from the run's settings, and run one of its kept steps in them.

    Args:
        run: the run folder.
        step: one of its kept steps.
        device: where to run it.

    Raises:
        ConfigError: the settings are damaged.
        CheckpointError: the kept step is.
    """
    config = TrainConfig.load(run / CONFIG)
    # Every weight comes from the kept step; nothing is fetched for it.
    options = replace(config.model, pretrained=False, support_weights=None)
    model = build_model(options, labelled=config.learns_classes)
    if config.learns_classes:
        criterion = criterion_of(config.loss)
        compute = partial(loss_of_images, model, criterion)
    else:
        criterion = build_criterion(config.loss)
        compute = partial(loss_of_episode, model, criterion, Contrast.of(config.loss))
    parts = nn.ModuleDict({"model": model, "criterion": criterion}).to(device)
    return replay_step(step, parts, compute)
