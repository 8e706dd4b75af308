"""How a run measures itself, by its own settings, and what it leaves behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from surefoot.data import AeroEyes
from surefoot.models import RefDet
from surefoot.recipes.hardware import Amp
from surefoot.recipes.ranks import ALONE, Ranks
from surefoot.recipes.refdet.build import IMAGE_SIZES
from surefoot.recipes.refdet.config import TrainConfig
from surefoot.recipes.refdet.options import DataOptions
from surefoot.recipes.refdet.validate import Detector, Evaluation, calibrate, evaluate

__all__ = ["Outcome", "detector_of", "measure"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a finished run leaves behind."""

    folder: Path
    detector: Detector
    """As it was measured last."""
    evaluation: Evaluation | None
    """The last one; None where nothing is held out."""
    seconds: float
    """Wall time of training and measuring, in this process."""
    first: bool = True
    """Whether this process is the one that speaks for all."""


def detector_of(config: TrainConfig, model: RefDet, device: torch.device, amp: Amp) -> Detector:
    """A model as the settings have it measured."""
    size, support_size = IMAGE_SIZES[config.model.preset]
    size = config.episode.image_size or size
    return Detector(
        model=model,
        device=device,
        amp=amp,
        image_size=config.episode.val_image_size or size,
        support_size=config.episode.support_size or support_size,
        k_shot=config.episode.k_shot,
        batch_size=config.hardware.batch_size,
    )


def measure(
    detector: Detector,
    calibration: AeroEyes,
    held_out: AeroEyes,
    options: DataOptions,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Choose the threshold on ``calibration``, and measure on ``held_out``; nothing is drawn."""
    threshold = calibrate(
        detector,
        calibration,
        options.calibration_frames,
        ranks,
        stranger_share=options.stranger_share,
    )
    return evaluate(
        detector,
        held_out.videos,
        threshold=threshold,
        frames=options.val_frames,
        stranger=calibration.videos[0],
        ranks=ranks,
    )
