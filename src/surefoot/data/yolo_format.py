"""Data sets in the format that YOLO trainers read: images/, labels/ and a data.yaml.

An image's labels stand in a text file of its name, a line each: the class, then centre and size, or
the corners of a polygon, as shares of the image's width and height.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from surefoot.data.labelled import LabelledImage, LabelledImages, Notes, image_sizes
from surefoot.errors import ConfigError, DataError

__all__ = ["read_yolo"]

_SUFFIXES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))


def read_yolo(data: Path | str, split: str = "train") -> LabelledImages:
    """The images of one split and their boxes, checked.

    ``data.yaml`` gives ``names`` (a list, or names by number), ``path`` (where the rest starts
    from; the file's own folder where it is not given) and, by split, a folder of images, a text
    file that lists images, or several of those. Labels lie where the last ``images`` of an image's
    folder reads ``labels``; an image without a file of labels, or with an empty one, is background.

    Nothing is passed over in silence; see :func:`surefoot.data.coco.read_coco` for what ``report``
    tells. EXIF orientations are followed, as labelling tools do.

    Args:
        data: ``data.yaml``, or the folder that it is in.
        split: ``train``, ``val``, ``test``, or whatever else the file names.

    Raises:
        DataError: the file or a folder is missing, is of another form, or there is nothing to learn
            from.
        ConfigError: the file has no such split.

    Example:
        data = read_yolo("datasets/boats/data.yaml", "train")
        print(data.report)
    """
    path = Path(data)
    path = path / "data.yaml" if path.is_dir() else path
    content = _load(path)
    classes = _classes(content, path)
    notes = Notes()
    found: list[LabelledImage] = []
    seen: set[Path] = set()
    for image in _images(content, split, path):
        if image in seen:
            notes.add("images that are listed twice, the first kept", f"{image}")
        elif (labelled := _labelled(image, path.parent, len(classes), notes)) is not None:
            found.append(labelled)
        seen.add(image)
    _note_orphans(seen, notes)
    return LabelledImages.of(found, classes, notes, path)


def _load(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"Reading the data set {path}: {error}.", path=path) from error
    if not isinstance(content, dict):
        raise DataError(
            f"Reading the data set {path}: the file holds a {type(content).__name__}; expected "
            "'names', and 'train' or another split.",
            path=path,
        )
    return content


def _classes(content: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, list) and names:
        found = tuple(map(str, names))
    elif isinstance(names, dict) and sorted(names) == list(range(len(names))):
        found = tuple(str(names[number]) for number in range(len(names)))
    else:
        raise DataError(
            f"Reading the data set {path}: names is {names!r}; expected a list of names, or names "
            "by the numbers from 0 without a gap.",
            path=path,
        )
    if content.get("nc", len(found)) != len(found):
        raise DataError(
            f"Reading the data set {path}: nc is {content['nc']!r}, but there are {len(found)} "
            "names; correct one of them.",
            path=path,
        )
    return found


def _images(content: Mapping[str, Any], split: str, path: Path) -> list[Path]:
    """Every image of a split, folder after folder."""
    named = content.get(split)
    if not named:
        there = [name for name in content if name not in ("names", "nc", "path")]
        raise ConfigError(
            f"{path} has no split {split!r}; it has {', '.join(map(str, there)) or 'none'}."
        )
    places: Sequence[Any] = named if isinstance(named, list) else [named]
    home = path.parent / str(content.get("path") or ".")
    return [image for place in places for image in _images_of(str(place), home, path)]


def _images_of(place: str, home: Path, path: Path) -> list[Path]:
    # Exporters write ../train/images into a data.yaml that lies beside train/.
    inner = place.removeprefix("../")
    tries = dict.fromkeys(h / p for p in (place, inner) for h in (home, path.parent))
    for where in tries:
        if where.is_dir():
            return sorted(f for f in where.rglob("*") if f.suffix.lower() in _SUFFIXES)
        if where.is_file():
            lines = where.read_text(encoding="utf-8").split("\n")
            return [where.parent / line.strip() for line in lines if line.strip()]
    raise DataError(
        f"Reading the data set {path}: {place!r} does not exist; looked for "
        f"{' and '.join(map(str, tries))}. 'path' in the file says where to start from.",
        path=path,
    )


def _label_file(image: Path) -> Path:
    """The last images of the path reads labels; beside the image where there is none."""
    parts = list(image.parent.parts)
    for at in reversed(range(len(parts))):
        if parts[at] == "images":
            parts[at] = "labels"
            break
    return Path(*parts, f"{image.stem}.txt")


def _labelled(image: Path, root: Path, classes: int, notes: Notes) -> LabelledImage | None:
    name = str(image.relative_to(root)) if image.is_relative_to(root) else str(image)
    if not image.is_file():
        notes.add("images that do not exist, left out", name)
        return None
    try:
        _, (width, height) = image_sizes(image)
    except DataError as error:
        notes.add("images that cannot be read, left out", f"{error}")
        return None
    boxes, labels = _boxes(_label_file(image), name, classes, notes)
    size = np.array([width, height, width, height], dtype=np.float64)
    kept, of = notes.fitting(boxes * size, labels, name, (width, height))
    return LabelledImage(id=name, path=image, width=width, height=height, boxes=kept, labels=of)


def _boxes(
    file: Path, name: str, classes: int, notes: Notes
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Corners as shares of the image, and labels."""
    boxes: list[list[float]] = []
    labels: list[int] = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    except (OSError, ValueError) as error:
        notes.add("files of labels that cannot be read, read as empty", f"{file}: {error}")
        lines = []
    for number, line in enumerate(lines, start=1):
        place = f"{name} line {number}"
        try:
            label, *values = map(float, line.split())
        except ValueError:
            if line.strip():
                notes.add("lines that are not numbers, left out", f"{place}: {line.strip()[:40]}")
            continue
        if (box := _corners(values)) is None:
            notes.add("lines of neither a box nor a polygon, left out", place)
        elif not 0 <= label < classes or label != int(label):
            notes.add("boxes of an unknown class, left out", f"{place}: {label:g}")
        else:
            boxes.append(box)
            labels.append(int(label))
    corners = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return corners, np.array(labels, dtype=np.int64)


def _corners(values: list[float]) -> list[float] | None:
    if len(values) == 4:
        x, y, width, height = values
        return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    if len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = values[::2], values[1::2]
        return [min(xs), min(ys), max(xs), max(ys)]
    return None


def _note_orphans(images: set[Path], notes: Notes) -> None:
    """Files of labels whose image is not there: often an image that went missing."""
    for folder, pictures in sorted({(_label_file(i).parent, i.parent) for i in images}):
        stems = {file.stem for file in pictures.glob("*")}
        if folder != pictures and stems:
            for file in sorted(folder.glob("*.txt")):
                if file.stem not in stems and file.name != "classes.txt":
                    notes.add("files of labels without an image", str(file))
