"""``surefoot predict refdet``: photos of objects and a video in, a video with their boxes out."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Literal, TextIO

import numpy as np
from PIL import Image

from surefoot.data.video import read_image
from surefoot.errors import ConfigError, DataError
from surefoot.recipes.refdet.asked import objects_of, pictures_in
from surefoot.recipes.refdet.drawing import draw_sightings
from surefoot.recipes.refdet.finder import (
    Candidates,
    ObjectReferences,
    ReferenceDetector,
    Sightings,
    sightings,
)
from surefoot.recipes.refdet.footage import (
    VIDEO_SUFFIXES,
    FolderWriter,
    VideoWriter,
    open_frames,
    timing_of,
)
from surefoot.recipes.refdet.tracks import likely_tracks
from surefoot.recipes.refdet.work_bar import WorkBar
from surefoot.recipes.refdet.written import submission, write_boxes, write_json

__all__ = ["PredictConfig", "Predicted", "predict", "smoothed"]

_CANDIDATES = 5


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Find the objects of reference photos in a video, or in pictures, and draw their boxes."""

    checkpoint: Path
    """Run folder (its best checkpoint is taken), one of its checkpoints, or an .onnx file."""
    references: tuple[Path, ...]
    """Photos of one object; or, for several objects, a folder of photos for each."""
    out: Path
    """Video to write (.mp4, .mkv, .mov), with the boxes beside it as .json and .csv; or a folder
    for drawn pictures."""
    video: Path | None = None
    """Video, or folder of its frames."""
    images: tuple[Path, ...] | None = None
    """Pictures that have nothing to do with each other, and folders of them, instead."""
    threshold: float | None = None
    """Score from which on a box is given; the one that the run chose on its calibration videos
    where it is not given."""
    smooth: Literal["none", "viterbi"] = "none"
    """viterbi: the likeliest path of each object through the whole video, instead of every frame
    by itself. It drops what shows in a single frame, and fills a single missing one."""
    fps: float | None = None
    """Frames per second of a folder of frames; 25 where it is not given. A video has its own."""
    weights: str | None = None
    """model or ema; those that the checkpoint's score was measured on where it is not given."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1..."""
    batch_size: int = 8
    """Frames at once."""

    def __post_init__(self) -> None:
        if (self.video is None) == (self.images is None):
            raise ConfigError("predict: give either --video or --images.")
        if self.images is not None and self.smooth != "none":
            raise ConfigError(
                f"--smooth {self.smooth}: pictures of --images have no order in time; give --video "
                "(a folder of frames is one)."
            )
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ConfigError(f"--threshold {self.threshold}: has to be between 0 and 1.")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ConfigError(f"--fps {self.fps}: has to be above 0, and at most 1000.")
        if self.video is not None and self.out.absolute() == self.video.absolute():
            raise ConfigError(f"--out {self.out}: is the --video itself; choose another path.")


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """What was found, and where it was written."""

    out: Path
    """The video, or the folder of pictures."""
    boxes: Path
    """The JSON file; a CSV of the same name lies beside it."""
    frames: int
    """Pictures that were looked at."""
    shown: Mapping[str, int]
    """By object: pictures in which it was found."""
    threshold: float
    problems: tuple[str, ...] = field(default=())
    """What could not be read."""


def predict(config: PredictConfig, *, stream: TextIO | None = None) -> Predicted:
    """Look for the objects, draw, write.

    Args:
        config: the settings.
        stream: where progress is written; standard output where it is not given.

    Raises:
        ConfigError: settings that cannot work, or nothing to look at or for.
        CheckpointError: nothing whole to load.
        DataError: a photo or the video cannot be read, or none of the pictures.
    """
    objects = objects_of(config.references)
    out = stream or sys.stdout
    detector = ReferenceDetector.load(
        config.checkpoint,
        device=config.device,
        weights=config.weights,
        batch_size=config.batch_size,
    )
    threshold = detector.threshold if config.threshold is None else config.threshold
    if config.threshold is None and not detector.calibrated:
        out.write(
            f"{detector.source} has no threshold: its run held no videos out to measure on. "
            f"{threshold} is taken; surefoot eval refdet finds a better one.\n"
        )
    references = detector.references(list(objects.values()), list(objects))
    if config.video is None:
        return _pictures(config, detector, references, threshold, out)
    return _video(config, detector, references, threshold, out)


def smoothed(
    candidates: Sequence[Candidates], threshold: float, frames: Sequence[int] | None = None
) -> list[Sightings]:
    """The likeliest path of every object through frames in their order.

    Args:
        candidates: of every frame.
        threshold: score at which an object is as likely there as not.
        frames: which frames they are; consecutive ones where it is not given.
    """
    boxes = np.stack([one.boxes for one in candidates], axis=1)  # N T L 4
    scores = np.stack([one.scores for one in candidates], axis=1)
    at = None if frames is None else np.asarray(frames, np.int64)
    limits = np.array([threshold])
    tracks = [likely_tracks(b, s, limits, frames=at) for b, s in zip(boxes, scores, strict=True)]
    path = np.stack([track.boxes[0] for track in tracks], axis=1)  # T N 4
    sure = np.stack([track.scores[0] for track in tracks], axis=1)
    return [
        sightings(Candidates(boxes=b[:, None], scores=s[:, None]), threshold)
        for b, s in zip(path, sure, strict=True)
    ]


def _video(
    config: PredictConfig,
    detector: ReferenceDetector,
    references: ObjectReferences,
    threshold: float,
    stream: TextIO,
) -> Predicted:
    assert config.video is not None
    source = open_frames(config.video)
    rate = None if config.fps is None else Fraction(config.fps).limit_denominator(1001)
    timing = timing_of(source, rate)
    everything = range(source.count)
    bar = WorkBar(title="Looking", total=source.count, stream=stream)
    limit = _CANDIDATES if config.smooth == "viterbi" else 1
    near = list(bar.over(detector.candidates(source.read(everything), references, limit=limit)))
    if config.smooth == "viterbi":
        found = smoothed(near, threshold)
    else:
        found = [sightings(one, threshold) for one in near]
    as_video = config.out.suffix.lower() in VIDEO_SUFFIXES
    home = config.out.parent if as_video else config.out
    home.mkdir(parents=True, exist_ok=True)
    boxes = config.out.with_suffix(".json") if as_video else config.out / "boxes.json"
    numbered = dict(enumerate(found))
    write_json(boxes, submission(_name(config.video), references.names, numbered))
    write_boxes(boxes.with_suffix(".csv"), references.names, numbered)
    bar = WorkBar(title="Drawing", total=source.count, stream=stream)
    with (
        VideoWriter(config.out, source.size, timing) if as_video else FolderWriter(config.out)
    ) as out:
        frames = bar.over(source.read(everything))
        for picture, one in zip(frames, found, strict=True):
            out.write(draw_sightings(picture, one, references.names))
    return _told(config.out, boxes, references, found, threshold)


def _told(
    out: Path,
    boxes: Path,
    references: ObjectReferences,
    found: Sequence[Sightings],
    threshold: float,
    problems: Sequence[str] = (),
) -> Predicted:
    counts = np.bincount(
        np.concatenate([np.zeros(0, np.int64), *(one.objects for one in found)]),
        minlength=len(references),
    )
    return Predicted(
        out=out,
        boxes=boxes,
        frames=len(found),
        shown=dict(zip(references.names, counts.tolist(), strict=True)),
        threshold=threshold,
        problems=tuple(problems),
    )


def _name(video: Path) -> str:
    """The video's own name; in the AeroEyes layout its folder's."""
    whole = video.absolute()
    inside = whole.stem == "drone_video" or (whole.is_dir() and whole.name == "frames")
    return whole.parent.name if inside else whole.stem


def _pictures(
    config: PredictConfig,
    detector: ReferenceDetector,
    references: ObjectReferences,
    threshold: float,
    stream: TextIO,
) -> Predicted:
    if config.out.suffix.lower() in VIDEO_SUFFIXES:
        raise ConfigError(f"--out {config.out}: pictures of --images need a folder, not a video.")
    paths = _paths(config.images or ())
    problems: list[str] = []
    config.out.mkdir(parents=True, exist_ok=True)
    bar = WorkBar(title="Looking", total=len(paths), unit="pictures", stream=stream)
    found: dict[str, Sightings] = {}
    for path in bar.over(paths):
        try:
            picture = read_image(path)
        except DataError as problem:
            problems.append(str(problem))
            continue
        (one,) = detector.find([picture], references, threshold)
        name = _free(path, found)
        found[name] = one
        Image.fromarray(draw_sightings(picture, one, references.names)).save(config.out / name)
    if not found:
        raise DataError(f"predict: none of {len(paths)} pictures can be read. {problems[0]}")
    boxes = config.out / "boxes.json"
    names = references.names
    write_json(
        boxes, [{"image": key, "detections": _plain(one, names)} for key, one in found.items()]
    )
    write_boxes(boxes.with_suffix(".csv"), names, found)
    return _told(config.out, boxes, references, list(found.values()), threshold, problems)


def _plain(found: Sightings, names: Sequence[str]) -> list[dict[str, object]]:
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.objects.tolist(), strict=True)
    return [
        {
            "object": names[number],
            "score": score,
            **dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
        }
        for box, score, number in rows
    ]


def _free(path: Path, used: Mapping[str, object]) -> str:
    name, number = f"{path.stem}.png", 2
    while name in used:
        name, number = f"{path.stem}-{number}.png", number + 1
    return name


def _paths(given: Sequence[Path]) -> list[Path]:
    paths = [one for path in given for one in (pictures_in(path) if path.is_dir() else [path])]
    if not paths:
        raise ConfigError(f"--images {' '.join(map(str, given))}: there are no pictures there.")
    return paths
