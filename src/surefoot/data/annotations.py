"""annotations.json of the AeroEyes layout: parsed, checked, all problems found at once."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from surefoot.errors import DataError

__all__ = ["Problems", "check_boxes", "find_annotations", "read_annotations"]

FrameBoxes = dict[int, NDArray[np.float32]]
"""Frame index to boxes, n 4, x1 y1 x2 y2 in pixels of the frame."""

_SHOWN = 20
_ROUNDING = 1.0
_CORNERS = ("x1", "y1", "x2", "y2")


class Problems:
    """What is wrong with a data set; reported together, so that one repair round is enough."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._found: list[str] = []

    def add(self, problem: str) -> None:
        """Note a problem and go on."""
        self._found.append(problem)

    def raise_if_any(self) -> None:
        """Raise one DataError that lists the first 20 problems and says how many there are."""
        if not self._found:
            return
        count = len(self._found)
        lines = [f"  - {problem}" for problem in self._found[:_SHOWN]]
        if count > _SHOWN:
            lines.append(f"  and {count - _SHOWN} more")
        noun = "problem" if count == 1 else "problems"
        raise DataError(
            "\n".join([f"Reading the data set {self._root}: {count} {noun}.", *lines]),
            path=self._root,
        )


def find_annotations(root: Path, samples: Path) -> Path:
    """Where annotations.json is: in annotations/ or beside samples/.

    Raises:
        DataError: it is in none of the places; the message names them.
    """
    homes = dict.fromkeys([root, samples.parent])
    places = [home / sub / "annotations.json" for home in homes for sub in ("annotations", ".")]
    for place in places:
        if place.is_file():
            return place
    looked = " or ".join(str(place) for place in places)
    raise DataError(
        f"Reading the data set {root}: no annotations; looked for {looked}. If the file is "
        "elsewhere, pass its path.",
        path=root,
    )


def read_annotations(path: Path, problems: Problems) -> dict[str, FrameBoxes]:
    """Boxes of every annotated video, all its groups merged frame by frame.

    The file is a list of ``{"video_id": ..., "annotations": [{"bboxes": [{"frame", "x1", "y1",
    "x2", "y2"}]}]}``. Entries that are not of this form go to ``problems``.

    Raises:
        DataError: the file is missing, no JSON, or no list.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"Reading annotations {path}: {error}.", path=path) from error
    if not isinstance(entries, list):
        raise DataError(
            f"Reading annotations {path}: the file holds a {type(entries).__name__}; expected a "
            'list of {"video_id": ..., "annotations": [...]}.',
            path=path,
        )
    videos: dict[str, FrameBoxes] = {}
    for number, entry in enumerate(entries):
        try:
            video, boxes = str(entry["video_id"]), _merge(entry)
        except (KeyError, TypeError, ValueError) as error:
            problems.add(
                f"{path.name} entry {number}: {error!r}; expected "
                '{"video_id", "annotations": [{"bboxes": [{"frame", "x1", "y1", "x2", "y2"}]}]}'
            )
            continue
        if video in videos:
            problems.add(f"{path.name} entry {number}: {video} is annotated twice; merge the two")
        videos[video] = boxes
    return videos


def _merge(entry: dict[str, Any]) -> FrameBoxes:
    frames: defaultdict[int, list[list[float]]] = defaultdict(list)
    for group in entry["annotations"]:
        for box in group["bboxes"]:
            corners = [float(box[corner]) for corner in _CORNERS]
            if int(box["frame"]) != box["frame"]:
                raise ValueError(f"frame {box['frame']!r} is not a whole number")
            frames[int(box["frame"])].append(corners)
    return {frame: np.array(frames[frame], dtype=np.float32) for frame in sorted(frames)}


def check_boxes(
    video: str, boxes: FrameBoxes, *, count: int, size: tuple[int, int], problems: Problems
) -> FrameBoxes:
    """The boxes, cut at the frame's border where they pass it by at most a pixel of rounding."""
    width, height = size
    whole = np.array([width, height, width, height], dtype=np.float32)
    kept: FrameBoxes = {}
    for frame, found in boxes.items():
        if not 0 <= frame < count:
            problems.add(
                f"{video}: a box in frame {frame}, but the video has frames 0 to {count - 1}"
            )
            continue
        for box in found.tolist():
            wrong = _fault(box, width, height)
            if wrong:
                shown = ", ".join(f"{value:g}" for value in box)
                problems.add(
                    f"{video} frame {frame}: box (x1, y1, x2, y2) = ({shown}) {wrong}; the frame "
                    f"is {width} x {height} pixels"
                )
        kept[frame] = np.clip(found, 0, whole)
    return kept


def _fault(box: list[float], width: int, height: int) -> str | None:
    x1, y1, x2, y2 = box
    if not all(math.isfinite(value) for value in box):
        return "is not finite"
    if x2 <= x1 or y2 <= y1:
        return "is inverted or empty (x2 > x1 and y2 > y1 expected)"
    beyond = max(-x1, -y1, x2 - width, y2 - height)
    if beyond > _ROUNDING or x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        return "reaches outside the frame"
    return None
