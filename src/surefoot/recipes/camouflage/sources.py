"""What a camouflage run learns from and is validated on."""

from __future__ import annotations

from dataclasses import dataclass

from surefoot.data.camouflage import (
    Augment,
    CamouflageDataset,
    CamouflageItems,
    PairReport,
    ProceduralCamouflage,
    find_pairs,
    hold_out,
)
from surefoot.errors import ConfigError
from surefoot.recipes.camouflage.config import CamouflageConfig

__all__ = ["Sources", "open_sources"]

_VALIDATION = 100
"""Procedural images to validate on."""


@dataclass(frozen=True)
class Sources:
    """Training items, validation items, and what was found while they were paired."""

    training: CamouflageItems
    validation: CamouflageItems | None = None
    report: PairReport | None = None


def open_sources(config: CamouflageConfig) -> Sources:
    """What the settings name; every file is looked at.

    Raises:
        ConfigError: nothing to learn from is named.
        DataError: not one usable pair is there.
    """
    data, seed = config.data, config.run.seed
    augment = Augment() if data.augment else None
    if data.procedural:
        made = ProceduralCamouflage(
            length=data.procedural, size=data.img_size, seed=seed, fresh=True, augment=augment
        )
        held = ProceduralCamouflage(
            length=_VALIDATION, size=data.img_size, seed=seed, split="validation"
        )
        return Sources(made, held)
    root = data.dataset_path or data.images
    if root is None:
        raise ConfigError(
            "camouflage: nothing to learn from. Give --dataset-path (COD10K, or TrainDataset/ with "
            "Imgs and GT), --images with --masks, or --procedural 500."
        )
    pairs = find_pairs(
        root,
        split="train",
        images=None if data.images is None else data.images.absolute(),
        masks=None if data.masks is None else data.masks.absolute(),
        noncam="include" if data.include_noncam else "exclude",
        drop_leaked=not data.keep_leaked,
    )
    learn, validate = hold_out(pairs, share=data.val_share, seed=seed)
    return Sources(
        CamouflageDataset(
            learn, size=data.img_size, augment=augment, seed=seed, cache_mb=data.cache_mb
        ),
        CamouflageDataset(validate, size=data.img_size, augment=None, cache_mb=data.cache_mb),
        pairs.report,
    )
