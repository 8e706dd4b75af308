"""A trained detector, from a run folder, a checkpoint or an ONNX file, in three lines.

from surefoot import ReferenceDetector

detector = ReferenceDetector.load("runs/refdet-20260102-030405")
references = detector.references([["mug_1.jpg", "mug_2.jpg", "mug_3.jpg"]])
found = detector.find(["frame.jpg"], references)[0]  # boxes in the pixels of the frame
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from surefoot.data import Letterbox, letterbox
from surefoot.data.video import read_image
from surefoot.errors import ConfigError, UsageError
from surefoot.recipes.hardware import Amp
from surefoot.recipes.refdet.candidates import best_candidates
from surefoot.recipes.refdet.engines import Engine, OnnxEngine, TorchEngine

__all__ = ["Candidates", "ObjectReferences", "ReferenceDetector", "Sightings"]

Picture: TypeAlias = NDArray[np.uint8]
Pictures: TypeAlias = Iterable[Picture | Path | str]

_LOOKED_AT = 64
"""Points of each object that suppression chooses from."""
_NEUTRAL = 0.5
"""Threshold of a detector that was never measured."""


@dataclass(frozen=True, kw_only=True)
class ObjectReferences:
    """N objects, as a detector's engine describes them: computed once, used for every picture."""

    names: tuple[str, ...]
    """N."""
    groups: tuple[tuple[tuple[int, ...], Any], ...]
    """Which of the objects, and what the engine says of them: one group per number of photos, so
    that no object's description depends on what else is asked for."""

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The best boxes of every object in one picture, best first."""

    boxes: NDArray[np.float64]
    """N L 4, x1 y1 x2 y2 in pixels of the picture."""
    scores: NDArray[np.float64]
    """N L, 0 to 1; 0 where there were fewer boxes."""


@dataclass(frozen=True, kw_only=True)
class Sightings:
    """What was found in one picture: at most one box of every object, in the objects' order."""

    boxes: NDArray[np.float64]
    """M 4, x1 y1 x2 y2 in pixels of the picture."""
    scores: NDArray[np.float64]
    """M, 0 to 1."""
    objects: NDArray[np.int64]
    """M: which of the references' objects."""


class ReferenceDetector:
    """Finds in pictures the objects that a few photos show.

    Args:
        engine: what computes.
        batch_size: pictures at once.
    """

    def __init__(self, engine: Engine, *, batch_size: int = 8) -> None:
        if batch_size < 1:
            raise ConfigError(f"--batch-size {batch_size}: has to be at least 1.")
        self.engine, self.batch_size = engine, batch_size

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        device: str = "cpu",
        amp: Amp = None,
        weights: str | None = None,
        batch_size: int = 8,
    ) -> Self:
        """From a run folder (its best checkpoint), one of its checkpoints, or an ``.onnx`` file.

        Args:
            path: of one of these; a damaged checkpoint of a run is passed over.
            device: where to compute, ``auto`` for a GPU where there is one; an ONNX file is run on
                the CPU.
            amp: half precision.
            weights: ``model`` or ``ema``; those that the checkpoint's score was measured on where
                it is not given.
            batch_size: pictures at once.

        Raises:
            ConfigError: no run of the detector and no ONNX file of one.
            CheckpointError: nothing whole is there, or it has no such weights.
        """
        path = Path(path)
        if path.suffix == ".onnx":
            return cls(OnnxEngine.load(path), batch_size=batch_size)
        engine = TorchEngine.load(path, device=device, amp=amp, weights=weights)
        return cls(engine, batch_size=batch_size)

    @property
    def source(self) -> str:
        """What it was loaded from."""
        return self.engine.traits.source

    @property
    def threshold(self) -> float:
        """Score from which on a box is given: as the run chose it on its calibration videos; 0.5
        where it was never measured, see :attr:`calibrated`.
        """
        stored = self.engine.traits.threshold
        return _NEUTRAL if stored is None else stored

    @property
    def calibrated(self) -> bool:
        """Whether :attr:`threshold` was chosen on videos."""
        return self.engine.traits.threshold is not None

    def references(
        self, objects: Sequence[Sequence[Picture | Path | str]], names: Sequence[str] | None = None
    ) -> ObjectReferences:
        """Look at the photos of objects.

        Args:
            objects: N of them, each a few photos: files, or H W 3 RGB bytes. Of each object the
                first ``k_shot`` are used, as many as the detector was trained with.
            names: N; numbers where they are not given.

        Raises:
            UsageError: no objects, one without photos, or an array that is no picture.
            DataError: a photo is missing or cannot be read.
        """
        called = tuple(str(i) for i in range(len(objects))) if names is None else tuple(names)
        if not objects or len(called) != len(objects):
            raise UsageError(
                f"references: {len(objects)} objects and {len(called)} names; expected at least "
                "one object, and a name for each."
            )
        traits, rows = self.engine.traits, dict[int, list[int]]()
        photos: list[list[Picture]] = []
        for row, given in enumerate(objects):
            if isinstance(given, str | Path) or not len(given):
                raise UsageError(
                    f"references: object {called[row]!r} has no list of photos; expected a few of "
                    'each object, as in [["a.jpg", "b.jpg", "c.jpg"]].'
                )
            used = [_picture(photo) for photo in given[: traits.k_shot]]
            photos.append([letterbox(photo, traits.support_size)[0] for photo in used])
            rows.setdefault(len(used), []).append(row)
        groups = tuple(
            (tuple(which), self.engine.encode(np.array([photos[row] for row in which])))
            for which in rows.values()
        )
        return ObjectReferences(names=called, groups=groups)

    def candidates(
        self, pictures: Pictures, references: ObjectReferences, *, limit: int = 5
    ) -> Iterator[Candidates]:
        """The best boxes of every object in every picture, whatever their scores are.

        Args:
            pictures: files, or H W 3 RGB bytes, of any sizes; read as they are needed.
            references: objects to look for.
            limit: L, boxes of each object, at least 1.

        Raises:
            UsageError: an array that is no picture.
            DataError: a file cannot be read.
        """
        queue = iter(pictures)
        while chunk := [_picture(one) for one in islice(queue, self.batch_size)]:
            yield from self._look(chunk, references, limit)

    def _look(
        self, chunk: Sequence[Picture], references: ObjectReferences, limit: int
    ) -> Iterator[Candidates]:
        size, count = self.engine.traits.image_size, len(references)
        squares, places = zip(*(letterbox(picture, size) for picture in chunk), strict=True)
        boxes = np.zeros((len(chunk), count, limit, 4))
        scores = np.zeros((len(chunk), count, limit))
        looked_at = max(_LOOKED_AT, 4 * limit) if limit > 1 else 1
        for which, known in references.groups:
            found = self.engine.detect(np.stack(squares), known, looked_at)
            boxes[:, which], scores[:, which] = best_candidates(*found, limit=limit)
        for picture, place, near, sure in zip(chunk, places, boxes, scores, strict=True):
            yield Candidates(boxes=_within(place, near, picture), scores=sure)

    def find(
        self, images: Pictures, references: ObjectReferences, threshold: float | None = None
    ) -> list[Sightings]:
        """What is in each picture: at most one box of every object.

        Args:
            images: files, or H W 3 RGB bytes.
            references: objects to look for.
            threshold: score from which on a box is given; :attr:`threshold` where not given.

        Raises:
            UsageError: an array that is no picture.
            DataError: a file cannot be read.
        """
        least = self.threshold if threshold is None else threshold
        return [sightings(c, least) for c in self.candidates(images, references, limit=1)]


def sightings(candidates: Candidates, threshold: float) -> Sightings:
    """The best box of every object that reaches a threshold."""
    objects = np.flatnonzero(candidates.scores[:, 0] >= threshold)
    return Sightings(
        boxes=candidates.boxes[objects, 0], scores=candidates.scores[objects, 0], objects=objects
    )


def _picture(given: Picture | Path | str) -> Picture:
    if isinstance(given, str | Path):
        return read_image(Path(given))
    if given.ndim != 3 or given.shape[2] != 3 or given.dtype != np.uint8 or not given.size:
        raise UsageError(
            f"detecting: a picture of shape {given.shape} and {given.dtype}; expected H W 3, RGB "
            "bytes, or the path of a file."
        )
    return given


def _within(place: Letterbox, boxes: NDArray[np.float64], picture: Picture) -> NDArray[np.float64]:
    """Boxes of the square as boxes of the picture: the part of them that lies in it."""
    height, width = picture.shape[:2]
    return np.clip(place.invert(boxes), 0, np.array([width, height] * 2, dtype=np.float64))
