"""One decode for training, evaluation and export, and its inverse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from surefoot.errors import UsageError
from surefoot.models import anchor_points, best_boxes, decode_boxes, detections, encode_boxes
from surefoot.shapes import DetectionPrediction


def two_bins(distances: Tensor, reg_max: int) -> Tensor:
    """Logits of the distribution over the two bins beside a distance, with it as expectation."""
    left = distances.floor().clamp(max=reg_max - 2)
    share = torch.zeros(*distances.shape, reg_max)
    share.scatter_(-1, left.long()[..., None], (1 - (distances - left))[..., None])
    share.scatter_(-1, left.long()[..., None] + 1, (distances - left)[..., None])
    return share.log().clamp(min=-1e4)


@st.composite
def matched_boxes(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, int]:
    reg_max = draw(st.integers(2, 32))
    stride = draw(st.sampled_from([4.0, 8.0, 16.0, 32.0]))
    coordinate = st.floats(0, 1280, width=32)
    point = torch.tensor([draw(coordinate), draw(coordinate)])
    side = st.floats(0, reg_max - 1, width=32)
    sides = torch.tensor([draw(side) for _ in range(4)]) * stride
    box = torch.cat((point - sides[:2], point + sides[2:]))
    return box[None], point[None], torch.tensor([stride]), reg_max


@settings(max_examples=200)
@given(matched_boxes())
def test_decoding_what_was_encoded_gives_the_box(
    case: tuple[Tensor, Tensor, Tensor, int],
) -> None:
    boxes, points, strides, reg_max = case
    sides = encode_boxes(boxes, points, strides, reg_max)
    decoded = decode_boxes(two_bins(sides, reg_max), points, strides)
    torch.testing.assert_close(decoded, boxes, atol=2e-3, rtol=1e-5)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 1.0, 1e2, 1e4]))
@settings(max_examples=50)
def test_no_logits_decode_to_an_inverted_or_unbounded_box(seed: int, size: float) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 5, 4, 16, generator=random) * size
    points, strides = torch.rand(5, 2, generator=random) * 640, torch.full((5,), 8.0)
    boxes = decode_boxes(logits, points, strides)
    assert (boxes[..., 2:] >= boxes[..., :2]).all()
    assert ((boxes[..., :2] - points).abs() <= 15 * 8).all()


def test_a_side_out_of_range_is_encoded_as_the_nearest_in_range() -> None:
    box, point = torch.tensor([[-500.0, 90.0, 110.0, 120.0]]), torch.tensor([[100.0, 80.0]])
    sides = encode_boxes(box, point, torch.ones(1), 16)
    assert sides.tolist() == [[15.0, 0.0, 10.0, 15.0]]


def test_decoding_half_precision_is_done_in_float32() -> None:
    logits = torch.randn(1, 3, 4, 16).bfloat16()
    points, strides = torch.tensor([[1001.0, 3.0]] * 3), torch.full((3,), 8.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        boxes = decode_boxes(logits, points, strides)
    assert boxes.dtype == torch.float32
    torch.testing.assert_close(boxes, decode_boxes(logits.float(), points, strides))


def test_anchor_points_are_cell_centres_in_the_order_of_the_maps() -> None:
    points, strides = anchor_points({4: (2, 3), 8: (1, 2)})
    assert points.tolist() == [[2, 2], [6, 2], [10, 2], [2, 6], [6, 6], [10, 6], [4, 4], [12, 4]]
    assert strides.tolist() == [4] * 6 + [8] * 2


def a_prediction(logits: Tensor, sides: Tensor) -> DetectionPrediction:
    """B A N logits, and boxes whose sides (A 4, strides) are the same in every image."""
    points, strides = anchor_points({8: (1, logits.shape[1])})
    images, objects = logits.shape[0], logits.shape[2]
    return DetectionPrediction(
        logits=logits,
        objectness=torch.zeros(logits.shape[:2]),
        distribution=two_bins(sides, 8).expand(images, -1, -1, -1),
        embeddings=torch.zeros(*logits.shape[:2], 2),
        prototypes=torch.zeros(objects, 2),
        shots=torch.zeros(objects, 1, 2),
        anchor_points=points,
        strides=strides,
    )


def test_the_best_box_is_the_one_of_the_likeliest_point() -> None:
    logits = torch.full((2, 3, 2), -5.0)
    logits[0, 2, 0], logits[0, 0, 1], logits[1, 1, 0] = 2.0, 1.0, 0.0
    sides = torch.tensor([[0.5] * 4, [1.0] * 4, [1.5] * 4])
    boxes, scores = best_boxes(a_prediction(logits, sides))
    assert boxes.shape == (2, 2, 4)
    torch.testing.assert_close(boxes[0, 0], torch.tensor([8.0, -8.0, 32.0, 16.0]))
    torch.testing.assert_close(boxes[0, 1], torch.tensor([0.0, 0.0, 8.0, 8.0]))
    torch.testing.assert_close(boxes[1, 0], torch.tensor([4.0, -4.0, 20.0, 12.0]))
    torch.testing.assert_close(scores[:, 0], torch.tensor([2.0, 0.0]).sigmoid())


def test_suppression_is_within_an_object_and_keeps_the_better_box() -> None:
    logits = torch.full((1, 3, 2), -20.0)
    logits[0, :, 0] = torch.tensor([1.0, 2.0, 1.5])  # three boxes of object 0 on one place
    logits[0, 0, 1] = 0.5  # and object 1 there as well
    sides = torch.tensor([[0.0, 1, 3, 1], [1.0, 1, 2, 1], [2.0, 1, 1, 1]])
    (found,) = detections(a_prediction(logits, sides), threshold=0.1)
    assert found.objects.tolist() == [0, 1]
    torch.testing.assert_close(found.scores, torch.tensor([2.0, 0.5]).sigmoid())


def test_detections_stop_at_the_limit_and_at_the_threshold() -> None:
    logits = torch.tensor([[[3.0], [2.0], [1.0]], [[3.0], [-9.0], [-9.0]]])
    prediction = a_prediction(logits, torch.full((3, 4), 0.25))
    assert [len(f.scores) for f in detections(prediction, limit=2)] == [2, 1]
    assert [len(f.scores) for f in detections(prediction, threshold=0.99)] == [0, 0]
    with pytest.raises(UsageError, match="limit 0; at least one"):
        detections(prediction, limit=0)
