"""COCO files read and checked; items that depend on their numbers alone."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from surefoot.data.coco import read_coco
from surefoot.data.detection import DetectionAugmentation, DetectionDataset, collate_detection
from surefoot.data.labelled import LabelledImages
from surefoot.data.mosaic import LabelledPicture, mosaic
from surefoot.data.transforms import FILL, Augmentation
from surefoot.errors import ConfigError, DataError, UsageError

STILL = Augmentation(flip=0, scale=(1, 1), shift=0, brightness=0, contrast=0, saturation=0)
COLOURS = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200], [200, 200, 30]], dtype=np.uint8)


def painted(size: tuple[int, int], boxes: list, labels: list[int]) -> np.ndarray:
    """Black, and every box filled with the colour of its class."""
    picture = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    for (x1, y1, x2, y2), label in zip(np.asarray(boxes, int).tolist(), labels, strict=True):
        picture[y1:y2, x1:x2] = COLOURS[label]
    return picture


def write(root: Path, *, size: tuple[int, int] = (80, 60), count: int = 5, **change) -> Path:
    """A COCO data set: image i shows one box of class i % 3, whose category ids are 7, 3 and 5."""
    (root / "images").mkdir(parents=True)
    (root / "annotations").mkdir()
    ids = [7, 3, 5]
    images, annotations = [], []
    for i in range(count):
        box = [8 + 4 * i, 10, 16, 20]
        label = sorted(ids).index(ids[i % 3])
        corners = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
        Image.fromarray(painted(size, [corners], [label])).save(root / "images" / f"{i}.png")
        images.append({"id": i + 100, "file_name": f"{i}.png", "width": size[0], "height": size[1]})
        annotations.append({"image_id": i + 100, "category_id": ids[i % 3], "bbox": box})
    names = {7: "kite", 3: "boat", 5: "car"}
    content = {
        "images": [*images, *change.get("images", [])],
        "annotations": [*annotations, *change.get("annotations", [])],
        "categories": [{"id": key, "name": name} for key, name in names.items()],
    }
    path = root / "annotations" / "instances.json"
    path.write_text(json.dumps(content))
    return path


def colours_of(item: dict) -> list[int]:
    """The class whose colour fills the middle of each box."""
    found = []
    for x1, y1, x2, y2 in item["boxes"].tolist():
        pixel = item["image"][:, int((y1 + y2) / 2), int((x1 + x2) / 2)] * 255
        found.append(int(np.abs(COLOURS - pixel.numpy()).sum(1).argmin()))
    return found


def test_labels_count_from_0_in_the_order_of_the_category_ids(tmp_path: Path) -> None:
    data = read_coco(write(tmp_path))
    assert data.classes == ("boat", "car", "kite")
    assert [image.labels.tolist() for image in data] == [[2], [0], [1], [2], [0]]
    assert data[1].boxes.tolist() == [[12, 10, 28, 30]]
    assert data.report.clean
    assert str(data.report).startswith("5 images with 5 boxes of 3 classes from ")


ODD = [
    ([10, 10, 0, 5], 7, "boxes without area, left out", 0),
    ([10, 10, -4, 5], 7, "boxes without area, left out", 0),
    ([200, 10, 20, 20], 7, "boxes outside their image, left out", 0),
    ([70, 50, 20, 20], 7, "boxes that reach outside their image, cut at its border", 1),
    ([8, 10, 16, 20], 7, "boxes that come twice, the first kept", 0),
    ([1, 1, 5, 5], 99, "boxes of an unknown category, left out", 0),
    ([1, float("nan"), 5, 5], 7, "boxes that are not finite, left out", 0),
    ([1, 1, 5], 7, "annotations that cannot be read, left out", 0),
]


@pytest.mark.parametrize(("box", "category", "fault", "kept"), ODD)
def test_an_odd_box_is_told_of(
    tmp_path: Path, box: list, category: int, fault: str, kept: int
) -> None:
    odd = {"image_id": 100, "category_id": category, "bbox": box}
    data = read_coco(write(tmp_path, annotations=[odd]))
    assert list(data.report.found) == [fault]
    assert len(data.report.found[fault]) == 1
    assert fault in str(data.report)
    assert len(data[0].boxes) == 1 + kept
    assert (data[0].boxes[:, 2:] <= [80, 60]).all()


def test_crowds_and_boxes_of_nowhere_are_left_out(tmp_path: Path) -> None:
    odd = [
        {"image_id": 100, "category_id": 7, "bbox": [1, 1, 9, 9], "iscrowd": 1},
        {"image_id": 4, "category_id": 7, "bbox": [1, 1, 9, 9]},
    ]
    data = read_coco(write(tmp_path, annotations=odd))
    assert data.report.found == {
        "crowd boxes, left out": ("0.png",),
        "boxes of an image that is not listed, left out": ("annotations[6] of 4",),
    }


def test_odd_images_are_told_of_and_left_out(tmp_path: Path) -> None:
    def entry(key: object, name: object, width: int = 80) -> dict:
        return {"id": key, "file_name": name, "width": width, "height": 60}

    odd = [
        entry(100, "again.png"),
        entry(7, "0.png"),
        entry(8, "gone.png"),
        entry(9, "torn.png"),
        entry(10, "wide.png", 81),
        entry(11, None),
        entry(None, "x.png"),
        entry(12, "empty.png"),
    ]
    path = write(tmp_path, images=odd)
    (tmp_path / "images" / "torn.png").write_bytes(b"no image")
    for name in ("wide.png", "empty.png"):
        Image.new("RGB", (80, 60)).save(tmp_path / "images" / name)
    data = read_coco(path)
    assert [image.id for image in data] == [*(f"{i}.png" for i in range(5)), "empty.png"]
    assert {fault: len(places) for fault, places in data.report.found.items()} == {
        "image ids that come twice, the first kept": 1,
        "image files that come twice, the first kept": 1,
        "images that do not exist, left out": 1,
        "images that cannot be read, left out": 1,
        "images of another size than stated, left out": 1,
        "image entries without a file name, left out": 1,
        "image entries without an id, left out": 1,
    }
    assert "wide.png: 80x60, stated 81x60" in str(data.report)
    assert "; 1 image is without a box" in str(data.report)


@pytest.mark.parametrize("stated", [(80, 60), (60, 80)], ids=["as stored", "as shown"])
def test_a_turned_photo_is_read_as_its_annotation_sees_it(
    tmp_path: Path, stated: tuple[int, int]
) -> None:
    path = write(tmp_path, count=1)
    content = json.loads(path.read_text())
    content["images"][0] |= {"width": stated[0], "height": stated[1]}
    path.write_text(json.dumps(content))
    picture = Image.open(tmp_path / "images" / "0.png")
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "images" / "0.png", exif=exif)
    data = read_coco(path)
    item = DetectionDataset(data, size=80, augment=None)[0]
    grey = item["image"][:, :, 5] if stated == (60, 80) else item["image"][:, 5]
    assert (data[0].width, data[0].height) == stated
    assert grey.sub(FILL / 255).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", r"Reading COCO annotations .*x\.json: Expecting"),
        ("[]", r"the file holds a list; expected \{\"images\""),
        ('{"images": [], "annotations": []}', r"holds images, annotations; expected"),
        ('{"images": [], "annotations": [], "categories": []}', r"0 categories"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', r"without a number or"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}',
            r"nothing to learn from",
        ),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(DataError, match=said) as refused:
        read_coco(path)
    assert refused.value.path == path


def test_the_folder_of_images_may_be_named(tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "images").rename(tmp_path / "train2017")
    assert len(read_coco(path, tmp_path / "train2017")) == 5
    with pytest.raises(DataError, match=r"images that do not exist, left out: 5"):
        read_coco(path)


@pytest.fixture
def data(tmp_path: Path) -> LabelledImages:
    return read_coco(write(tmp_path, count=6))


@pytest.mark.parametrize("mosaics", [0.0, 1.0])
@pytest.mark.parametrize("change", [STILL, Augmentation(brightness=0, contrast=0, saturation=0)])
def test_boxes_stay_on_their_objects(
    data: LabelledImages, mosaics: float, change: Augmentation
) -> None:
    how = DetectionAugmentation(change=change, mosaic=mosaics, least_left=0.05, least_side=4)
    dataset, seen = DetectionDataset(data, size=96, augment=how, seed=3), 0
    for epoch in range(4):
        dataset.set_epoch(epoch)
        for index in range(len(dataset)):
            item = dataset[index]
            assert item["image"].shape == (3, 96, 96)
            assert colours_of(item) == item["labels"].tolist()
            assert ((item["boxes"] >= 0) & (item["boxes"] <= 96)).all()
            # Tight as well: the object's colour is in no pixel but those of the boxes.
            lit = (item["image"].max(0).values > 0.6).sum()
            area = (item["boxes"][:, 2:] - item["boxes"][:, :2]).prod(1).sum()
            assert lit <= 1.3 * area + 80
            seen += len(item["labels"])
    assert seen > (40 if mosaics else 15)


def test_an_item_is_a_function_of_seed_epoch_and_index(data: LabelledImages) -> None:
    how = DetectionAugmentation(mosaic=0.5)

    def items(seed: int, epoch: int) -> list[dict]:
        dataset = DetectionDataset(data, size=64, augment=how, seed=seed, cache_mb=1)
        _ = dataset[2]
        dataset.set_epoch(epoch)
        return [dataset[i] for i in reversed(range(len(dataset)))]

    def equal(a: list[dict], b: list[dict]) -> bool:
        return all(
            torch.equal(x["image"], y["image"]) and x["boxes"].equal(y["boxes"])
            for x, y in zip(a, b, strict=True)
        )

    assert equal(items(0, 0), items(0, 0))
    assert not equal(items(0, 0), items(0, 1))
    assert not equal(items(0, 0), items(1, 0))


def test_without_augmentation_epochs_are_alike_and_boxes_map_back(data: LabelledImages) -> None:
    dataset = DetectionDataset(data, size=64, augment=None)
    first = dataset[3]
    dataset.set_epoch(5)
    assert torch.equal(dataset[3]["image"], first["image"])
    back = dataset.place(3).invert(first["boxes"].numpy())
    np.testing.assert_allclose(back, data[3].boxes, atol=1e-4)


def test_batches_hold_the_boxes_of_all_images(data: LabelledImages) -> None:
    dataset = DetectionDataset(data, size=64, augment=None)
    (batch,) = DataLoader(dataset, batch_size=6, collate_fn=collate_detection)
    assert batch.images.shape == (6, 3, 64, 64)
    assert batch.sample_ids == tuple(f"{i}.png" for i in range(6))
    assert batch.box_image.tolist() == list(range(6))
    assert batch.box_class.tolist() == [2, 0, 1, 2, 0, 1]
    assert batch.to("cpu").boxes.shape == (6, 4)
    assert pickle.loads(pickle.dumps(dataset))[0]["id"] == "0.png"


def test_a_batch_of_empty_images_has_no_boxes(tmp_path: Path) -> None:
    more = [{"id": 1, "file_name": "empty.png", "width": 80, "height": 60}]
    path = write(tmp_path, count=1, images=more)
    Image.new("RGB", (80, 60)).save(tmp_path / "images" / "empty.png")
    dataset = DetectionDataset(read_coco(path), size=64, augment=DetectionAugmentation(mosaic=0.5))
    plain = DetectionDataset(dataset.source, size=64, augment=None)
    batch = collate_detection([plain[1], plain[1]])
    assert batch.boxes.shape == (0, 4)
    assert batch.box_image.dtype == batch.box_class.dtype == torch.int64
    assert dataset[1]["boxes"].shape[1] == 4


def test_an_image_that_changed_since_is_named(data: LabelledImages) -> None:
    Image.new("RGB", (10, 10)).save(data[0].path)
    data[1].path.unlink()
    dataset = DetectionDataset(data, size=64, augment=None)
    with pytest.raises(DataError, match=r"0\.png: it is 10x10 pixels, and was 80x60"):
        dataset[0]
    with pytest.raises(DataError, match=r"reading .*1\.png.*Replace or remove"):
        dataset[1]


@settings(max_examples=30)
@given(
    st.lists(st.tuples(*[st.integers(8, 70)] * 2), min_size=4, max_size=4),
    st.integers(0, 2**31),
    st.sampled_from([(0.2, 0.4), (0.5, 1.0), (1.0, 1.0)]),
)
def test_a_mosaic_shows_each_picture_in_its_corner(
    sizes: list, seed: int, scale: tuple[float, float]
) -> None:
    tiles = [
        LabelledPicture(
            np.broadcast_to(COLOURS[i], (h, w, 3)).copy(),
            np.array([[0, 0, w, h]], dtype=np.float32),
            np.array([i]),
            np.ones(1, dtype=np.float32),
        )
        for i, (w, h) in enumerate(sizes)
    ]
    whole = mosaic(tiles, 64, np.random.default_rng(seed), scale)
    assert whole.labels.tolist() == [0, 1, 2, 3]
    for box, colour in zip(whole.boxes.round().astype(int), COLOURS, strict=True):
        shown = (whole.picture == colour).all(-1)
        expected = np.zeros((64, 64), dtype=bool)
        expected[box[1] : box[3], box[0] : box[2]] = True
        assert np.array_equal(shown, expected)
    assert ((whole.left > 0) & (whole.left <= 1 + 1e-6)).all()


def test_a_mosaic_of_three_is_refused() -> None:
    tile = LabelledPicture(
        np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, int), np.zeros(0)
    )
    with pytest.raises(UsageError, match="3 pictures; expected four"):
        mosaic([tile] * 3, 64, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mosaic": 1.5}, r"mosaic is 1\.5; expected 0 to 1"),
        ({"least_left": -0.1}, r"least_left is -0\.1"),
        ({"mosaic_scale": (0.5, 1.2)}, r"mosaic_scale is \(0\.5, 1\.2\)"),
        ({"least_side": float("nan")}, r"least_side is nan"),
    ],
)
def test_an_augmentation_that_cannot_work_is_refused(change: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DetectionAugmentation(**change)


def test_settings_and_numbers_out_of_range_are_refused(data: LabelledImages) -> None:
    with pytest.raises(ConfigError, match="size is 16"):
        DetectionDataset(data, size=16, augment=None)
    with pytest.raises(ConfigError, match="seed is -1"):
        DetectionDataset(data, augment=None, seed=-1)
    dataset = DetectionDataset(data, size=32, augment=None)
    with pytest.raises(ConfigError, match="epochs count from 0"):
        dataset.set_epoch(-1)
    with pytest.raises(IndexError, match="item 6: there are 6"):
        dataset[6]


@pytest.mark.parametrize(
    ("name", "images", "boxes", "classes"),
    [
        ("bccd_blood_cells", 18, 239, 3),
        ("hit_uav_thermal", 28, 399, 4),
        ("industrial_objects", 26, 90, 4),
        ("playing_cards", 70, 222, 6),
    ],
)
def test_real_data_sets_are_read_whole(
    shared: Path, name: str, images: int, boxes: int, classes: int
) -> None:
    data = read_coco(shared / "data" / "detect" / name / "annotations" / "instances.json")
    report = data.report
    assert (report.images, report.boxes, len(data.classes)) == (images, boxes, classes)
    assert report.clean
    dataset = DetectionDataset(data, size=128, augment=DetectionAugmentation(mosaic=0.5))
    batch = collate_detection([dataset[i] for i in range(4)])
    assert len(batch.boxes) > 0
    assert (batch.boxes[:, 2:] - batch.boxes[:, :2]).min() >= 2
