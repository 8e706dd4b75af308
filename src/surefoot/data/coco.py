"""Data sets in COCO's format: one JSON file with images, boxes and categories.

Lin et al. 2014, arXiv:1405.0312; https://cocodataset.org/#format-data. Boxes are x, y, width and
height in pixels.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from surefoot.data.labelled import LabelledImage, LabelledImages, Notes, image_sizes
from surefoot.errors import DataError

__all__ = ["read_coco"]

Json = dict[str, Any]
_EXPECTED = 'expected {"images": [...], "annotations": [...], "categories": [...]}'
_Boxes = list[tuple[list[float], int]]


def read_coco(annotations: Path | str, images: Path | str | None = None) -> LabelledImages:
    """The images of a COCO file and their boxes, checked.

    Nothing is passed over in silence: ``report`` of what is returned tells of images that are
    missing, unreadable, listed twice or of another size than stated (left out), of boxes without
    area, outside their image, of a category or an image that is not listed, given twice, or of a
    crowd (left out), and of boxes that reach outside (cut). An image without boxes is background.

    Labels count from 0 in the order of the category ids.

    Args:
        annotations: the JSON file.
        images: the folder that ``file_name`` starts from; where it is not given, ``images/`` beside
            the file or beside its folder, or the file's own folder.

    Raises:
        DataError: the file cannot be read, is of another form, or leaves nothing to learn from.

    Example:
        data = read_coco("instances_train2017.json", "train2017")
        print(data.report)
    """
    path = Path(annotations)
    content = _load(path)
    notes = Notes()
    names = _categories(content, path)
    folder = _folder(path, images)
    listed = _listed(content["images"], notes)
    boxes = _boxes(content["annotations"], listed, {c: i for i, c in enumerate(names)}, notes)
    found = [_image(entry, folder, boxes[key], notes) for key, entry in listed.items()]
    kept = [image for image in found if image is not None]
    return LabelledImages.of(kept, tuple(names.values()), notes, path)


def _load(path: Path) -> Json:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"Reading COCO annotations {path}: {error}.", path=path) from error
    sections = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(
        isinstance(content.get(name), list) for name in sections
    ):
        has = ", ".join(content) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(
            f"Reading COCO annotations {path}: the file holds {has}; {_EXPECTED}.", path=path
        )
    return content


def _categories(content: Json, path: Path) -> dict[Any, str]:
    """Names by id, ascending."""
    try:
        pairs = sorted((int(c["id"]), str(c["name"])) for c in content["categories"])
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"Reading COCO annotations {path}: a category without a number or a name ({error!r}); "
            'expected {"id": 1, "name": "boat"}.',
            path=path,
        ) from error
    names = dict(pairs)
    if not names or len(names) != len(pairs):
        raise DataError(
            f"Reading COCO annotations {path}: {len(pairs)} categories with {len(names)} "
            "different ids; at least one is expected, and every id once.",
            path=path,
        )
    return names


def _folder(path: Path, images: Path | str | None) -> Path:
    if images is not None:
        return Path(images)
    places = [path.parent / "images", path.parent.parent / "images"]
    return next((place for place in places if place.is_dir()), path.parent)


def _listed(entries: list[Any], notes: Notes) -> dict[Any, Json]:
    """Image entries by id; those that cannot be used are noted."""
    listed: dict[Any, Json] = {}
    files: set[str] = set()
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
            notes.add("image entries without a file name, left out", f"images[{number}]")
        elif not isinstance(entry.get("id"), int | str):
            notes.add("image entries without an id, left out", entry["file_name"])
        elif entry["id"] in listed:
            notes.add("image ids that come twice, the first kept", f"{entry['id']}")
        elif entry["file_name"] in files:
            notes.add("image files that come twice, the first kept", entry["file_name"])
        else:
            listed[entry["id"]] = entry
            files.add(entry["file_name"])
    return listed


def _boxes(
    entries: list[Any], listed: Mapping[Any, Json], labels: Mapping[Any, int], notes: Notes
) -> defaultdict[Any, _Boxes]:
    """Corners and label of every box that can be used, by image id."""
    found: defaultdict[Any, _Boxes] = defaultdict(list)
    for number, entry in enumerate(entries):
        try:
            x, y, width, height = map(float, entry["bbox"])
            image, category = entry["image_id"], entry["category_id"]
            known, label = image in listed, labels.get(category)
        except (KeyError, TypeError, ValueError) as error:
            notes.add("annotations that cannot be read, left out", f"[{number}] {error!r}")
            continue
        place = f"{listed[image]['file_name']}" if known else f"annotations[{number}]"
        if not known:
            notes.add("boxes of an image that is not listed, left out", f"{place} of {image}")
        elif label is None:
            notes.add("boxes of an unknown category, left out", f"{place}: {category}")
        elif entry.get("iscrowd"):
            notes.add("crowd boxes, left out", place)
        else:
            found[image].append(([x, y, x + width, y + height], label))
    return found


def _image(entry: Json, folder: Path, boxes: _Boxes, notes: Notes) -> LabelledImage | None:
    name = entry["file_name"]
    path = folder / name
    if not path.is_file():
        notes.add("images that do not exist, left out", f"{path}")
        return None
    try:
        stored, turned = image_sizes(path)
    except DataError as error:
        notes.add("images that cannot be read, left out", f"{error}")
        return None
    stated = (entry.get("width", turned[0]), entry.get("height", turned[1]))
    size = next((size for size in (turned, stored) if size == stated), None)
    if size is None:
        notes.add(
            "images of another size than stated, left out",
            f"{name}: {stored[0]}x{stored[1]}, stated {stated[0]}x{stated[1]}",
        )
        return None
    corners = np.array([box for box, _ in boxes], dtype=np.float64).reshape(-1, 4)
    labels = np.array([label for _, label in boxes], dtype=np.int64)
    kept, of = notes.fitting(corners, labels, name, size)
    return LabelledImage(
        id=name,
        path=path,
        width=size[0],
        height=size[1],
        boxes=kept,
        labels=of,
        upright=size == turned,
    )
