"""What was found in a video, as files: the challenge's JSON, and a table of every box."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from surefoot.recipes.refdet.finder import Sightings

__all__ = ["submission", "write_boxes", "write_json"]

_COLUMNS = ("frame", "object", "score", "x1", "y1", "x2", "y2")


def submission(
    video: str, names: Sequence[str], found: Mapping[int, Sightings]
) -> list[dict[str, Any]]:
    """The form in which the AeroEyes challenge takes predictions: whole pixels, a group of boxes
    for every interval in which the object shows, and an empty list where it never does.

    Args:
        video: its name.
        names: of the objects; with several, each has an entry of its own that names it.
        found: by frame, ascending.

    >>> import numpy as np
    >>> box = Sightings(
    ...     boxes=np.array([[1.2, 2, 9.6, 8]]), scores=np.ones(1), objects=np.zeros(1, np.int64)
    ... )
    >>> submission("Mug_0", ["mug"], {7: box})[0]["detections"]
    [{'bboxes': [{'frame': 7, 'x1': 1, 'y1': 2, 'x2': 10, 'y2': 8}]}]
    """
    entries: list[dict[str, Any]] = []
    for number, name in enumerate(names):
        groups: list[list[dict[str, int]]] = []
        last = -2
        for frame, one in found.items():
            for box in one.boxes[one.objects == number].tolist():
                if frame > last + 1:
                    groups.append([])
                groups[-1].append({"frame": frame, **_whole(box)})
                last = frame
        entry: dict[str, Any] = {"video_id": video}
        if len(names) > 1:
            entry["object"] = name
        entries.append(entry | {"detections": [{"bboxes": group} for group in groups]})
    return entries


def _whole(box: Sequence[float]) -> dict[str, int]:
    """Rounded, and at least a pixel wide and high."""
    x1, y1, x2, y2 = (round(value) for value in box)
    return {"x1": x1, "y1": y1, "x2": max(x2, x1 + 1), "y2": max(y2, y1 + 1)}


def write_json(path: Path, value: object) -> None:
    """Write a JSON file: all of it or nothing."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def write_boxes(
    path: Path, names: Sequence[str], found: Mapping[int, Sightings] | Mapping[str, Sightings]
) -> None:
    """Write a CSV with a row for every box: unrounded, with its score."""
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(_COLUMNS)
        for frame, one in found.items():
            boxes, scores = one.boxes.tolist(), one.scores.tolist()
            for box, score, number in zip(boxes, scores, one.objects.tolist(), strict=True):
                values = (f"{value:.2f}" for value in box)
                rows.writerow([frame, names[number], f"{score:.6f}", *values])
