"""mAP by hand, and against COCO's own procedure written out slowly."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.errors import ConfigError, UsageError
from surefoot.metrics import DetectionMap, detection

BOX = [0, 0, 10, 10]
FAR = [50, 50, 60, 60]

Image = tuple[list[Any], list[float], list[int], list[Any], list[int]]


def overlap(a: list[float], b: list[float]) -> float:
    wide = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    high = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return wide * high / (area - wide * high)


def coco_ap(images: list[Image], label: int, threshold: float, most: int) -> float:
    """pycocotools' evaluateImg and accumulate for one label and one overlap, box by box."""
    hits: list[tuple[float, bool]] = []
    truths = 0
    for boxes, scores, labels, gt_boxes, gt_labels in images:
        truth = [box for box, own in zip(gt_boxes, gt_labels, strict=True) if own == label]
        truths += len(truth)
        found = [(s, b) for s, b, own in zip(scores, boxes, labels, strict=True) if own == label]
        taken: set[int] = set()
        for score, box in sorted(found, key=lambda one: -one[0])[:most]:
            best, match = min(threshold, 1 - 1e-10), -1
            for place, true in enumerate(truth):
                if place not in taken and overlap(box, true) >= best:
                    best, match = overlap(box, true), place
            taken |= {match} - {-1}
            hits.append((score, match >= 0))
    if not truths:
        return np.nan
    ordered = [hit for _, hit in sorted(hits, key=lambda one: -one[0])]
    right = np.cumsum(ordered) if ordered else np.zeros(0)
    recall, precision = right / truths, right / np.arange(1, len(ordered) + 1)
    steps = np.linspace(0, 1, 101)
    return float(np.mean([max([*precision[recall >= step], 0.0]) for step in steps]))


def coco_map(images: list[Image], thresholds: list[float], most: int = 100) -> float:
    labels = {label for image in images for label in image[4]}
    return float(np.mean([coco_ap(images, i, t, most) for i in labels for t in thresholds]))


def measured(images: list[Image], **options: int) -> Any:
    score = DetectionMap(**options)
    for name, image in enumerate(images):
        score.add(name, *image)
    return score.result()


corner, side = st.integers(0, 8), st.integers(4, 12)
box = st.tuples(corner, corner, side, side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])
label = st.integers(3, 4)


@st.composite
def image(draw: st.DrawFn) -> Image:
    found = draw(st.lists(st.tuples(box, st.integers(0, 1000), label), max_size=5))
    truth = draw(st.lists(st.tuples(box, label), max_size=3))
    return (
        [b for b, _, _ in found],
        [s / 1000 for _, s, _ in found],
        [i for _, _, i in found],
        [b for b, _ in truth],
        [i for _, i in truth],
    )


@given(st.lists(image(), min_size=1, max_size=4), st.sampled_from([100, 2]))
def test_the_numbers_are_cocos(images: list[Image], most: int) -> None:
    # COCO leaves the order of equal scores open; every score here is its own.
    for place, one in enumerate(images):
        one[1][:] = [score + 1e-6 * (10 * place + i) for i, score in enumerate(one[1])]
    result = measured(images, max_detections=most)
    if not any(one[4] for one in images):
        assert np.isnan([result.map, result.map50, result.map75]).all()
        return
    steps = [0.5 + 0.05 * step for step in range(10)]
    assert result.map50 == pytest.approx(coco_map(images, [0.5], most), abs=1e-9)
    assert result.map75 == pytest.approx(coco_map(images, [0.75], most), abs=1e-9)
    assert result.map == pytest.approx(coco_map(images, steps, most), abs=1e-9)


def test_a_perfect_detector_scores_one() -> None:
    result = measured([([BOX, FAR], [0.9, 0.8], [1, 2], [FAR, BOX], [2, 1])])
    assert (result.map50, result.map75, result.map) == pytest.approx((1.0, 1.0, 1.0))


def test_an_example_by_hand() -> None:
    # By score: right, wrong, right; three truth boxes. Precision 1 up to recall 1/3, then 2/3 up
    # to recall 2/3, then 0: (34 * 1 + 33 * 2/3) / 101.
    images = [
        ([BOX, FAR], [0.9, 0.7], [1, 1], [BOX], [1]),
        ([BOX], [0.5], [1], [BOX], [1]),
        ([], [], [], [BOX], [1]),
    ]
    assert measured(images).map50 == pytest.approx((34 + 33 * 2 / 3) / 101)


@pytest.mark.parametrize(
    ("height", "expected"),
    [(4.9, (0.0, 0.0, 0.0)), (5, (1, 0, 0.1)), (7.5, (1, 1, 0.6)), (9.5, (1, 1, 1))],
)
def test_an_overlap_equal_to_the_threshold_is_enough(
    height: float, expected: tuple[float, ...]
) -> None:
    result = measured([([[0, 0, 10, height]], [0.9], [1], [BOX], [1])])
    assert (result.map50, result.map75, result.map) == pytest.approx(expected)


def test_a_second_box_on_the_same_object_is_false() -> None:
    images = [([BOX, BOX], [0.9, 0.8], [1, 1], [BOX], [1]), ([BOX], [0.7], [1], [BOX], [1])]
    # Right, wrong, right of two: precision 1 up to recall 1/2, then 2/3.
    assert measured(images).map50 == pytest.approx((51 + 50 * 2 / 3) / 101)


def test_a_prediction_in_an_image_without_truth_is_false() -> None:
    right = ([BOX], [0.5], [1], [BOX], [1])
    assert measured([right]).map50 == pytest.approx(1.0)
    assert measured([right, ([BOX], [0.4], [1], [], [])]).map50 == pytest.approx(1.0)
    assert measured([right, ([BOX], [0.6], [1], [], [])]).map50 == pytest.approx(0.5)


def test_labels_are_averaged_and_do_not_match_each_other() -> None:
    images = [([BOX, FAR], [0.9, 0.9], [1, 1], [BOX, FAR], [1, 2])]
    assert measured(images).map50 == pytest.approx(0.5)


def test_a_label_that_is_nowhere_true_is_in_no_mean() -> None:
    images = [([BOX, FAR], [0.9, 0.95], [1, 7], [BOX], [1])]
    assert measured(images).map50 == pytest.approx(1.0)


def test_no_boxes_at_all_are_handled() -> None:
    none = ([], [], [], [], [])
    assert np.isnan(measured([none]).map50)
    assert np.isnan(measured([none, ([BOX], [0.9], [1], [], [])]).map)
    assert measured([none, ([], [], [], [BOX], [1])]).map50 == 0.0
    empty = (np.zeros((0, 4)), np.zeros(0), np.zeros(0), [BOX], np.array([1]))
    assert measured([empty]).map == 0.0


@pytest.mark.parametrize("flat", [[10, 10, 0, 0], [10, 0, 0, 10], [5, 0, 5, 10]])
def test_boxes_without_area_are_false_not_an_error(flat: list[float]) -> None:
    images = [([flat, BOX], [0.9, 0.5], [1, 1], [BOX], [1])]
    assert measured(images).map50 == pytest.approx(0.5)


def test_boxes_may_be_huge_or_outside_the_image() -> None:
    huge = [-1e6, -1e6, 1e6, 1e6]
    assert measured([([huge], [0.9], [1], [huge], [1])]).map == pytest.approx(1.0)


def test_names_of_images_may_be_anything() -> None:
    score = DetectionMap()
    for name in ("b", ("a", 1), 7):
        score.add(name, [BOX], [0.9], [1], [BOX], [1])
    assert score.result().map50 == pytest.approx(1.0)


def test_nothing_is_printed_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    measured([([BOX], [0.9], [1], [BOX], [1])])
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [np.nan]}, "image 'x': a score is NaN"),
        ({"scores": [0.5, 0.5]}, "2 scores for 1 boxes"),
        ({"boxes": [[0, 0, np.inf, 1]]}, "a box coordinate is NaN or Inf"),
        ({"boxes": [[0, 0, 1]]}, r"boxes of shape \(1, 3\)"),
        ({"labels": [1, 2]}, "2 labels for 1 boxes"),
        ({"labels": [0.5]}, "labels of float64; expected integers"),
        ({"gt_labels": []}, "truth: 0 labels for 1 boxes"),
        ({"gt_boxes": [[5, 5, 5, 9]]}, "a truth box has no area"),
    ],
)
def test_what_cannot_be_scored_is_refused_by_image(change: dict[str, Any], message: str) -> None:
    good = {"boxes": [BOX], "scores": [0.5], "labels": [1], "gt_boxes": [BOX], "gt_labels": [1]}
    score = DetectionMap()
    with pytest.raises(UsageError, match=message):
        score.add("x", **(good | change))
    score.add("x", **good)  # nothing was added
    with pytest.raises(UsageError, match="image 'x': was added already"):
        score.add("x", **good)
    assert score.result().map50 == pytest.approx(1.0)


def test_no_image_and_no_boxes_to_count_are_refused() -> None:
    with pytest.raises(UsageError, match="no image was added"):
        DetectionMap().result()
    with pytest.raises(ConfigError, match="max_detections=0: at least 1"):
        DetectionMap(max_detections=0)


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    assert detection.import_module is importlib.import_module
    monkeypatch.setattr(detection, "import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install 'surefoot\[vision\]'"):
        measured([([BOX], [0.9], [1], [BOX], [1])])
