"""``surefoot predict camouflage``: masks of pictures, as files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import track

from surefoot.data.camouflage import read_picture
from surefoot.errors import ConfigError, DataError
from surefoot.recipes.camouflage.pictures import overlay, side_by_side
from surefoot.recipes.camouflage.segmenter import Segmenter

__all__ = ["PredictConfig", "predict"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Segment pictures: a mask, the picture with the mask on it, and both beside each other."""

    checkpoint: Path
    """Run folder (its best checkpoint is taken), one of its checkpoints, or an .onnx file."""
    images: tuple[Path, ...]
    """Pictures, and folders of them."""
    out: Path
    """Folder for masks/, overlays/ and side_by_side/, each at the resolution of its picture."""
    weights: str | None = None
    """model or ema; those that the checkpoint's score was measured on where it is not given."""
    device: str = "cpu"
    """cpu, cuda, cuda:1..."""


def predict(config: PredictConfig, *, progress: bool = True) -> tuple[list[Path], list[str]]:
    """Write the masks.

    Args:
        config: the settings.
        progress: whether a bar is shown.

    Returns:
        The files of the masks, in the order of the pictures; and what could not be read.

    Raises:
        ConfigError: there are no pictures.
        DataError: not one of them can be read.
    """
    pictures = list(_pictures(config.images))
    segmenter = Segmenter.load(config.checkpoint, device=config.device, weights=config.weights)
    folders = {name: config.out / name for name in ("masks", "overlays", "side_by_side")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    problems: list[str] = []
    for path, name in track(pictures, description="masks", disable=not progress):
        try:
            picture = read_picture(path)
        except DataError as problem:
            problems.append(str(problem))
            continue
        chances = segmenter.mask(picture)
        written.append(folders["masks"] / f"{name}.png")
        Image.fromarray((chances * 255).round().astype(np.uint8)).save(written[-1])
        Image.fromarray(overlay(picture, chances)).save(folders["overlays"] / f"{name}.png")
        both = Image.fromarray(side_by_side(picture, chances))
        both.save(folders["side_by_side"] / f"{name}.png")
    if not written:
        raise DataError(f"predict: none of {len(pictures)} pictures can be read. {problems[0]}")
    return written, problems


def _pictures(paths: tuple[Path, ...]) -> Iterator[tuple[Path, str]]:
    """Every picture and a name of its own."""
    used: set[str] = set()
    found = False
    for path in paths:
        inside = sorted(path.iterdir()) if path.is_dir() else [path]
        for one in inside:
            if path.is_dir() and (one.suffix.lower() not in _SUFFIXES or one.name[0] == "."):
                continue
            name, number = one.stem, 2
            while name in used:
                name, number = f"{one.stem}-{number}", number + 1
            used.add(name)
            found = True
            yield one, name
    if not found:
        raise ConfigError(
            f"--images {' '.join(map(str, paths))}: there are no pictures "
            f"({', '.join(sorted(_SUFFIXES))})."
        )
