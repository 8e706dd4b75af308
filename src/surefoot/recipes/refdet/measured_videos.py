"""A detector's figures over whole videos: from the best boxes of every frame to scores.

Looking is separate from deciding: what a detector sees of a video is kept, so that thresholds are
tried without looking again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surefoot.data import Video
from surefoot.metrics import DetectionMap, SpatioTemporalIoU, quiet_from
from surefoot.recipes.refdet.candidates import overlaps
from surefoot.recipes.refdet.finder import ReferenceDetector
from surefoot.recipes.refdet.tracks import likely_tracks
from surefoot.recipes.refdet.validate import frames_of

__all__ = ["OWN", "STRANGER", "Decided", "Figures", "Looked", "best_threshold", "figures", "look"]

Array = NDArray[np.float64]
OWN = "of the object"
"""Name of the references that a video came with; the others are controls."""
STRANGER = "of another object"
"""Name of another video's."""
_LIMIT = 5
_TRIED = 48


@dataclass(frozen=True)
class Looked:
    """What a detector saw of a video."""

    video: Video
    frames: NDArray[np.int64]
    """F, ascending."""
    asked: tuple[str, ...]
    """R: which references were asked for."""
    boxes: Array
    """R F L 4, best first."""
    scores: Array
    """R F L."""

    def decided(self, threshold: float, *, smooth: bool, row: int = 0) -> Decided:
        """The box of every frame and its score, by itself or on the likeliest path."""
        if not smooth:
            return Decided(self, self.boxes[row, :, 0], self.scores[row, :, 0], threshold)
        tracks = self.tracks(np.array([threshold]), row)
        return Decided(self, tracks[0][0], tracks[1][0], threshold)

    def tracks(self, thresholds: Array, row: int = 0) -> tuple[Array, Array]:
        """The likeliest paths: boxes M F 4 and scores M F."""
        found = likely_tracks(self.boxes[row], self.scores[row], thresholds, frames=self.frames)
        return found.boxes, found.scores

    @property
    def truth(self) -> dict[int, NDArray[Any]]:
        """Boxes of the frames that were looked at and have one."""
        return {f: self.video.boxes[f] for f in self.frames.tolist() if f in self.video.boxes}


@dataclass(frozen=True)
class Decided:
    """A box and a score for every frame of a video, and the score from which on it is given."""

    of: Looked
    boxes: Array
    """F 4."""
    scores: Array
    """F."""
    threshold: float

    @property
    def given(self) -> NDArray[np.bool_]:
        """F: whether the box is given."""
        return self.scores >= self.threshold

    @property
    def overlap(self) -> Array:
        """F: largest IoU with a true box; NaN in frames without the object."""
        values = np.full(len(self.boxes), np.nan)
        for place, frame in enumerate(self.of.frames.tolist()):
            truth = self.of.video.boxes.get(frame)
            if truth is not None and len(truth):
                values[place] = overlaps(self.boxes[place][None], truth.astype(np.float64)).max()
        return values

    @property
    def predictions(self) -> dict[int, tuple[Array, float]]:
        """By frame, as the metrics want them."""
        rows = zip(self.of.frames.tolist(), self.boxes, self.scores.tolist(), strict=True)
        return {frame: (box, score) for frame, box, score in rows}

    @property
    def st_iou(self) -> float:
        """Of this video at its threshold."""
        score = SpatioTemporalIoU()
        score.add(self.of.video.id, self.of.truth, self.predictions)
        return score.result(self.threshold).mean


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What videos come to with one kind of references; shares and overlaps are 0 to 1, NaN where
    there was nothing to take them of.
    """

    st_iou: float
    """Mean over videos."""
    map50: float
    """Average precision at IoU 0.5, mean over objects; every frame gives its best box."""
    map50_95: float
    """Mean of it at the overlaps 0.50, 0.55, ... 0.95."""
    precision: float
    """Of the boxes given: the share that is on the object, IoU 0.5 or more."""
    recall: float
    """Of the frames with the object: the share with a box on it, IoU 0.5 or more."""
    fires_present: float
    """Of the frames with the object: the share in which a box is given, wherever."""
    fires_empty: float
    """Of the frames without the object: the share in which a box is given."""
    per_video: Mapping[str, float]
    """ST-IoU of each video."""


def look(
    detector: ReferenceDetector,
    video: Video,
    references: Mapping[str, Sequence[Any]],
    count: int = 0,
) -> Looked:
    """See a video with several references at once: one pass of the scene's network for all.

    Args:
        detector: the detector.
        video: where the frames come from.
        references: photos by what they are called; the video's own come first.
        count: frames that are looked at, evenly spread; 0 = all.
    """
    frames = frames_of(video, count)
    known = detector.references(list(references.values()), list(references))
    near = list(detector.candidates(video.frames(frames), known, limit=_LIMIT))
    return Looked(
        video,
        np.array(frames, dtype=np.int64),
        known.names,
        np.stack([one.boxes for one in near], axis=1),
        np.stack([one.scores for one in near], axis=1),
    )


def best_threshold(looked: Sequence[Looked], *, smooth: bool, stranger_share: float = 1.0) -> float:
    """The threshold with the best mean ST-IoU on these videos with their own references.

    Where they were looked at with another object's as well (the second row), it is high enough that
    those bring a box in at most ``stranger_share`` of the frames.

    Without smoothing every score that occurs is tried, exactly as in training. With it, 48 scores
    spread over those that occur, each with the paths that it makes likeliest.
    """
    score = SpatioTemporalIoU()
    for one in looked:
        score.add(one.video.id, one.truth, one.decided(0.0, smooth=False).predictions)
    wrong = [one.scores[1, :, 0] for one in looked if STRANGER in one.asked[1:2]]
    quiet = quiet_from(np.concatenate(wrong), stranger_share) if wrong else -np.inf
    plain = score.best_threshold(at_least=quiet)
    if not smooth:
        return plain
    scores = np.concatenate([one.scores[0, :, 0] for one in looked])
    tried = np.unique(np.append(np.quantile(scores, np.linspace(0, 1, _TRIED)), plain))
    tried = tried[tried >= quiet]
    total = np.zeros(len(tried))
    for one in looked:
        paths = zip(*one.tracks(tried), tried.tolist(), strict=True)
        total += [Decided(one, boxes, sure, level).st_iou for boxes, sure, level in paths]
    return float(tried[np.flatnonzero(total >= total.max() - 1e-12 * len(looked))[-1]])


def figures(decided: Sequence[Decided]) -> Figures:
    """The figures of videos, each decided at its own threshold."""
    precision = DetectionMap()
    for label, one in enumerate(decided):
        for frame, (box, score) in one.predictions.items():
            truth = np.asarray(one.of.video.boxes.get(frame, np.zeros((0, 4))), dtype=np.float64)
            precision.add(
                (one.of.video.id, frame),
                box[None],
                np.array([score]),
                np.array([label]),
                truth,
                np.full(len(truth), label),
            )
    found = precision.result()
    given = np.concatenate([one.given for one in decided])
    overlap = np.concatenate([one.overlap for one in decided])
    there, on = ~np.isnan(overlap), given & (overlap >= 0.5)
    per_video = {one.of.video.id: one.st_iou for one in decided}
    return Figures(
        st_iou=float(np.mean(list(per_video.values()))),
        map50=found.map50,
        map50_95=found.map,
        precision=_share(on[given]),
        recall=_share(on[there]),
        fires_present=_share(given[there]),
        fires_empty=_share(given[~there]),
        per_video=per_video,
    )


def _share(flags: NDArray[np.bool_]) -> float:
    return float(flags.mean()) if len(flags) else float("nan")
