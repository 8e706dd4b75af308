"""``surefoot eval refdet``: a trained detector on whole videos, beside the controls.

The threshold comes from calibration videos, or, with ``--leave-one-out``, for every video from the
others; the measured video has no say in it. The controls ask with the photos of another object,
with plain noise and with plain grey: a detector that looks at its references must be silent there.
"""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
from rich.console import Console
from rich.table import Table

from surefoot.data import AeroEyes, Video
from surefoot.errors import ConfigError
from surefoot.metrics import Interval, bootstrap_interval
from surefoot.recipes.refdet.finder import ReferenceDetector
from surefoot.recipes.refdet.measured_videos import (
    OWN,
    STRANGER,
    Decided,
    Figures,
    Looked,
    best_threshold,
    figures,
    look,
)
from surefoot.recipes.refdet.work_bar import WorkBar
from surefoot.recipes.refdet.written import write_json

__all__ = ["EvalConfig", "Report", "evaluate_detector", "print_report"]

_NOISE, _GREY = "plain noise", "plain grey"
_PHOTO = 64


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Measure a trained detector on videos, with right references, wrong ones and empty ones."""

    checkpoint: Path
    """Run folder (its best checkpoint is taken), one of its checkpoints, or an .onnx file."""
    data_root: Path
    """Videos: the folder that holds samples/ and annotations/, or samples/ itself."""
    annotations: Path | None = None
    """Annotation file of --data-root; looked for beside the samples where it is not given."""
    held_out: tuple[str, ...] = ()
    """Names of the videos of --data-root that are measured on; the others choose the threshold.
    All are measured on where none is named."""
    calibration_data_root: Path | None = None
    """Videos on which the threshold is chosen, instead."""
    leave_one_out: bool = False
    """Choose the threshold of every video on the other measured ones."""
    threshold: float | None = None
    """Score from which on a box is given, where it is not to be chosen."""
    smooth: Literal["none", "viterbi"] = "none"
    """viterbi: the likeliest path of the object through the whole video, instead of every frame by
    itself."""
    frames: int = 0
    """Frames of each video that are looked at, evenly spread; 0 = all, as the challenge counts."""
    calibration_frames: int = 0
    """The same for videos that choose the threshold."""
    stranger_share: float = 0.2
    """The most of those frames in which references of another video's object may bring a box; 1 =
    the threshold with the best ST-IoU, whatever it finds."""
    out: Path | None = None
    """Folder for scores.json and frames.csv, a row for every frame."""
    weights: str | None = None
    """model or ema; those that the checkpoint's score was measured on where it is not given."""
    device: str = "auto"
    """auto (a GPU where there is one), cpu, cuda, cuda:1..."""
    batch_size: int = 8
    """Frames at once."""
    seed: int = 0
    """Of the noise, and of the bootstrap."""

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ConfigError(f"--threshold {self.threshold}: has to be between 0 and 1.")
        if not 0 <= self.stranger_share <= 1:
            raise ConfigError(
                f"--stranger-share {self.stranger_share}: has to be a share from 0 to 1."
            )
        for name in ("frames", "calibration_frames"):
            if getattr(self, name) < 0:
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{flag} {getattr(self, name)}: has to be 0 (all) or more.")
        ways = (self.threshold is not None, self.leave_one_out, self.calibration_data_root)
        if sum(map(bool, ways)) > 1:
            raise ConfigError(
                "--threshold, --leave-one-out and --calibration-data-root each say where the "
                "threshold comes from; give one of them."
            )


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was measured."""

    source: str
    thresholds: Mapping[str, float]
    """Of each video."""
    chosen: str
    """Where they come from, as a sentence without its full stop."""
    figures: Mapping[str, Figures]
    """By what was asked with; the object's own photos first."""
    interval: Interval
    """ST-IoU of other videos of this kind."""
    unfair: float
    """ST-IoU at the one threshold that is best on the measured videos themselves: no result, but
    what another threshold could still give."""
    smooth: str
    videos: Mapping[str, tuple[int, int]]
    """Frames that were looked at in each video, and how many of them show the object."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what could not be measured is null."""
        return _plain(asdict(self))


def evaluate_detector(config: EvalConfig, *, stream: TextIO | None = None) -> Report:
    """Look at every video, choose the threshold elsewhere, measure.

    Args:
        config: the settings.
        stream: where progress is written; standard output where it is not given.

    Raises:
        ConfigError: settings that cannot work.
        CheckpointError: nothing whole to load.
        DataError: a data set is missing or not as it has to be.
    """
    out = stream or sys.stdout
    detector = ReferenceDetector.load(
        config.checkpoint,
        device=config.device,
        weights=config.weights,
        batch_size=config.batch_size,
    )
    everything = AeroEyes.open(config.data_root, config.annotations, cache_mb=32)
    measured = everything.subset(config.held_out) if config.held_out else everything
    calibration = _calibration(config, everything)
    if config.leave_one_out and len(measured.videos) < 2:
        raise ConfigError("--leave-one-out: one video is measured on; at least two are needed.")
    strangers = [*measured.videos[1:], measured.videos[0]]
    if len(strangers) == 1 and calibration:
        strangers = [calibration[0]]
    bar = WorkBar(title="Measuring", total=len(measured.videos), unit="videos", stream=out)
    looked = [
        look(detector, video, _asked(video, stranger, detector, config.seed), config.frames)
        for video, stranger in bar.over(zip(measured.videos, strangers, strict=True))
    ]
    levels, chosen = _thresholds(config, detector, looked, calibration, out)
    return _report(config, detector, looked, levels, chosen)


def _calibration(config: EvalConfig, everything: AeroEyes) -> tuple[Video, ...]:
    if config.calibration_data_root is not None:
        return AeroEyes.open(config.calibration_data_root, cache_mb=32).videos
    if not config.held_out:
        return ()
    return tuple(video for video in everything.videos if video.id not in config.held_out)


def _asked(
    video: Video, stranger: Video, detector: ReferenceDetector, seed: int
) -> dict[str, list[Any]]:
    """The photos to ask with: right ones, wrong ones, and ones that show nothing."""
    count = min(detector.engine.traits.k_shot, len(video.references))
    random = np.random.default_rng(seed)
    shape = (count, _PHOTO, _PHOTO, 3)
    asked: dict[str, list[Any]] = {OWN: list(video.references)}
    if stranger.id != video.id:
        asked[STRANGER] = list(stranger.references)
    asked[_NOISE] = list(random.integers(0, 256, shape, dtype=np.uint8))
    asked[_GREY] = list(np.full(shape, 114, dtype=np.uint8))
    return asked


def _own_and(stranger: Video | None, video: Video) -> dict[str, list[Any]]:
    asked: dict[str, list[Any]] = {OWN: list(video.references)}
    return asked if stranger is None else asked | {STRANGER: list(stranger.references)}


def _thresholds(
    config: EvalConfig,
    detector: ReferenceDetector,
    looked: Sequence[Looked],
    calibration: Sequence[Video],
    stream: TextIO,
) -> tuple[list[float], str]:
    """The threshold of every video, and where it comes from."""
    smooth, count, share = config.smooth == "viterbi", len(looked), config.stranger_share
    if config.threshold is not None:
        return [config.threshold] * count, "as asked for"
    if config.leave_one_out:
        others = [[*looked[:i], *looked[i + 1 :]] for i in range(count)]
        levels = [best_threshold(rest, smooth=smooth, stranger_share=share) for rest in others]
        return levels, f"for each video on the {count - 1} others"
    if calibration:
        bar = WorkBar(title="Calibrating", total=len(calibration), unit="videos", stream=stream)
        strangers = [*calibration[1:], calibration[0]] if len(calibration) > 1 else [None]
        seen = [
            look(detector, video, _own_and(stranger, video), config.calibration_frames)
            for video, stranger in bar.over(zip(calibration, strangers, strict=True))
        ]
        level = best_threshold(seen, smooth=smooth, stranger_share=share)
        return [level] * count, f"on {len(seen)} calibration videos"
    if detector.calibrated:
        return [detector.threshold] * count, "by the run itself, on its calibration videos"
    return [detector.threshold] * count, (
        "by nobody: the run has none, and no calibration videos are given "
        "(--calibration-data-root, --held-out or --leave-one-out)"
    )


def _report(
    config: EvalConfig,
    detector: ReferenceDetector,
    looked: Sequence[Looked],
    levels: Sequence[float],
    chosen: str,
) -> Report:
    smooth = config.smooth == "viterbi"
    decided: dict[str, list[Decided]] = {}
    for one, level in zip(looked, levels, strict=True):
        for row, name in enumerate(one.asked):
            decided.setdefault(name, []).append(one.decided(level, smooth=smooth, row=row))
    found = {name: figures(rows) for name, rows in decided.items()}
    best = best_threshold(looked, smooth=smooth)
    report = Report(
        source=detector.source,
        thresholds={one.video.id: level for one, level in zip(looked, levels, strict=True)},
        chosen=chosen,
        figures=found,
        interval=bootstrap_interval(list(found[OWN].per_video.values()), seed=config.seed),
        unfair=float(np.mean([one.decided(best, smooth=smooth).st_iou for one in looked])),
        smooth=config.smooth,
        videos={one.video.id: (len(one.frames), len(one.truth)) for one in looked},
    )
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
        write_json(config.out / "scores.json", report.to_dict())
        _write_frames(config.out / "frames.csv", decided)
    return report


def _write_frames(path: Path, decided: Mapping[str, Sequence[Decided]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(
            ["video", "frame", "references", "score", "given", "x1", "y1", "x2", "y2", "iou"]
        )
        for name, videos in decided.items():
            for one in videos:
                columns = (one.of.frames.tolist(), one.scores.tolist(), one.given.tolist())
                places = (one.boxes.tolist(), one.overlap.tolist())
                for frame, score, given, box, iou in zip(*columns, *places, strict=True):
                    values = [f"{value:.2f}" for value in box]
                    there = "" if math.isnan(iou) else f"{iou:.4f}"
                    start = [one.of.video.id, frame, name, f"{score:.6f}", int(given)]
                    rows.writerow([*start, *values, there])


def print_report(report: Report, *, stream: TextIO | None = None) -> None:
    """The tables, and what the figures are worth."""
    out = stream or sys.stdout
    console = Console(file=out, width=None if out.isatty() else 110)
    table = Table(title="With which references", title_justify="left")
    columns = ("ST-IoU", "mAP50", "mAP50-95", "precision", "recall", "fires: shown", "fires: empty")
    table.add_column("photos")
    for name in columns:
        table.add_column(name, justify="right")
    for name, one in report.figures.items():
        values = [v for key, v in asdict(one).items() if key != "per_video"]
        table.add_row(name, *map(_figure, values))
    console.print(table)
    table = Table(title="Every video", title_justify="left")
    table.add_column("video")
    wrong = report.figures.get(STRANGER)
    for name in ("frames", "shown", "threshold", "ST-IoU", f"ST-IoU, photos {STRANGER}"):
        table.add_column(name, justify="right")
    for name, (frames, shown) in report.videos.items():
        other = math.nan if wrong is None else wrong.per_video.get(name, math.nan)
        own = report.figures[OWN].per_video[name]
        level = report.thresholds[name]
        table.add_row(name, str(frames), str(shown), *map(_figure, (level, own, other)))
    console.print(table)
    console.print(
        f"{report.source}, smoothing {report.smooth}. Threshold chosen {report.chosen}. ST-IoU of "
        f"other videos of this kind: {report.interval} by bootstrap over videos. At the one "
        f"threshold that is best on these very videos it would be {report.unfair:.3f}: no result, "
        "but how far from the best the chosen one is.",
        highlight=False,
        markup=False,
    )


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
