"""Run a refused step of a RefDet run again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from surefoot.guard import Replay
from surefoot.guard import replay as replay_step
from surefoot.recipes.refdet.build import build_criterion, build_model
from surefoot.recipes.refdet.config import TrainConfig
from surefoot.recipes.run_folder import CONFIG
from surefoot.shapes import Episode, LossTerms

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
    parts = nn.ModuleDict(
        {"model": build_model(options), "criterion": build_criterion(config.loss)}
    )
    parts.to(device)

    def compute(episode: Episode) -> LossTerms:
        prediction = parts["model"](episode.images, episode.supports)
        return parts["criterion"](prediction, episode)

    return replay_step(step, parts, compute)
