"""YOLO-format data sets read and checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from surefoot.data.detection import DetectionDataset
from surefoot.data.yolo_format import read_yolo
from surefoot.errors import ConfigError, DataError


def write(root: Path, labels: dict[str, str | None], yaml: str | None = None) -> Path:
    """images/train/NAME.png of 80 x 40 pixels, labels/train/NAME.txt, data.yaml."""
    for kind in ("images", "labels"):
        (root / kind / "train").mkdir(parents=True)
    for name, text in labels.items():
        Image.new("RGB", (80, 40)).save(root / "images" / "train" / f"{name}.png")
        if text is not None:
            (root / "labels" / "train" / f"{name}.txt").write_text(text)
    path = root / "data.yaml"
    path.write_text(yaml or "train: images/train\nnc: 2\nnames: [boat, 'traffic light']\n")
    return path


def test_boxes_polygons_and_images_without_any(tmp_path: Path) -> None:
    labels = {
        "a": "0 0.5 0.5 0.25 0.5\n1 0.25 0.25 0.1 0.1\n",
        "b": "1 0.1 0.2 0.5 0.2 0.3 0.9\n\n",
        "c": "",
        "d": None,
    }
    data = read_yolo(write(tmp_path, labels))
    assert data.classes == ("boat", "traffic light")
    assert [image.id for image in data] == [f"images/train/{name}.png" for name in "abcd"]
    np.testing.assert_allclose(data[0].boxes, [[30, 10, 50, 30], [16, 8, 24, 12]], atol=1e-5)
    np.testing.assert_allclose(data[1].boxes, [[8, 8, 40, 36]], atol=1e-5)
    assert [image.labels.tolist() for image in data] == [[0, 1], [1], [], []]
    assert data.report.clean
    assert data.report.empty == 2
    assert DetectionDataset(data, size=64, augment=None)[0]["image"].shape == (3, 64, 64)


FAULTS = [
    ("2 0.5 0.5 0.1 0.1", "boxes of an unknown class, left out"),
    ("-1 0.5 0.5 0.1 0.1", "boxes of an unknown class, left out"),
    ("0.5 0.5 0.5 0.1 0.1", "boxes of an unknown class, left out"),
    ("nan 0.5 0.5 0.1 0.1", "boxes of an unknown class, left out"),
    ("0 0.5 0.5 0.1", "lines of neither a box nor a polygon, left out"),
    ("0 0.1 0.1 0.2 0.2 0.3", "lines of neither a box nor a polygon, left out"),
    ("boat 0.5 0.5 0.1 0.1", "lines that are not numbers, left out"),
    ("0 0.5 0.5 0 0.1", "boxes without area, left out"),
    ("0 0.5 nan 0.1 0.1", "boxes that are not finite, left out"),
    ("0 1.5 0.5 0.1 0.1", "boxes outside their image, left out"),
    ("0 0.5 0.5 0.2 0.2", "boxes that come twice, the first kept"),
]


@pytest.mark.parametrize(("line", "fault"), FAULTS)
def test_an_odd_line_is_told_of_and_the_others_are_kept(
    tmp_path: Path, line: str, fault: str
) -> None:
    data = read_yolo(write(tmp_path, {"a": f"0 0.5 0.5 0.2 0.2\n{line}\n"}))
    assert list(data.report.found) == [fault]
    (place,) = data.report.found[fault]
    assert place.startswith("images/train/a.png")
    assert len(data[0].boxes) == 1


def test_a_box_over_the_border_is_cut(tmp_path: Path) -> None:
    data = read_yolo(write(tmp_path, {"a": "0 0.95 0.5 0.2 0.5"}))
    np.testing.assert_allclose(data[0].boxes, [[68, 10, 80, 30]], atol=1e-4)
    assert list(data.report.found) == ["boxes that reach outside their image, cut at its border"]


def test_missing_torn_and_repeated_images_and_orphans_are_told_of(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": "0 0.5 0.5 0.2 0.2"}, "train: list.txt\nnames: {0: boat}\n")
    (tmp_path / "images" / "train" / "torn.png").write_bytes(b"no image")
    (tmp_path / "labels" / "train" / "lost.txt").write_text("0 0.5 0.5 0.1 0.1")
    (tmp_path / "labels" / "train" / "a.txt").write_bytes(b"\xff\xfe\n")
    (tmp_path / "images" / "train" / "b.png").write_bytes(
        (tmp_path / "images" / "train" / "a.png").read_bytes()
    )
    (tmp_path / "labels" / "train" / "b.txt").write_text("0 0.5 0.5 0.1 0.1")
    names = ["a", "b", "b", "torn", "gone"]
    (tmp_path / "list.txt").write_text("".join(f"./images/train/{n}.png\n" for n in names))
    data = read_yolo(path)
    assert len(data) == 2
    assert {fault: len(places) for fault, places in data.report.found.items()} == {
        "files of labels that cannot be read, read as empty": 1,
        "images that are listed twice, the first kept": 1,
        "images that cannot be read, left out": 1,
        "images that do not exist, left out": 1,
        "files of labels without an image": 1,
    }
    assert "lost.txt" in str(data.report)


@pytest.mark.parametrize(
    "yaml",
    [
        "path: .\ntrain: images/train\nnames:\n  0: boat\n  1: car\n",
        "train: ../images/train\nnc: 2\nnames: ['boat', 'car']\n",
        "train: [images/train]\nnames: [boat, car]\n",
        "path: ../datasets/elsewhere\ntrain: images/train # a comment\nnames:\n- boat\n- car\n",
    ],
)
def test_every_way_of_writing_the_file_is_read(tmp_path: Path, yaml: str) -> None:
    write(tmp_path, {"a": "1 0.5 0.5 0.2 0.2"}, yaml)
    data = read_yolo(tmp_path)
    assert data.classes == ("boat", "car")
    assert [image.labels.tolist() for image in data] == [[1]]


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("[1, 2]", "the file holds a list"),
        ("names: [boat\n", r"data\.yaml: while parsing"),
        ("train: images/train", r"names is None; expected a list"),
        ("train: images/train\nnames: {0: boat, 2: car}", "without a gap"),
        ("train: images/train\nnames: [boat]\nnc: 3", "nc is 3, but there are 1 names"),
        ("train: images/absent\nnames: [boat]", r"'images/absent' does not exist; looked for"),
        ("train: !!python/object/apply:os.getcwd []\nnames: [a]", "could not determine"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, yaml: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_yolo(write(tmp_path, {"a": ""}, yaml))


def test_a_split_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    path = write(tmp_path, {"a": "0 0.5 0.5 0.2 0.2"})
    with pytest.raises(ConfigError, match=r"no split 'val'; it has train"):
        read_yolo(path, "val")


def test_a_data_set_without_a_box_is_refused_with_its_report(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing to learn from\.\n1 image with 0 boxes"):
        read_yolo(write(tmp_path, {"a": ""}))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Reading the data set .*absent\.yaml"):
        read_yolo(tmp_path / "absent.yaml")
