"""Camouflage runs of seconds, for tests."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from surefoot.data.camouflage import ProceduralCamouflage
from surefoot.recipes.camouflage import CamouflageConfig
from surefoot.recipes.camouflage.options import (
    DataOptions,
    HardwareOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
)
from surefoot.recipes.camouflage.sources import open_sources
from surefoot.recipes.camouflage.train import train


def tiny(folder: Path, **run: Any) -> CamouflageConfig:
    """3 epochs of 5 steps (2 of them in stage 1), 20 images of 64 px in batches of 2."""
    return CamouflageConfig(
        run=RunOptions(**{"epochs": 3, "stage1_epochs": 2, "save_dir": folder, **run}),
        data=DataOptions(procedural=20, img_size=64, num_workers=0),
        model=ModelOptions(backbone="tiny", channels=8),
        optimizer=OptimizerOptions(lr=1e-3, accumulation_steps=2),
        hardware=HardwareOptions(device="cpu", precision="fp32"),
    )


def quiet(config: CamouflageConfig) -> Path:
    """Train, validated on three images; gives the run folder."""
    few = ProceduralCamouflage(length=3, size=64, seed=1, split="validation")
    sources = replace(open_sources(config), validation=few)
    return train(config, sources, stream=io.StringIO()).folder


def cod10k(root: Path, count: int = 6) -> Path:
    """A data set in COD10K's own layout."""
    random = np.random.default_rng(0)
    for split in ("Train", "Test"):
        for folder in ("Image", "GT_Object"):
            (root / split / folder).mkdir(parents=True)
        for i in range(count):
            stem = f"COD10K-CAM-{i % 5 + 1}-Aquatic-{i + 1}-Crab-{i + 1}"
            pixels = random.integers(0, 255, (48, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / "Image" / f"{stem}.jpg")
            mask = np.zeros((48, 60), np.uint8)
            mask[10:30, 15:40] = 255
            Image.fromarray(mask).save(root / split / "GT_Object" / f"{stem}.png")
    return root
