"""The pictures of a finished run: detections on held-out videos, and the curves of its journal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from surefoot.data import Video
from surefoot.errors import ConfigError
from surefoot.recipes.refdet.contact_sheet import SheetFrame, SheetRow, draw_contact_sheet, spread
from surefoot.recipes.refdet.curves import draw_curves
from surefoot.recipes.refdet.validate import Detector, Evaluation, Predictions, overlap
from surefoot.recipes.run_folder import JOURNAL

__all__ = ["draw_run"]


def draw_run(
    folder: Path, detector: Detector, videos: Sequence[Video], evaluation: Evaluation | None
) -> list[str]:
    """Draw a finished run into its folder, as far as there is something to draw.

    Args:
        folder: the run folder.
        detector: as it was measured last.
        videos: the held-out videos.
        evaluation: the measurement; None where nothing was measured.

    Returns:
        A line for each picture: its path, or why it was not drawn.
    """
    said: list[str] = []
    if evaluation is not None:
        sheet = folder / "contact_sheet.png"
        _write_contact_sheet(sheet, detector, videos, evaluation)
        said.append(f"detections: {sheet}")
    curves = folder / "curves.png"
    try:
        draw_curves(folder / JOURNAL, curves)
        said.append(f"curves: {curves}")
    except ConfigError as missing:
        said.append(f"curves: not drawn; {missing}")
    return said


def _write_contact_sheet(
    path: Path,
    detector: Detector,
    videos: Sequence[Video],
    evaluation: Evaluation,
    *,
    rows: int = 6,
    columns: int = 5,
) -> None:
    """Draw what a detector says of held-out videos, from its best video to its worst.

    Args:
        path: PNG file to write.
        detector: as it was measured.
        videos: the held-out ones.
        evaluation: what was measured on them; boxes below its threshold are not shown.
        rows: most videos.
        columns: frames of each.
    """
    ranked = sorted(videos, key=lambda video: -evaluation.right.per_video[video.id])
    places = np.linspace(0, len(ranked) - 1, min(rows, len(ranked))).round().astype(int)
    chosen = [ranked[place] for place in places]
    draw_contact_sheet(
        [_row(detector, video, evaluation, columns) for video in chosen],
        path,
        title="RefDet: three photos in, a box per frame out",
        subtitle=f"{_some_of(len(chosen), len(videos))}: {evaluation.line()}",
    )


def _some_of(shown: int, count: int) -> str:
    if shown == count == 1:
        return "The held-out video"
    if shown == count:
        return f"The {count} held-out videos, from the best to the worst"
    return f"{shown} of {count} held-out videos, from the best to the worst; all {count}"


def _row(detector: Detector, video: Video, evaluation: Evaluation, columns: int) -> SheetRow:
    empty = video.absent().tolist()
    frames = spread(video.present.tolist(), empty, columns)
    (found,) = detector.predict(video, frames, detector.references([video]))
    pictures = zip(frames, video.frames(frames), strict=True)
    shown = min(detector.k_shot, len(video.references))
    return SheetRow(
        title=video.id,
        note=f"ST-IoU {evaluation.right.per_video[video.id]:.2f}",
        references=[video.read_reference(number) for number in range(shown)],
        frames=[
            _frame(index, picture, video, found, evaluation.threshold)
            for index, picture in pictures
        ],
    )


def _frame(
    index: int, picture: NDArray[np.uint8], video: Video, found: Predictions, threshold: float
) -> SheetFrame:
    truth = np.asarray(video.boxes.get(index, np.zeros((0, 4))), dtype=np.float64)
    box, score = found[index]
    given = score >= threshold
    return SheetFrame(
        image=picture,
        index=index,
        truth=truth,
        box=box if given else None,
        score=score,
        iou=overlap(box, truth) if given else 0.0,
    )
