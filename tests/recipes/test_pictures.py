"""The contact sheet and the curves: written, and showing what they are to show."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from surefoot.journal import JournalWriter
from surefoot.recipes.refdet import TrainConfig
from surefoot.recipes.refdet.contact_sheet import (
    ALARM,
    PREDICTION,
    TRUTH,
    SheetFrame,
    SheetRow,
    draw_contact_sheet,
    spread,
)
from surefoot.recipes.refdet.curves import draw_curves
from surefoot.records import Cause, StepRecord, TermRecord, Verdict

BOX = np.array([20.0, 20.0, 60.0, 50.0])


def frame(
    *, truth: bool, box: bool, size: tuple[int, int] = (96, 96), iou: float = 0.8
) -> SheetFrame:
    return SheetFrame(
        image=np.full((size[1], size[0], 3), 90, dtype=np.uint8),
        index=7,
        truth=BOX[None] if truth else np.zeros((0, 4)),
        box=BOX + 4 if box else None,
        score=0.5,
        iou=iou,
    )


def sheet(path: Path, *frames: SheetFrame) -> np.ndarray:
    photos = [np.full((40, 30, 3), 200, dtype=np.uint8)] * 3
    row = SheetRow(title="Boat_0", note="ST-IoU 0.5", references=photos, frames=frames)
    draw_contact_sheet([row, row], path, title="title", subtitle="subtitle")
    with Image.open(path) as image:
        return np.array(image)


def count(picture: np.ndarray, color: str) -> int:
    """Pixels of exactly this colour below the header, which holds the legend."""
    return int((picture[104:] == np.array(ImageColor.getrgb(color))).all(axis=-1).sum())


@pytest.mark.parametrize(
    ("truth", "box", "shown", "hidden"),
    [
        (True, True, {TRUTH, PREDICTION}, {ALARM}),
        (True, False, {TRUTH, ALARM}, {PREDICTION}),
        (False, True, {ALARM}, {TRUTH, PREDICTION}),
        (False, False, {TRUTH}, {PREDICTION, ALARM}),
    ],
    ids=["found", "missed", "false alarm", "absent and silent"],
)
def test_a_tile_shows_truth_prediction_and_disagreement_in_their_colours(
    tmp_path: Path, truth: bool, box: bool, shown: set[str], hidden: set[str]
) -> None:
    picture = sheet(tmp_path / "sheet.png", frame(truth=truth, box=box))
    assert all(count(picture, color) > 20 for color in shown)
    assert not any(count(picture, color) for color in hidden)


def test_a_poor_box_is_marked(tmp_path: Path) -> None:
    good = sheet(tmp_path / "good.png", frame(truth=True, box=True, iou=0.8))
    poor = sheet(tmp_path / "poor.png", frame(truth=True, box=True, iou=0.2))
    assert count(good, ALARM) == 0
    assert count(poor, ALARM) > 20


def test_the_box_lies_where_the_frame_was_drawn(tmp_path: Path) -> None:
    picture = sheet(tmp_path / "sheet.png", frame(truth=True, box=False))
    rows, columns = (picture[104:400] == np.array(ImageColor.getrgb(TRUTH))).all(-1).nonzero()
    scale = 248 / 96
    assert columns.max() - columns.min() == pytest.approx(40 * scale, abs=4)
    assert rows.max() - rows.min() == pytest.approx(30 * scale, abs=4)


def test_wide_frames_keep_their_shape(tmp_path: Path) -> None:
    wide = sheet(tmp_path / "wide.png", frame(truth=True, box=False, size=(192, 96)))
    rows, columns = (wide[104:300] == np.array(ImageColor.getrgb(TRUTH))).all(-1).nonzero()
    assert (columns.max() - columns.min()) / (rows.max() - rows.min()) == pytest.approx(
        4 / 3, abs=0.12
    )


def test_frames_are_spread_over_the_video_with_some_that_are_empty() -> None:
    chosen = spread(range(20, 60), [*range(20), *range(60, 80)], 5)
    assert chosen == sorted(chosen)
    assert len([f for f in chosen if 20 <= f < 60]) == 4
    assert spread([], range(4), 3) == [0, 2, 3]


def write_journal(path: Path) -> None:
    config = {"settings": TrainConfig().to_dict(), "groups": ["support", "rest"]}
    with JournalWriter(path, run=config) as journal:
        for step in range(30):
            refused = step % 10 == 5
            terms = tuple(
                TermRecord(name, 2.0 / (step + 1), 1.5) for name in ("bbox", "cls", "dfl")
            )
            journal.write(
                StepRecord(
                    step=step,
                    verdict=Verdict.REFUSED if refused else Verdict.APPLIED,
                    cause=Cause.NONFINITE_LOSS if refused else Cause.NONE,
                    loss=math.nan if refused else 9.0 / (step + 1),
                    terms=() if refused else terms,
                    grad_norm=math.nan if refused else 20.0 / (step + 1),
                    learning_rates=(1e-4, 1e-3),
                )
            )


def test_curves_are_drawn_from_a_journal_with_refused_steps(tmp_path: Path) -> None:
    write_journal(tmp_path / "journal.jsonl")
    draw_curves(tmp_path / "journal.jsonl", tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        picture = np.array(image.convert("RGB"))
    assert picture.shape[0] > 600
    colors = ("#20262e", "#0f8b8d", "#e07a1f", "#5b5bd6", "#d02f3a")
    drawn = [int((picture == np.array(ImageColor.getrgb(c))).all(-1).sum()) for c in colors]
    assert all(pixels > 30 for pixels in drawn), dict(zip(colors, drawn, strict=True))
