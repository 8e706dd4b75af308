"""IoU, GIoU, DIoU, CIoU: values, gradients, and boxes that are hard on them."""

import pytest
import torch
import torchvision.ops as tv
from hypothesis import given
from loss_cases import (
    assert_as_twin,
    assert_finite,
    box_pairs,
    dtypes,
    gradients,
    leaf,
    moderate,
    ordinary_boxes,
)

from oracles import losses as twins
from surefoot.errors import UsageError
from surefoot.losses import WiseIoU, box_iou_aligned, iou_loss

UPPER = {"iou": 1.0, "giou": 2.0, "diou": 2.0, "ciou": 2.5}
KINDS = list(UPPER)
ATTRACTING = ["giou", "diou", "ciou", "wiou 1", "wiou 2", "wiou 3"]

TARGET = torch.tensor([[100.0, 100.0, 140.0, 120.0]])
HARD = {
    "disjoint": [20.0, 10.0, 60.0, 50.0],
    "touching": [60.0, 100.0, 100.0, 120.0],
    "inside": [110.0, 105.0, 120.0, 112.0],
    "a point outside": [50.0, 50.0, 50.0, 50.0],
    "a point inside": [110.0, 110.0, 110.0, 110.0],
    "no width": [110.0, 90.0, 110.0, 130.0],
    "inverted x": [130.0, 105.0, 105.0, 118.0],
    "inverted y, apart": [20.0, 60.0, 50.0, 30.0],
    "inverted both, around the target": [150.0, 130.0, 90.0, 95.0],
}


def loss_of(name):
    """A kind of iou_loss, or a version of Wise-IoU."""
    if name.startswith("wiou"):
        return WiseIoU(int(name[-1]))
    return lambda p, t: iou_loss(p, t, name)


@pytest.mark.parametrize("name", [*KINDS, "wiou 1", "wiou 2", "wiou 3"])
@moderate
@given(pair=box_pairs(), dtype=dtypes)
def test_every_finite_pair_has_a_finite_loss_and_gradient(name, pair, dtype):
    pred, target = (leaf(boxes, dtype) for boxes in pair)
    assert_finite(loss_of(name)(pred, target), pred, target)


@pytest.mark.parametrize("kind", KINDS)
@moderate
@given(pair=box_pairs(), dtype=dtypes)
def test_every_loss_is_in_its_range_and_symmetric(kind, pair, dtype):
    a, b = (boxes.to(dtype) for boxes in pair)
    loss = iou_loss(a, b, kind)
    assert loss.min() >= -1e-6
    assert loss.max() <= UPPER[kind] + 1e-6
    torch.testing.assert_close(loss, iou_loss(b, a, kind), rtol=1e-5, atol=1e-6)


@moderate
@given(pair=box_pairs())
def test_a_box_fits_itself_and_an_inverted_one_fits_nothing(pair):
    boxes, _ = pair
    inverted = ((boxes[:, 2:] - boxes[:, :2]) < -0.01).any(1)
    ordered = (boxes[:, 2:] >= boxes[:, :2]).all(1)
    sound = torch.cat((boxes[:, :2].minimum(boxes[:, 2:]), boxes[:, :2].maximum(boxes[:, 2:])), 1)
    for kind in KINDS:
        assert (iou_loss(boxes, boxes, kind)[ordered].abs() < 1e-6).all()
        wide = inverted & ((sound[:, 2:] - sound[:, :2]) > 1).all(1)
        assert (iou_loss(boxes, sound, kind)[wide] > 0.999).all()


@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_are_those_of_the_float64_twin(kind):
    pred, target = ordinary_boxes(40, 1), ordinary_boxes(40, 2)
    hard = torch.tensor([v for k, v in HARD.items() if k not in ("touching", "inside")])
    pred = torch.cat((pred, hard + torch.tensor([0.25, 0.5, 0.25, 0.5])))
    target = torch.cat((target, TARGET.expand(len(hard), 4)))
    ordinary = (pred[:, 2:] != pred[:, :2]).all(1)  # at an empty side there is no one gradient
    assert ordinary.sum() >= 44
    assert_as_twin(
        lambda p, t: iou_loss(p, t, kind),
        lambda p, t: twins.iou_loss(p, t, kind),
        pred[ordinary],
        target[ordinary],
    )


@pytest.mark.parametrize(
    ("kind", "torchvision_loss"),
    [
        ("giou", tv.generalized_box_iou_loss),
        ("diou", tv.distance_box_iou_loss),
        ("ciou", tv.complete_box_iou_loss),
    ],
)
def test_ordinary_boxes_give_what_torchvision_gives(kind, torchvision_loss):
    pred, target = ordinary_boxes(500, 1), ordinary_boxes(500, 2)
    value, (grad, _) = gradients(lambda p, t: iou_loss(p, t, kind), pred, target)
    expected, (expected_grad, _) = gradients(torchvision_loss, pred, target)
    assert (expected < 1).any()
    assert (expected > 1).any()
    torch.testing.assert_close(value, expected, rtol=0, atol=3e-5)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-3, atol=1e-5)


def test_aligned_iou_is_the_diagonal_of_torchvisions():
    a, b = ordinary_boxes(100, 1), ordinary_boxes(100, 2)
    torch.testing.assert_close(
        box_iou_aligned(a, b), tv.box_iou(a, b).diagonal(), rtol=0, atol=3e-5
    )


def test_large_boxes_keep_their_precision():
    # Areas of 1e8 pixels that differ by one column of pixels.
    a, b = torch.tensor([[0.0, 0.0, 1e4, 1e4]]), torch.tensor([[0.0, 0.0, 9999.0, 1e4]])
    assert box_iou_aligned(a, b).item() == pytest.approx(0.9999, abs=1e-7)
    assert box_iou_aligned(a.half(), b.half()).item() == 1.0  # 9999 is 10000 in float16


def test_a_box_around_the_target_leaves_nothing_of_it_empty():
    inner = ordinary_boxes(200)
    outer = inner + torch.rand(200, 4) * torch.tensor([-50.0, -50.0, 50.0, 50.0])
    giou, iou = iou_loss(outer, inner, "giou"), iou_loss(outer, inner, "iou")
    assert torch.equal(giou, iou)


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_apart_cost_what_a_run_begins_with(kind):
    corner = torch.rand(200, 2) * 300
    pred = torch.cat((corner, corner + 1 + torch.rand(200, 2) * 50), 1)
    target = torch.cat((corner + 60, corner + 61 + torch.rand(200, 2) * 50), 1)
    loss = iou_loss(pred, target, kind)
    if kind == "iou":
        assert (loss == 1).all()
    else:
        assert loss.min() > 1
        assert loss.max() <= UPPER[kind]


@pytest.mark.parametrize("name", ATTRACTING)
@pytest.mark.parametrize("case", [case for case in HARD if "point" not in case])
def test_a_small_step_down_the_gradient_improves_a_hard_box(name, case):
    pred = torch.tensor([HARD[case]])
    loss = WiseIoU(int(name[-1])).eval() if name.startswith("wiou") else loss_of(name)
    before, (grad, _) = gradients(loss, pred, TARGET)
    assert grad.abs().max() > 1e-4
    after = loss(pred - 0.05 * grad / grad.abs().max(), TARGET)
    assert after.item() < before.item()


@pytest.mark.parametrize("name", ATTRACTING)
def test_training_brings_every_hard_box_onto_its_target(name):
    pred = leaf(torch.tensor(list(HARD.values())))
    target = TARGET.expand(len(pred), 4)
    loss = loss_of(name)
    optimizer = torch.optim.Adam([pred], lr=3.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 400)
    for _ in range(400):
        optimizer.zero_grad()
        loss(pred, target).sum().backward()
        optimizer.step()
        schedule.step()
    reached = dict(zip(HARD, box_iou_aligned(pred, target).tolist(), strict=True))
    assert min(reached.values()) > 0.9, reached


def test_the_aspect_does_not_tear_a_point_apart():
    point = torch.tensor([HARD["a point inside"]]) + torch.tensor([0.0, 0.0, 1e-3, 2e-3])
    _, (grad, _) = gradients(lambda p, t: iou_loss(p, t, "ciou"), point, TARGET)
    _, (unfaded, _) = gradients(tv.complete_box_iou_loss, point, TARGET)
    assert grad.abs().max() < 0.1
    assert unfaded.abs().max() > 10


def test_plain_iou_has_no_gradient_where_nothing_overlaps():
    _, (grad, _) = gradients(
        lambda p, t: iou_loss(p, t, "iou"), torch.tensor([HARD["disjoint"]]), TARGET
    )
    assert (grad == 0).all()


def test_integer_targets_are_pixels_as_well():
    pred = ordinary_boxes(5)
    target = pred.round().long()
    assert torch.equal(iou_loss(pred, target), iou_loss(pred, target.float()))


@pytest.mark.parametrize(
    ("pred", "target"), [((3, 4), (2, 4)), ((3, 5), (3, 5)), ((4,), (1, 4)), ((3, 4), (1, 4))]
)
def test_shapes_that_do_not_fit_are_refused(pred, target):
    with pytest.raises(UsageError, match=r"got shapes \(.*expected M 4 twice.*matched rows"):
        iou_loss(torch.zeros(pred), torch.zeros(target))


def test_an_unknown_kind_is_refused():
    with pytest.raises(UsageError, match="kind 'eiou'; expected one of iou, giou, diou, ciou"):
        iou_loss(torch.zeros(1, 4), torch.zeros(1, 4), "eiou")
