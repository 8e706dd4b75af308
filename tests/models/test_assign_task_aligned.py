"""Task-aligned assignment: what Ultralytics' assigner says, and what holds beside it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from surefoot.errors import ConfigError, UsageError
from surefoot.losses import iou_loss
from surefoot.models import anchor_points, decode_boxes
from surefoot.models.task_aligned import TaskAlignedConfig, positive_points, task_aligned
from surefoot.models.yolov8 import StandardPrediction

SIZE = 96
LEVELS = {8: (12, 12), 16: (6, 6), 32: (3, 3)}
CLASSES = 3


@dataclass
class Truth:
    boxes: Tensor
    box_image: Tensor
    box_class: Tensor


def a_truth(rows: list[tuple]) -> Truth:
    """Rows of (image, class, box)."""
    return Truth(
        torch.tensor([r[2] for r in rows], dtype=torch.float32).view(-1, 4),
        torch.tensor([r[0] for r in rows], dtype=torch.int64),
        torch.tensor([r[1] for r in rows], dtype=torch.int64),
    )


def a_prediction(images: int, seed: int, sharpness: float = 2.0) -> StandardPrediction:
    random = torch.Generator().manual_seed(seed)
    points, strides = anchor_points(LEVELS)
    count = len(points)
    return StandardPrediction(
        logits=torch.randn(images, count, CLASSES, generator=random) * 2 - 1,
        distribution=torch.randn(images, count, 4, 8, generator=random) * sharpness,
        anchor_points=points,
        strides=strides,
    )


def said_boxes(prediction: StandardPrediction) -> Tensor:
    return decode_boxes(prediction.distribution, prediction.anchor_points, prediction.strides)


def originals(
    prediction: StandardPrediction, truth: Truth, config: TaskAlignedConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """What Ultralytics' assigner tells each point: class scores, box, and whether it is one."""
    tal = pytest.importorskip("ultralytics.utils.tal", reason="Ultralytics is not installed")
    images = len(prediction.logits)
    most = max([int((truth.box_image == i).sum()) for i in range(images)], default=0)
    boxes, labels = torch.zeros(images, most, 4), torch.zeros(images, most, 1)
    there = torch.zeros(images, most, 1)
    for i in range(images):
        mine = truth.box_image == i
        count = int(mine.sum())
        boxes[i, :count], there[i, :count] = truth.boxes[mine], 1
        labels[i, :count, 0] = truth.box_class[mine].float()
    assigner = tal.TaskAlignedAssigner(
        topk=config.topk, num_classes=CLASSES, alpha=config.alpha, beta=config.beta
    )
    _, box, scores, positive, _ = assigner(
        prediction.logits.sigmoid(),
        said_boxes(prediction),
        prediction.anchor_points,
        labels,
        boxes,
        there,
    )
    return scores, box, positive.bool()


def ours_in_its_form(prediction: StandardPrediction, truth: Truth, config: TaskAlignedConfig):
    aligned = task_aligned(prediction, truth, config)
    positive = aligned.box >= 0
    scores = torch.zeros_like(prediction.logits)
    image, point = positive.nonzero(as_tuple=True)
    box = aligned.box[image, point]
    scores[image, point, truth.box_class[box]] = aligned.score[image, point]
    assert torch.equal(truth.box_image[box], image)
    return scores, truth.boxes[box], positive


def assert_equal_to_the_original(
    prediction: StandardPrediction, truth: Truth, config: TaskAlignedConfig
) -> None:
    scores, boxes, positive = ours_in_its_form(prediction, truth, config)
    expected, their_boxes, their_positive = originals(prediction, truth, config)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-4)
    # A point of theirs whose target is 0 weighs nothing anywhere; ours answers for no box then.
    weighs = expected.sum(-1) > 0
    assert not (weighs & ~their_positive).any()
    assert torch.equal(positive & weighs, weighs)
    torch.testing.assert_close(boxes[weighs[positive]], their_boxes[weighs])
    assert (scores.sum(-1)[positive & ~weighs] < 1e-12).all()


def leaves_it_open(prediction: StandardPrediction, truth: Truth, topk: int) -> bool:
    """A box has fewer points that overlap with it than it may take, and is not alone where it has
    more points. The original then lets ties of 0 claim points that other boxes compete for.
    """
    said = said_boxes(prediction)
    low, high = truth.boxes.split(2, dim=1)
    half = ((high - low) / 2).clamp(min=8)[:, None]
    inside = ((prediction.anchor_points - ((low + high) / 2)[:, None]).abs() < half).all(-1)
    u = torch.stack(
        [
            1 - iou_loss(said[int(image)], box.expand(said.shape[1], 4), "ciou")
            for box, image in zip(truth.boxes, truth.box_image, strict=True)
        ]
    )
    hungry = (inside & (u > 1e-4)).sum(1, keepdim=True) < topk
    same_image = truth.box_image[:, None] == truth.box_image
    company = (same_image.float() @ inside.float()) > 1
    return bool((hungry & inside & (u <= 1e-4) & company).any())


@st.composite
def cases(draw: st.DrawFn) -> tuple[StandardPrediction, Truth]:
    images = draw(st.integers(1, 4))
    rows = []
    for _ in range(draw(st.integers(0, 10))):
        x, y = draw(st.integers(-80, 700)) / 8 + 1 / 64, draw(st.integers(-80, 700)) / 8 + 1 / 64
        w, h = draw(st.integers(160, 600)) / 8 + 1 / 32, draw(st.integers(160, 600)) / 8 + 1 / 32
        of = draw(st.integers(0, images - 1)), draw(st.integers(0, CLASSES - 1))
        rows.append((*of, (x, y, x + w, y + h)))
        if draw(st.booleans()):  # a second one on it, of any class: they compete for its points
            shift = draw(st.integers(-20, 20)) / 8 + 1 / 128
            other = draw(st.integers(0, CLASSES - 1))
            rows.append((of[0], other, (x + shift, y, x + w + shift, y + h * 0.9)))
    return a_prediction(images, draw(st.integers(0, 2**31))), a_truth(rows)


@settings(max_examples=150)
@given(
    cases(),
    st.sampled_from([1, 3, 10, 13]),
    st.sampled_from([(0.5, 6.0), (1.0, 6.0), (1.0, 1.0), (0.0, 2.0)]),
)
def test_it_equals_the_originals(
    case: tuple[StandardPrediction, Truth], topk: int, powers: tuple[float, float]
) -> None:
    assume(not len(case[1].boxes) or not leaves_it_open(*case, topk))
    config = TaskAlignedConfig(topk=topk, alpha=powers[0], beta=powers[1])
    assert_equal_to_the_original(*case, config)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(*[st.integers(0, 700)] * 2, *[st.integers(1, 240)] * 2), max_size=4),
    st.integers(0, 2**31),
)
def test_it_equals_the_originals_for_boxes_of_any_size_alone_in_their_image(
    places: list[tuple], seed: int
) -> None:
    rows = [
        (i, i % CLASSES, (x / 8, y / 8, (x + w) / 8, (y + h) / 8))
        for i, (x, y, w, h) in enumerate(places)
    ]
    assert_equal_to_the_original(a_prediction(4, seed), a_truth(rows), TaskAlignedConfig())


def test_it_equals_the_originals_in_a_crowd() -> None:
    random = torch.Generator().manual_seed(3)
    low = torch.rand(120, 2, generator=random) * 70
    side = torch.rand(120, 2, generator=random) * 50 + 2
    truth = Truth(
        torch.cat((low, low + side), dim=1),
        torch.randint(0, 3, (120,), generator=random),
        torch.randint(0, CLASSES, (120,), generator=random),
    )
    prediction = a_prediction(4, seed=5)  # the fourth image has no box
    assert_equal_to_the_original(prediction, truth, TaskAlignedConfig())
    assert (task_aligned(prediction, truth).box[3] == -1).all()


def test_no_box_at_all_is_background_everywhere() -> None:
    aligned = task_aligned(a_prediction(2, seed=0), a_truth([]))
    assert aligned.box.tolist() == [[-1] * 189] * 2
    assert not aligned.score.any()
    found = positive_points(a_prediction(2, seed=0), a_truth([]), aligned)
    assert found.boxes.shape == (0, 4)


def test_a_perfect_point_is_told_the_box_with_full_score() -> None:
    prediction = a_prediction(1, seed=0)
    prediction.distribution[0, 30] = torch.eye(8)[2] * 1e4  # two strides to every side
    x, y = prediction.anchor_points[30].tolist()
    truth = a_truth([(0, 1, (x - 16, y - 16, x + 16, y + 16))])
    aligned = task_aligned(prediction, truth)
    assert aligned.box[0, 30] == 0
    assert aligned.score[0, 30].item() == pytest.approx(1, abs=1e-5)
    found = positive_points(prediction, truth, aligned)
    row = (found.point == 30).nonzero().item()
    torch.testing.assert_close(found.boxes[row], truth.boxes[0])
    torch.testing.assert_close(found.distances[row], torch.full((4,), 2.0))
    assert found.label[row] == 1


def test_a_box_of_a_pixel_between_all_points_still_has_some() -> None:
    truth = a_truth([(0, 0, (7.6, 7.6, 8.4, 8.4))])
    prediction = a_prediction(1, seed=0)
    prediction.distribution[...] = torch.eye(8)[0] * 50  # boxes of nearly no size ...
    prediction.distribution[0, 0, 2:] = torch.eye(8)[1] * 50  # ... but that of the point (4, 4)
    aligned = task_aligned(prediction, truth)
    assert aligned.box[0].nonzero().flatten().tolist() != []
    assert aligned.box[0, 0] == 0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_take_no_point(bad: float) -> None:
    prediction = a_prediction(1, seed=0)
    prediction.distribution[...] = bad
    truth = a_truth([(0, 0, (10, 10, 60, 60))])
    aligned = task_aligned(prediction, truth)
    assert (aligned.box == -1).all()
    assert aligned.score.isfinite().all()


def test_the_positive_points_carry_gradient_and_the_assignment_none() -> None:
    prediction = a_prediction(2, seed=1)
    prediction.distribution.requires_grad_()
    truth = a_truth([(0, 0, (10, 10, 60, 60)), (1, 2, (5, 30, 40, 90))])
    aligned = task_aligned(prediction, truth)
    assert not aligned.score.requires_grad
    positive_points(prediction, truth, aligned).boxes.sum().backward()
    touched = prediction.distribution.grad.abs().sum((-1, -2)) > 0
    assert torch.equal(touched, aligned.box >= 0)


def test_half_precision_is_computed_in_float32() -> None:
    whole, truth = a_prediction(1, seed=2), a_truth([(0, 0, (10, 10, 60, 60))])
    half = StandardPrediction(
        logits=whole.logits.bfloat16(),
        distribution=whole.distribution.bfloat16(),
        anchor_points=whole.anchor_points,
        strides=whole.strides,
    )
    again = StandardPrediction(
        logits=half.logits.float(),
        distribution=half.distribution.float(),
        anchor_points=whole.anchor_points,
        strides=whole.strides,
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        aligned = task_aligned(half, truth)
    expected = task_aligned(again, truth)
    assert torch.equal(aligned.box, expected.box)
    assert torch.equal(aligned.score, expected.score)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    truth = a_truth([(0, 0, (1, 1, 9, 9))])
    truth.box_class = truth.box_class[:, None]
    with pytest.raises(UsageError, match=r"\(1, 1\)\]; expected M 4, M and M"):
        task_aligned(a_prediction(1, seed=0), truth)


@pytest.mark.parametrize("change", [{"topk": 0}, {"alpha": -1}, {"beta": float("inf")}])
def test_powers_that_cannot_work_are_refused(change: dict) -> None:
    with pytest.raises(ConfigError, match="topk is at least 1"):
        TaskAlignedConfig(**change)
    with pytest.raises(ConfigError, match="eps 0; expected a number above 0"):
        TaskAlignedConfig(eps=0)
