"""Scores of masks: those of pysodmetrics, image by image, whatever the order and the process."""

from __future__ import annotations

import csv
import math
import pickle

import numpy as np
import py_sod_metrics
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from surefoot.errors import ConfigError, UsageError
from surefoot.metrics.segmentation import SegmentationScores
from surefoot.metrics.segmentation_table import difference, score_table

SHAPE = (40, 56)


def blob(shape=SHAPE) -> np.ndarray:
    mask = np.zeros(shape, dtype=np.uint8)
    mask[shape[0] // 4 : shape[0] // 2 + 3, shape[1] // 3 : shape[1] - 8] = 1
    mask[2:5, 3:7] = 1
    return mask


def noise(seed: int = 0, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).random(shape)


def maps() -> dict[str, np.ndarray]:
    mask = blob().astype(np.float64)
    return {
        "perfect": mask,
        "inverted": 1 - mask,
        "empty": np.zeros(SHAPE),
        "full": np.ones(SHAPE),
        "constant": np.full(SHAPE, 0.37),
        "random": noise(),
        "shifted": np.roll(mask, 6, axis=1),
        "soft": 0.2 + 0.5 * mask + 0.2 * noise(1),
        "half precision": (0.7 * mask + 0.1).astype(np.float16),
    }


def scored(*images, stretch=False) -> SegmentationScores:
    scores = SegmentationScores(stretch=stretch)
    for index, (prediction, mask) in enumerate(images):
        scores.add(f"image {index}", prediction, mask, index=index)
    return scores


def reference(images, **how) -> dict[str, float]:
    """The set through pysodmetrics' own accumulation."""
    kinds = {
        "sm": py_sod_metrics.Smeasure(),
        "em": py_sod_metrics.Emeasure(),
        "wfm": py_sod_metrics.WeightedFmeasure(),
        "mae": py_sod_metrics.MAE(),
    }
    for prediction, mask in images:
        for kind in kinds.values():
            kind.step(prediction, mask, **how)
    found = {name: kind.get_results()[name] for name, kind in kinds.items()}
    return {
        "s_measure": found["sm"],
        "e_adaptive": found["em"]["adp"],
        "e_mean": found["em"]["curve"].mean(),
        "e_max": found["em"]["curve"].max(),
        "weighted_f": found["wfm"],
        "mae": found["mae"],
    }


@pytest.mark.parametrize("name", maps())
def test_every_kind_of_map_scores_as_in_pysodmetrics(name) -> None:
    prediction, mask = maps()[name], blob()
    summary = scored((prediction, mask)).summary()
    expected = reference([(prediction.astype(np.float64), mask > 0)], normalize=False)
    for score, value in expected.items():
        assert getattr(summary, score) == pytest.approx(value, abs=1e-12), score


def test_a_set_scores_as_in_pysodmetrics() -> None:
    images = [(prediction, blob()) for prediction in maps().values()]
    expected = reference([(p.astype(np.float64), m > 0) for p, m in images], normalize=False)
    summary = scored(*images).summary()
    for score, value in expected.items():
        assert getattr(summary, score) == pytest.approx(value, abs=1e-12), score
    assert summary.images == len(images)


def test_stretching_is_the_published_protocol() -> None:
    images = [((np.round(p * 255) / 255), blob()) for p in maps().values()]
    saved = [(np.round(p * 255).astype(np.uint8), m * 255) for p, m in images]
    summary = scored(*images, stretch=True).summary()
    for score, value in reference(saved).items():
        assert getattr(summary, score) == pytest.approx(value, abs=1e-9), score


def test_a_faint_map_scores_as_faint_unless_stretched() -> None:
    faint = 0.1 * blob()
    plain, stretched = (scored((faint, blob()), stretch=s).summary() for s in (False, True))
    assert stretched.s_measure == pytest.approx(1.0, abs=1e-6)
    assert plain.s_measure < 0.6
    assert (plain.iou, stretched.iou) == (0.0, 0.0)


def test_what_the_extremes_score() -> None:
    perfect = scored((maps()["perfect"], blob())).summary()
    assert perfect.s_measure == pytest.approx(1.0)
    assert perfect.e_max == pytest.approx(1 + 1 / (blob().size - 1))
    assert perfect.weighted_f == pytest.approx(1.0)
    assert (perfect.mae, perfect.iou, perfect.dice) == (0.0, 1.0, 1.0)
    inverted = scored((maps()["inverted"], blob())).summary()
    assert (inverted.s_measure, inverted.mae) == (0.0, 1.0)
    assert (inverted.iou, inverted.dice) == (0.0, 0.0)
    assert inverted.weighted_f < 0.001


def test_overlap_is_counted_at_one_half() -> None:
    mask = np.array([[1, 1, 1, 0]], dtype=np.uint8)
    row = scored((np.array([[0.5, 0.9, 0.49, 0.8]]), mask)).per_image[0]
    assert (row.iou, row.dice, row.foreground) == (2 / 4, 4 / 6, 0.75)


def test_images_without_an_object_are_counted_and_kept_apart() -> None:
    empty = np.zeros(SHAPE, dtype=np.uint8)
    wrong = np.zeros(SHAPE)
    wrong[:10] = 0.8
    alone = scored((maps()["soft"], blob())).summary()
    mixed = scored((maps()["soft"], blob()), (wrong, empty), (wrong * 0, empty)).summary()
    assert (mixed.images, mixed.images_without_object) == (1, 2)
    assert mixed.false_positive_area == pytest.approx(0.25 / 2)
    assert mixed.s_measure == alone.s_measure
    assert mixed.iou == alone.iou
    assert mixed.e_max == alone.e_max
    only = scored((wrong, empty)).summary()
    assert (only.s_measure, only.e_max, only.iou, only.false_positive_area) == (
        None,
        None,
        None,
        0.25,
    )


@pytest.mark.parametrize("place", [(0, 0), (-1, -1), (0, -1), (-1, 20)])
def test_an_object_of_one_pixel_at_the_border_has_a_score(place) -> None:
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[place] = 1
    row = scored((mask.astype(float), mask)).per_image[0]
    assert row.s_measure is not None
    assert 0.9 < row.s_measure <= 1.0 + 1e-9


def test_an_object_that_fills_the_image_has_a_score() -> None:
    full = np.ones(SHAPE, dtype=np.uint8)
    summary = scored((np.full(SHAPE, 0.8), full)).summary()
    assert summary.s_measure == pytest.approx(0.8)
    assert summary.iou == 1.0


@settings(max_examples=25)
@given(order=st.permutations(range(6)), cut=st.integers(0, 6))
def test_neither_order_nor_processes_change_anything(order, cut) -> None:
    images = [(noise(i, (12, 17)) ** 2, blob((12, 17)) * (i != 4)) for i in range(6)]
    whole = scored(*images)
    parts = []
    for numbers in (order[:cut], order[max(cut - 1, 0) :]):  # one image comes twice
        part = SegmentationScores()
        for index in numbers:
            part.add(f"image {index}", *images[index], index=index)
        parts.append(part)
    first, second = parts
    first.merge(pickle.loads(pickle.dumps(second.per_image)))
    assert first.per_image == whole.per_image
    assert first.summary() == whole.summary()


def test_one_index_is_one_image() -> None:
    scores = scored((noise(), blob()))
    with pytest.raises(UsageError, match="index 0 was added already, as 'image 0'"):
        scores.add("other", noise(), blob(), index=0)
    other = SegmentationScores()
    other.add("moth", noise(), blob(), index=0)
    with pytest.raises(UsageError, match="index 0 is 'image 0' here and 'moth' there"):
        scores.merge(other.per_image)


def test_masks_of_all_kinds_are_one() -> None:
    rows = {
        scored((maps()["soft"], mask)).per_image[0]
        for mask in (blob(), blob() * 255, blob() > 0, blob().astype(np.int64))
    }
    assert len(rows) == 1


@pytest.mark.parametrize(
    ("prediction", "mask", "said"),
    [
        (noise()[1:], blob(), r"prediction is \(39, 56\) and the mask \(40, 56\); bring the pred"),
        (noise() * 4 - 2, blob(), r"goes from -2 to 2; .* Of logits take the sigmoid first|goes f"),
        (noise() * np.nan, blob(), "goes from nan to nan; expected probabilities"),
        (blob(), blob(), "the prediction is uint8; expected floats"),
        (noise(), blob() * 128, r"the mask is uint8 from 0 to 128; expected integers 0 and 1"),
        (noise(), noise(), r"the mask is float64 from 0\.\d+ to"),
        (noise(), blob()[None], r"the mask has shape \(1, 40, 56\); expected H W"),
    ],
)
def test_what_cannot_be_scored_is_refused(prediction, mask, said) -> None:
    with pytest.raises(UsageError, match=said):
        scored((prediction, mask))


def test_a_resize_may_overshoot_a_little() -> None:
    over = scored((maps()["perfect"] * (1 + 1e-6), blob())).summary()
    assert over.mae == 0.0


def test_nothing_added_is_nothing_scored() -> None:
    with pytest.raises(UsageError, match="no image was added; there is nothing to score"):
        SegmentationScores().summary()


def test_a_table_of_every_image(tmp_path) -> None:
    scores = scored((maps()["soft"], blob()), (noise(), blob() * 0))
    scores.write_csv(tmp_path / "scores.csv")
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["image 0", "image 1"]
    assert float(rows[0]["s_measure"]) == scores.per_image[0].s_measure
    assert rows[0]["false_positive_area"] == rows[1]["s_measure"] == ""
    assert "e_curve" not in rows[0]


def test_an_interval_is_of_the_images_that_have_the_score() -> None:
    images = [(noise(i), blob() * (i != 3)) for i in range(8)]
    interval = scored(*images).interval("s_measure", seed=0)
    assert interval.count == 7
    assert interval.low < interval.mean < interval.high
    with pytest.raises(ConfigError, match="interval of 'e_max': expected one of s_measure"):
        scored(*images).interval("e_max")


def test_a_difference_is_paired() -> None:
    ours = scored(*((0.8 * blob() + 0.1 * noise(i), blob()) for i in range(5)))
    theirs = scored(*((noise(i), blob()) for i in range(4)))
    found = difference(ours, theirs, "s_measure")
    steps = [
        a.s_measure - b.s_measure for a, b in zip(ours.per_image, theirs.per_image, strict=False)
    ]
    assert found.count == 4
    assert found.mean == pytest.approx(np.mean(steps))
    assert found.standard_error == pytest.approx(np.std(steps, ddof=1) / 2)
    assert str(found).startswith(f"+{found.mean:.3f} (standard error ")
    alone = difference(scored((noise(), blob())), theirs, "iou")
    assert math.isnan(alone.standard_error)
    with pytest.raises(ConfigError, match="difference of 'f1': expected one of s_measure"):
        difference(ours, theirs, "f1")
    with pytest.raises(UsageError, match="no image has it in both"):
        difference(ours, theirs, "false_positive_area")


def test_the_table_shows_what_there_is() -> None:
    plain = scored((maps()["soft"], blob())).summary()
    mixed = scored((noise(), blob()), (noise(), blob() * 0)).summary()
    assert "FP area" not in score_table({"ours": plain})
    lines = score_table({"ours": plain, "noise": mixed}).splitlines()
    assert " ".join(lines[0].split()) == "n S E adp E mean E max wF MAE IoU Dice FP area"
    assert lines[1].startswith("ours ")
    assert lines[1].endswith(" -")
    assert f"{plain.s_measure:.3f}" in lines[1]
