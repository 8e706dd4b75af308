"""Letterbox and augmentation: boxes stay on what they surround."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surefoot.data import Augmentation, Letterbox, augment, letterbox
from surefoot.data.transforms import FILL
from surefoot.errors import ConfigError

GEOMETRY = Augmentation(
    scale=(0.5, 2.0), shift=0.4, brightness=0.0, contrast=0.0, saturation=0.0
)  # fmt: skip


def extent(image: np.ndarray) -> list[int]:
    """x1 y1 x2 y2 around the white pixels."""
    white = image[..., 0] > 127
    rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@given(
    width=st.integers(1, 2000),
    height=st.integers(1, 2000),
    size=st.integers(1, 1280),
    corners=st.lists(st.floats(0, 2000), min_size=4, max_size=4),
)
def test_inverting_a_letterbox_gives_back_every_box(width, height, size, corners):
    scale = size / max(width, height)
    place = Letterbox(scale, (size - int(width * scale)) // 2, (size - int(height * scale)) // 2)
    boxes = np.array([corners])
    np.testing.assert_allclose(place.invert(place.apply(boxes)), boxes, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (361, 640), (97, 31), (64, 64)])
@pytest.mark.parametrize("size", [1, 32, 333])
def test_a_letterboxed_picture_is_a_square_with_grey_around_it(shape, size):
    square, place = letterbox(np.full((*shape, 3), 200, dtype=np.uint8), size)
    assert square.shape == (size, size, 3)
    assert place.scale == size / max(shape)
    inside = square[place.pad_y : size - place.pad_y, place.pad_x : size - place.pad_x]
    assert (inside[0, 0] == 200).all()
    along = square[place.pad_y] if shape[1] >= shape[0] else square[:, place.pad_x]
    assert (along == 200).all()
    assert set(np.unique(square)) <= {200, FILL}


@pytest.mark.parametrize("shape", [(361, 640), (640, 361), (101, 333), (50, 50)])
def test_a_box_follows_its_object_into_the_square(shape):
    image = np.zeros((*shape, 3), dtype=np.uint8)
    box = np.array([[shape[1] * 0.6, shape[0] * 0.55, shape[1], shape[0]]]).round()
    x1, y1, x2, y2 = box[0].astype(int)
    image[y1:y2, x1:x2] = 255
    square, place = letterbox(image, 320)
    assert np.abs(np.array(extent(square)) - place.apply(box)[0]).max() <= 1.0


def test_the_shorter_side_is_scaled_like_the_longer_one_and_not_squeezed():
    """39 rows become 3 of 10 rows each; squeezed they would be 3 of 13."""
    rows = (np.arange(39) * 5).astype(np.uint8)
    image = np.broadcast_to(rows[:, None, None], (39, 160, 3))
    square, place = letterbox(np.ascontiguousarray(image), 16)
    middle = square[place.pad_y + 1, 8, 0]
    assert abs(int(middle) - 5 * (1.5 / place.scale - 0.5)) <= 2


def test_tensors_and_single_precision_keep_their_kind():
    place = Letterbox(0.5, 3, 4)
    boxes = torch.rand(2, 5, 4)
    torch.testing.assert_close(place.invert(place.apply(boxes)), boxes)
    assert place.apply(np.zeros((3, 4), dtype=np.float32)).dtype == np.float32


def test_a_square_without_a_side_is_refused():
    with pytest.raises(ConfigError, match="size is 0; it is a side in pixels"):
        letterbox(np.zeros((4, 4, 3), dtype=np.uint8), 0)


@pytest.mark.parametrize("seed", range(20))
def test_a_box_follows_its_object_through_augmentation(seed):
    image = np.zeros((120, 160, 3), dtype=np.uint8)
    image[40:80, 50:110] = 255
    box = np.array([[50, 40, 110, 80]], dtype=np.float32)
    changed, boxes, left = augment(image, box, np.random.default_rng(seed), GEOMETRY)
    assert changed.shape == image.shape
    assert changed.dtype == np.uint8
    if left[0] > 0.05:
        assert np.abs(np.array(extent(changed)) - boxes[0]).max() <= 2.0
    else:
        assert (changed > 127).mean() < 0.05


def test_the_share_left_of_a_box_is_its_area_inside_the_picture():
    image = np.zeros((100, 100, 3), dtype=np.uint8)
    box = np.array([[40, 40, 60, 60], [0, 0, 20, 20], [15, 40, 35, 60]], dtype=np.float32)
    how = Augmentation(flip=0, scale=(2.0, 2.0), shift=0.0)
    _, boxes, left = augment(image, box, np.random.default_rng(0), how)
    assert boxes[0].tolist() == [30, 30, 70, 70]
    assert left.tolist() == pytest.approx([1.0, 0.0, 0.5], abs=1e-6)


def test_a_flip_mirrors_picture_and_box():
    image = np.zeros((10, 20, 3), dtype=np.uint8)
    image[2:5, 1:4] = 255
    how = Augmentation(
        flip=1, scale=(1, 1), shift=0, brightness=0, contrast=0, saturation=0
    )  # fmt: skip
    box = np.array([[1, 2, 4, 5]], dtype=np.float32)
    changed, boxes, left = augment(image, box, np.random.default_rng(0), how)
    assert boxes.tolist() == [[16, 2, 19, 5]]
    assert extent(changed) == [16, 2, 19, 5]
    assert left.tolist() == [1]


def test_augmentation_draws_from_the_generator_given_and_from_no_other():
    image = np.random.default_rng(1).integers(0, 255, (40, 40, 3)).astype(np.uint8)
    none = np.zeros((0, 4), dtype=np.float32)
    before = torch.get_rng_state()
    first = augment(image, none, np.random.default_rng(5), Augmentation())[0]
    torch.manual_seed(7)
    again = augment(image, none, np.random.default_rng(5), Augmentation())[0]
    other = augment(image, none, np.random.default_rng(6), Augmentation())[0]
    torch.set_rng_state(before)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_picture_given_is_left_as_it_was():
    image = np.full((20, 20, 3), 90, dtype=np.uint8)
    image.setflags(write=False)
    changed, boxes, _ = augment(
        image, np.zeros((0, 4), dtype=np.float32), np.random.default_rng(2), Augmentation()
    )
    assert (image == 90).all()
    assert boxes.shape == (0, 4)
    assert not np.array_equal(changed, image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": (0, 1)}, r"scale is \(0, 1\); expected 0 < smallest"),
        ({"flip": 1.5}, "flip is 1.5; expected 0 to 1"),
        ({"contrast": -0.1}, "contrast is -0.1; expected 0 to 1"),
    ],
)
def test_ranges_that_cannot_be_are_refused_by_name(change, message):
    with pytest.raises(ConfigError, match=message):
        Augmentation(**change)
