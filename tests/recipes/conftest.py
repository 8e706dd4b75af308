"""A procedural video set small enough to train on within a test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from surefoot.data import write_aeroeyes
from surefoot.recipes.refdet import (
    DataOptions,
    EpisodeOptions,
    HardwareOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
    TrainConfig,
)


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train/ (3 videos) and val/ (2 videos of other objects), 8 frames of 64 px."""
    root = tmp_path_factory.mktemp("videos")
    for name, split, count in (("train", "train", 3), ("val", "validation", 2)):
        write_aeroeyes(root / name, videos=count, frames=8, size=64, split=split)
    return root


@pytest.fixture(scope="session")
def tiny_flags(videos: Path) -> Callable[..., list[str]]:
    """Makes arguments of ``surefoot train refdet`` for a run of seconds into a folder."""

    def flags(folder: Path, *more: str) -> list[str]:
        return [
            "--stage", "2", "--preset", "pocket", "--device", "cpu", "--precision", "fp32",
            "--data_root", str(videos / "train"),
            "--val_data_root", str(videos / "val" / "samples"),
            "--val_annotations", str(videos / "val" / "annotations" / "annotations.json"),
            "--n_way", "2", "--n_query", "2", "--n_episodes", "3", "--image_size", "64",
            "--support_size", "32", "--lr", "1e-3", "--num_workers", "0",
            "--save_dir", str(folder), *more,
        ]  # fmt: skip

    return flags


@pytest.fixture(scope="session")
def tiny_config(videos: Path) -> Callable[..., TrainConfig]:
    """Makes settings of a run of seconds into a folder: 2 epochs of 3 episodes."""

    def config(folder: Path, **run: object) -> TrainConfig:
        return TrainConfig(
            run=RunOptions(epochs=2, save_dir=folder, **run),  # type: ignore[arg-type]
            data=DataOptions(
                data_root=videos / "train", val_data_root=videos / "val", num_workers=0
            ),
            episode=EpisodeOptions(
                n_way=2, n_query=2, n_episodes=3, image_size=64, support_size=32
            ),
            model=ModelOptions(preset="pocket"),
            optimizer=OptimizerOptions(lr=1e-3, warmup_epochs=1.0),
            hardware=HardwareOptions(device="cpu", precision="fp32"),
        )

    return config
