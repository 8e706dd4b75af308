"""One image and its mask on disk: read, and looked at before a run begins."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from surefoot.errors import DataError

__all__ = ["Look", "look_at", "read_mask", "read_picture"]

# What Pillow raises for files that are no images, cut short, damaged or absurdly large.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_OBJECT = 127
"""Mask values above this are the object."""


def read_picture(path: Path) -> NDArray[np.uint8]:
    """H W 3 RGB bytes, as stored: an EXIF orientation is ignored, as in the masks.

    Raises:
        DataError: the file is missing, no image, or damaged.
    """
    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))
    except _DAMAGE as error:
        raise DataError(f"reading {path}: {error}. Replace or remove it.", path=path) from error


def read_mask(path: Path) -> NDArray[np.uint8]:
    """H W bytes, 1 on the object and 0 elsewhere, as stored.

    Values above 127 are the object; in a mask that holds nothing above 1, that is 1.

    Raises:
        DataError: the file is missing, no image, or damaged.
    """
    try:
        with Image.open(path) as image:
            return _binary(_grey(image))
    except _DAMAGE as error:
        raise DataError(f"reading {path}: {error}. Replace or remove it.", path=path) from error


def _grey(image: Image.Image) -> NDArray[np.uint8]:
    return np.array(image.convert("L"))


def _binary(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    floor = _OBJECT if grey.max(initial=0) > 1 else 0
    return (grey > floor).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Look:
    """What a pair of files is."""

    image: tuple[int, int] = (0, 0)
    """Width and height in pixels."""
    mask: tuple[int, int] = (0, 0)
    """Width and height in pixels."""
    others: tuple[int, ...] = ()
    """Values of the mask that are neither 0 nor 255, ascending."""
    empty: bool = False
    """No pixel of the mask is the object."""
    fault: str | None = None
    """Which file cannot be read, and why."""


def look_at(image: Path, mask: Path | None, *, decode: bool) -> Look:
    """Open both files; decode them as well, unless only their sizes are asked for."""
    try:
        size = _image_size(image, decode=decode)
    except _DAMAGE as error:
        return Look(fault=f"{image}: {error}")
    if mask is None:
        return Look(image=size, mask=size, empty=True)
    try:
        with Image.open(mask) as opened:
            if not decode:
                return Look(image=size, mask=opened.size)
            grey = _grey(opened)
    except _DAMAGE as error:
        return Look(fault=f"{mask}: {error}")
    values = np.flatnonzero(np.bincount(grey.ravel(), minlength=256)).tolist()
    return Look(
        image=size,
        mask=(grey.shape[1], grey.shape[0]),
        others=tuple(value for value in values if value not in (0, 255)),
        empty=not _binary(grey).any(),
    )


def _image_size(path: Path, *, decode: bool) -> tuple[int, int]:
    with Image.open(path) as image:
        size = image.size
        if decode:  # JPEG at an eighth of its size: every byte is read, few are computed with
            image.draft("RGB", (size[0] // 8, size[1] // 8))
            image.load()
    return size
