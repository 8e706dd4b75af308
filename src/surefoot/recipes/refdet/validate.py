"""Held-out measurement: whole videos, un-augmented frames, boxes in the frames' own pixels.

One threshold decides when the detector speaks. It is chosen on calibration videos and then fixed;
the held-out videos have no say in it. The control repeats everything with the references of the
next video's object: a detector that looks at its references must fall far below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from surefoot.data import AeroEyes, Video, images_to_tensor, letterbox
from surefoot.metrics import DetectionMap, SpatioTemporalIoU, quiet_from
from surefoot.models import RefDet, References, best_boxes
from surefoot.recipes.hardware import Amp
from surefoot.recipes.ranks import ALONE, Ranks

__all__ = ["Detector", "Evaluation", "Measured", "Predictions", "calibrate", "evaluate", "overlap"]

Predictions = dict[int, tuple[NDArray[np.float64], float]]
"""Frame index to the best box (x1 y1 x2 y2, pixels of the frame) and its score."""


@dataclass(frozen=True, kw_only=True)
class Detector:
    """A model and how frames reach it."""

    model: RefDet
    device: torch.device
    amp: Amp = None
    image_size: int
    """Side of the square a frame is letterboxed to, in pixels."""
    support_size: int
    """Side of a reference photo, in pixels."""
    k_shot: int = 3
    """Photos of each object that are used."""
    batch_size: int = 8
    """Frames at once."""

    def _autocast(self) -> torch.autocast:
        half = torch.float16 if self.amp == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=half, enabled=self.amp is not None)

    @torch.inference_mode()
    def references(self, videos: Sequence[Video]) -> References:
        """What the photos of these videos' objects say of them: N objects, in their order.

        All get as many photos as the one with fewest has, and at most ``k_shot``.
        """
        self.model.eval()
        count = min(self.k_shot, *(len(video.references) for video in videos))
        photos = [
            [letterbox(video.read_reference(k), self.support_size)[0] for k in range(count)]
            for video in videos
        ]
        with self._autocast():
            return self.model.encode(images_to_tensor(np.array(photos)).to(self.device))

    @torch.inference_mode()
    def predict(
        self, video: Video, frames: Sequence[int], references: References
    ) -> list[Predictions]:
        """The best box of every frame, for each of the N objects of ``references``.

        Args:
            video: where the frames come from.
            frames: which of them; ascending order is the fastest.
            references: objects to look for.
        """
        self.model.eval()
        found: list[Predictions] = [{} for _ in references.prototypes]
        pictures = zip(frames, video.frames(frames), strict=True)
        while chunk := list(islice(pictures, self.batch_size)):
            squares, places = zip(
                *(letterbox(picture, self.image_size) for _, picture in chunk), strict=True
            )
            images = images_to_tensor(np.stack(squares)).to(self.device)
            with self._autocast():
                boxes, scores = best_boxes(self.model.detect(images, references))
            boxes, scores = boxes.double().cpu().numpy(), scores.cpu().numpy()
            for row, ((frame, _), place) in enumerate(zip(chunk, places, strict=True)):
                for number, predictions in enumerate(found):
                    box = _inside(place.invert(boxes[row, number]), video.size)
                    predictions[frame] = box, float(scores[row, number])
        return found


def _inside(box: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
    """The part of a box that lies in the frame."""
    return np.clip(box, 0, np.array([*size, *size], dtype=np.float64))


def overlap(box: NDArray[np.float64], truth: NDArray[np.float64]) -> float:
    """Largest IoU of a box (4) with one of the true boxes (n 4); 0 where there is none.

    >>> overlap(np.array([0.0, 0, 2, 2]), np.array([[0.0, 0, 2, 4], [5, 5, 6, 6]]))
    0.5
    """
    if not len(truth):
        return 0.0
    low, high = np.maximum(box[:2], truth[:, :2]), np.minimum(box[2:], truth[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    areas = (truth[:, 2:] - truth[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return float((shared / np.maximum(areas - shared, 1e-9)).max())


def frames_of(video: Video, count: int) -> list[int]:
    """``count`` frames of a video, evenly spread; all of them for 0."""
    total = video.frame_count
    if count == 0 or count >= total:
        return list(range(total))
    return [int(place) for place in (np.arange(count) + 0.5) * total / count]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one pass over videos gives; shares and overlaps are 0 to 1."""

    st_iou: float
    """Mean over videos of: overlaps summed over the frames that have a box on either side, divided
    by the number of those frames (the AeroEyes challenge's score)."""
    map50: float
    """Average precision at IoU 0.5, mean over objects; every frame gives its best box."""
    map75: float
    """The same at IoU 0.75."""
    recall: float
    """Of the frames with the object: the share with a box on it, IoU 0.5 or more."""
    false_alarms: float
    """Of the frames without the object: the share in which a box was given; NaN without any."""
    fires: float
    """Of all frames: the share in which a box was given. With the references of an object that is
    not in the video every one of them is a false alarm."""
    per_video: dict[str, float]
    """ST-IoU of each video."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A measurement, its control, and the threshold that both were taken at."""

    threshold: float
    right: Measured
    """With each video's own references."""
    swapped: Measured
    """With the references of another video's object."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a journal."""
        return asdict(self)

    def line(self) -> str:
        """The figures in one line."""
        right, swapped = self.right, self.swapped
        return (
            f"ST-IoU {right.st_iou:.3f}, mAP50 {right.map50:.3f}, mAP75 {right.map75:.3f}; with "
            f"another object's references {swapped.st_iou:.3f}, {swapped.map50:.3f}, "
            f"{swapped.map75:.3f}"
        )


@dataclass(frozen=True)
class _Seen:
    """A video's frames that were looked at, and what was found in them."""

    video: Video
    frames: Sequence[int]
    found: Predictions

    @property
    def truth(self) -> dict[int, NDArray[Any]]:
        return {f: self.video.boxes[f] for f in self.frames if f in self.video.boxes}


def calibrate(
    detector: Detector,
    data: AeroEyes,
    count: int,
    ranks: Ranks = ALONE,
    *,
    stranger_share: float = 1.0,
) -> float:
    """The score threshold with the best mean ST-IoU on ``data``, at which strangers stay unseen.

    Args:
        detector: the model and its settings.
        data: videos that are not the held-out ones.
        count: frames of each that are looked at, evenly spread; 0 = all.
        ranks: processes that divide the videos among them, and come to the same result.
        stranger_share: the most frames in which the references of the next video's object may bring
            a box; 1 asks for nothing, and with a single video nothing can be asked.
    """
    videos = data.videos
    asked: list[tuple[Video, ...]] = [(video,) for video in videos]
    if len(videos) > 1 and stranger_share < 1:
        asked = list(zip(videos, (*videos[1:], videos[0]), strict=True))

    def look(pair: tuple[Video, ...]) -> tuple[list[int], list[Predictions]]:
        frames = frames_of(pair[0], count)
        return frames, detector.predict(pair[0], frames, detector.references(pair))

    score, strange = SpatioTemporalIoU(), list[float]()
    for video, (frames, (found, *wrong)) in zip(videos, ranks.each(asked, look), strict=True):
        score.add(video.id, _Seen(video, frames, found).truth, found)
        strange += [sure for one in wrong for _, sure in one.values()]
    level = quiet_from(strange, stranger_share) if strange else -math.inf
    return score.best_threshold(at_least=level)


def evaluate(
    detector: Detector,
    videos: Sequence[Video],
    *,
    threshold: float,
    frames: int = 0,
    stranger: Video | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Measure on held-out videos at a threshold that was chosen elsewhere.

    Args:
        detector: the model and its settings.
        videos: videos that no training and no threshold has seen.
        threshold: score from which on a box is given.
        frames: frames of each that are looked at, evenly spread; 0 = all.
        stranger: video whose object is the control's where only one video is held out.
        ranks: processes that divide the videos among them, and come to the same result.
    """
    others = [*videos[1:], videos[0]] if len(videos) > 1 or stranger is None else [stranger]

    def look(pair: tuple[Video, Video]) -> tuple[list[int], list[Predictions]]:
        at = frames_of(pair[0], frames)
        return at, detector.predict(pair[0], at, detector.references(pair))

    seen = ranks.each(list(zip(videos, others, strict=True)), look)
    right, swapped = (
        [_Seen(video, at, found[i]) for video, (at, found) in zip(videos, seen, strict=True)]
        for i in (0, 1)
    )
    return Evaluation(
        threshold=threshold,
        right=_measure(right, threshold),
        swapped=_measure(swapped, threshold),
    )


def _measure(seen: Sequence[_Seen], threshold: float) -> Measured:
    score, precision = SpatioTemporalIoU(), DetectionMap()
    hits: list[bool] = []
    alarms: list[bool] = []
    fired: list[bool] = []
    for label, one in enumerate(seen):
        score.add(one.video.id, one.truth, one.found)
        for frame, (box, confidence) in one.found.items():
            truth = np.asarray(one.truth.get(frame, np.zeros((0, 4))), dtype=np.float64)
            precision.add(
                f"{one.video.id}/{frame}",
                box[None],
                np.array([confidence]),
                np.array([label]),
                truth,
                np.full(len(truth), label),
            )
            given = confidence >= threshold
            fired.append(given)
            if len(truth):
                hits.append(given and overlap(box, truth) >= 0.5)
            else:
                alarms.append(given)
    st_iou, mean_precision = score.result(threshold), precision.result()
    return Measured(
        st_iou=st_iou.mean,
        map50=mean_precision.map50,
        map75=mean_precision.map75,
        recall=float(np.mean(hits)) if hits else float("nan"),
        false_alarms=float(np.mean(alarms)) if alarms else float("nan"),
        fires=float(np.mean(fired)) if fired else float("nan"),
        per_video=dict(st_iou.per_video),
    )
