"""Images with labelled boxes, from whatever layout they came in, and what was wrong with them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from surefoot.errors import DataError

__all__ = [
    "Fault",
    "LabelReport",
    "LabelledImage",
    "LabelledImages",
    "Notes",
    "image_sizes",
    "read_upright",
]

_SHOWN = 3
_ROUNDING = 1.0
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_ORIENTATION = 0x0112
_LYING = (5, 6, 7, 8)

Fault = str
"""What is wrong, and what was done about it; the same words for every instance of it."""


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """One image on disk and the boxes in it."""

    id: str
    """What it is called in reports and records."""
    path: Path
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    boxes: NDArray[np.float32]
    """M 4, x1 y1 x2 y2 in pixels, within the image, each of some area."""
    labels: NDArray[np.int64]
    """M, from 0: which class."""
    upright: bool = True
    """Whether the file's EXIF orientation is followed: sizes and boxes are of the turned image."""


@dataclass(frozen=True, kw_only=True)
class LabelReport:
    """What was read, and what was found on the way, by fault.

    >>> notes = Notes()
    >>> notes.add("crowd boxes, left out", "street.jpg")
    >>> print(notes.report(images=2, boxes=5, empty=1, classes=("boat",), source="labels.json"))
    2 images with 5 boxes of 1 class from labels.json; 1 image is without a box
      crowd boxes, left out: 1 (street.jpg)
    """

    source: str
    images: int
    boxes: int
    empty: int
    """Images without a box: they are background, and stay."""
    classes: tuple[str, ...]
    found: dict[Fault, tuple[str, ...]]
    """Where each fault is."""

    @property
    def clean(self) -> bool:
        """Nothing was wrong."""
        return not self.found

    def __str__(self) -> str:
        empty = (
            f"; {_count(self.empty, 'image')} {'is' if self.empty == 1 else 'are'} without a box"
        )
        lines = [
            f"{_count(self.images, 'image')} with {_count(self.boxes, 'box', 'boxes')} of "
            f"{_count(len(self.classes), 'class', 'classes')} from {self.source}"
            + (empty if self.empty else "")
        ]
        for fault, places in self.found.items():
            more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
            lines.append(f"  {fault}: {len(places)} ({', '.join(places[:_SHOWN])}{more})")
        return "\n".join(lines)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


class Notes:
    """Faults as they are met; see :class:`LabelReport`."""

    def __init__(self) -> None:
        self._found: defaultdict[Fault, list[str]] = defaultdict(list)

    def add(self, fault: Fault, place: str) -> None:
        """Note that something is wrong somewhere."""
        self._found[fault].append(place)

    def report(
        self, *, images: int, boxes: int, empty: int, classes: tuple[str, ...], source: str
    ) -> LabelReport:
        """What was noted, and the totals."""
        found = {fault: tuple(places) for fault, places in self._found.items()}
        return LabelReport(
            source=source, images=images, boxes=boxes, empty=empty, classes=classes, found=found
        )

    def fitting(
        self,
        boxes: NDArray[np.float64],
        labels: NDArray[np.int64],
        where: str,
        size: tuple[int, int],
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The boxes that can be learnt, cut at the border of their image; the others are noted.

        Args:
            boxes: M 4, x1 y1 x2 y2 in pixels.
            labels: M.
            where: what their image is called.
            size: width and height of the image in pixels.
        """
        cut = boxes.clip(0, np.tile(size, 2))
        out = np.abs(cut - boxes).max(axis=1, initial=0) > _ROUNDING
        gone, empty = (np.any(b[:, 2:] <= b[:, :2], axis=1) for b in (cut, boxes))
        finite = np.all(np.isfinite(boxes), axis=1)
        kept: dict[tuple[float, ...], int] = {}
        for row in range(len(boxes)):
            place = f"{where} {_written(boxes[row])}"
            if not finite[row]:
                self.add("boxes that are not finite, left out", place)
            elif empty[row]:
                self.add("boxes without area, left out", place)
            elif gone[row]:
                self.add("boxes outside their image, left out", place)
            elif (key := (*boxes[row].tolist(), float(labels[row]))) in kept:
                self.add("boxes that come twice, the first kept", place)
            else:
                kept[key] = row
                if out[row]:
                    self.add("boxes that reach outside their image, cut at its border", place)
        rows = list(kept.values())
        return cut[rows].astype(np.float32), labels[rows]


def _written(box: NDArray[np.float64]) -> str:
    return "[" + " ".join(f"{value:g}" for value in box) + "]"


@dataclass(frozen=True)
class LabelledImages(Sequence[LabelledImage]):
    """All images of a data set, or of a split of one, and the names of their classes."""

    images: tuple[LabelledImage, ...]
    classes: tuple[str, ...]
    report: LabelReport = field(repr=False)

    @classmethod
    def of(
        cls, images: Sequence[LabelledImage], classes: tuple[str, ...], notes: Notes, source: Path
    ) -> LabelledImages:
        """The images that could be read, with the report of those that could not.

        Raises:
            DataError: none could, or none has a box.
        """
        report = notes.report(
            images=len(images),
            boxes=sum(len(image.labels) for image in images),
            empty=sum(not len(image.labels) for image in images),
            classes=classes,
            source=str(source),
        )
        if not report.boxes:
            raise DataError(
                f"Reading the data set {source}: nothing to learn from.\n{report}", path=source
            )
        return cls(tuple(images), classes, report)

    def __len__(self) -> int:
        return len(self.images)

    @overload
    def __getitem__(self, index: int) -> LabelledImage: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[LabelledImage, ...]: ...
    def __getitem__(self, index: int | slice) -> LabelledImage | tuple[LabelledImage, ...]:
        return self.images[index]

    def __iter__(self) -> Iterator[LabelledImage]:
        return iter(self.images)


def image_sizes(path: Path) -> tuple[tuple[int, int], tuple[int, int]]:
    """Width and height as stored, and as they are once the EXIF orientation is followed.

    Raises:
        DataError: the file is missing or no image.
    """
    try:
        with Image.open(path) as image:
            stored = image.size
            lying = image.getexif().get(_ORIENTATION) in _LYING
    except _DAMAGE as error:
        raise DataError(f"reading {path}: {error}. Replace or remove it.", path=path) from error
    return stored, (stored[1], stored[0]) if lying else stored


def read_upright(image: LabelledImage) -> NDArray[np.uint8]:
    """H W 3 RGB bytes, turned as its boxes are.

    Raises:
        DataError: the file is missing, damaged, or not of the size that it had.
    """
    try:
        with Image.open(image.path) as opened:
            turned = ImageOps.exif_transpose(opened) if image.upright else opened
            picture = np.array(turned.convert("RGB"))
    except _DAMAGE as error:
        raise DataError(
            f"reading {image.path}: {error}. Replace or remove it.", path=image.path
        ) from error
    if picture.shape[:2] != (image.height, image.width):
        raise DataError(
            f"reading {image.path}: it is {picture.shape[1]}x{picture.shape[0]} pixels, and was "
            f"{image.width}x{image.height} when the data set was read; read the data set anew.",
            path=image.path,
        )
    return picture
