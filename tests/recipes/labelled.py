"""A set of labelled images small enough to learn within a test: squares and discs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("square", "disc")


def _picture(number: int, size: int) -> tuple[Image.Image, list[tuple[int, list[float]]]]:
    random = np.random.default_rng([7, number])
    image = Image.fromarray(random.integers(90, 120, (size, size, 3), dtype=np.uint8))
    draw, boxes = ImageDraw.Draw(image), []
    side = int(random.integers(size // 4, size // 2))
    x, y = random.integers(0, size - side, 2).tolist()
    label = number % 2
    shape = draw.rectangle if label == 0 else draw.ellipse
    shape([x, y, x + side - 1, y + side - 1], fill=(230, 40, 40) if label == 0 else (40, 60, 230))
    boxes.append((label, [float(x), float(y), float(x + side), float(y + side)]))
    return image, boxes


def write_coco(root: Path, *, images: int, first: int = 0, size: int = 64) -> Path:
    """A COCO file and its images/."""
    (root / "images").mkdir(parents=True)
    listed, annotations = [], []
    for number in range(first, first + images):
        picture, boxes = _picture(number, size)
        picture.save(root / "images" / f"{number}.png")
        listed.append({"id": number, "file_name": f"{number}.png", "width": size, "height": size})
        annotations += [
            {
                "id": len(annotations) + i + 1,
                "image_id": number,
                "category_id": label + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
            for i, (label, (x1, y1, x2, y2)) in enumerate(boxes)
        ]
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(CLASSES)]
    path = root / "instances.json"
    content = {"images": listed, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_yolo(root: Path, *, training: int, held_out: int, size: int = 64) -> Path:
    """A data.yaml, with images/ and labels/ of both splits."""
    for split, numbers in (
        ("train", range(training)),
        ("val", range(training, training + held_out)),
    ):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for number in numbers:
            picture, boxes = _picture(number, size)
            picture.save(root / "images" / split / f"{number}.png")
            lines = [
                f"{label} {(x1 + x2) / 2 / size} {(y1 + y2) / 2 / size} {(x2 - x1) / size} "
                f"{(y2 - y1) / size}"
                for label, (x1, y1, x2, y2) in boxes
            ]
            (root / "labels" / split / f"{number}.txt").write_text("\n".join(lines), "utf-8")
    path = root / "data.yaml"
    path.write_text(
        f"path: {root}\ntrain: images/train\nval: images/val\nnames: {list(CLASSES)}\n", "utf-8"
    )
    return path
