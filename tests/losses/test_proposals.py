"""Contrastive proposal encoding: the loss, the features it reads, the proposals it is given."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import assert_as_twin, assert_finite, dtypes, leaf, moderate, tensors
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.ops import MultiScaleRoIAlign, box_iou

from surefoot.errors import ConfigError, UsageError
from surefoot.losses import (
    contrastive_proposals,
    jittered_boxes,
    roi_features,
    supervised_contrastive,
)

STRIDES = (4, 8, 16, 32)
labels = st.lists(st.integers(-1, 2), min_size=5, max_size=5).map(torch.tensor)
overlaps = st.lists(st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]), min_size=5, max_size=5)


def twin(features, labels, ious, *, temperature=0.1, least_iou=0.5, reweight="linear"):
    """Equations 2 to 4 of the paper, one proposal and one pair at a time."""
    z = [f / (f @ f).sqrt() for f in features.double()]
    y, rows = labels.tolist(), []
    for i, u in enumerate(ious.tolist()):
        positives = [p for p in range(len(z)) if p != i and y[p] == y[i] >= 0]
        if not positives or u < least_iou:
            continue
        others = [torch.exp(z[i] @ z[a] / temperature) for a in range(len(z)) if a != i]
        told = [torch.log(torch.exp(z[i] @ z[p] / temperature) / sum(others)) for p in positives]
        g = {"constant": 1.0, "linear": u, "exponential": math.exp(u) - 1}[reweight]
        rows.append(-g * sum(told) / len(positives))
    return sum(rows) / len(rows)


def proposals(rows=24, width=16, objects=4):
    return torch.randn(rows, width), torch.arange(rows) % objects - 1, torch.rand(rows)


@pytest.mark.parametrize("reweight", ["constant", "linear", "exponential"])
@pytest.mark.parametrize("least_iou", [0.0, 0.7])
def test_value_and_gradient_are_those_of_the_paper_written_as_loops(reweight, least_iou):
    x, y, u = proposals()
    how = {"temperature": 0.2, "least_iou": least_iou, "reweight": reweight}
    assert_as_twin(
        lambda x: contrastive_proposals(x, y, u, **how), lambda x: twin(x, y, u, **how), x
    )


def test_the_gradient_is_that_of_finite_differences():
    x, y, u = proposals(rows=8, width=4, objects=3)
    in_float64 = contrastive_proposals.__wrapped__
    x = x.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: in_float64(x, y, u.double(), temperature=0.5, least_iou=0.2), x
    )


@moderate
@given(x=tensors(5, 3), y=labels, u=overlaps, dtype=dtypes)
def test_every_finite_feature_has_a_finite_loss_and_gradient(x, y, u, dtype):
    x = leaf(x, dtype)
    loss = contrastive_proposals(x, y, torch.tensor(u))
    assert_finite(loss, x)
    assert loss >= 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_lose_their_own_rounding_and_no_more(dtype):
    x, y, u = proposals()
    x = x.to(dtype)
    loss = contrastive_proposals(x, y, u)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(twin(x, y, u).item(), rel=1e-5)


def test_the_order_of_proposals_the_names_of_labels_and_lengths_do_not_matter():
    (x, y, u), order = proposals(), torch.randperm(24)
    renamed = torch.where(y < 0, -7, 100 - y)
    longer = x * torch.logspace(-1, 3, 24)[:, None]
    expected = contrastive_proposals(x, y, u)
    found = contrastive_proposals(longer[order], renamed[order], u[order])
    torch.testing.assert_close(found, expected)


def test_where_all_overlap_fully_it_is_the_supervised_contrastive_loss():
    x, y = torch.randn(12, 8), torch.arange(12) % 5
    found = contrastive_proposals(x, y, torch.ones(12), temperature=0.3)
    torch.testing.assert_close(found, supervised_contrastive(x, y, temperature=0.3))


def test_random_initialisation_gives_the_logarithm_of_the_number_of_others():
    y, u = torch.arange(64) % 8, torch.full((64,), 0.8)
    expected = 0.8 * math.log(63)
    assert contrastive_proposals(torch.ones(64, 8), y, u).item() == pytest.approx(expected)


def test_poor_proposals_are_no_anchors_but_positives_and_negatives_of_others():
    x, y = leaf(torch.randn(4, 8)), torch.tensor([0, 0, 1, 1])
    loss = contrastive_proposals(x, y, torch.tensor([1.0, 0.2, 0.3, 0.4]))
    z = torch.nn.functional.normalize(x.detach().double(), dim=1)
    s = (z[0] @ z[1:].T / 0.1).log_softmax(0)
    assert loss.item() == pytest.approx(-s[0].item(), rel=1e-5)
    loss.backward()
    assert (x.grad.abs().amax(1) > 0).all()


def test_background_is_a_negative_of_others_and_never_their_positive():
    x, u = torch.randn(5, 8), torch.ones(5)
    first = contrastive_proposals(x, torch.tensor([0, 0, -1, -1, -1]), u)
    other = contrastive_proposals(x, torch.tensor([0, 0, -1, -2, 5]), u)
    assert torch.equal(first, other)
    assert first > contrastive_proposals(x[:2], torch.tensor([0, 0]), u[:2]) == 0


@pytest.mark.parametrize(
    ("y", "u"),
    [([0, 1, 2], [1.0] * 3), ([-1, -1, -1], [1.0] * 3), ([0, 0, 0], [0.4] * 3), ([], [])],
    ids=["no pair", "background alone", "all poor", "no proposal"],
)
def test_without_an_anchor_it_is_0_joined_to_the_model(y, u):
    x = leaf(torch.randn(len(y), 8))
    loss = contrastive_proposals(x, torch.tensor(y, dtype=torch.long), torch.tensor(u))
    assert loss == 0
    with torch.autograd.set_detect_anomaly(True):
        assert_finite(loss, x)
    assert (x.grad == 0).all()


def test_an_overlap_that_is_not_a_number_shows():
    x, y, u = proposals()
    u[1] = math.nan
    assert contrastive_proposals(x, y, u).isnan()


def test_training_pulls_an_objects_proposals_together_and_away_from_background():
    x, y = leaf(torch.randn(12, 8)), torch.arange(12) % 4 - 1
    optimizer = torch.optim.Adam([x], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        contrastive_proposals(x, y, torch.ones(12)).backward()
        optimizer.step()
    z = torch.nn.functional.normalize(x.detach(), dim=1)
    same = (y[:, None] == y) & (y >= 0)
    assert (z @ z.T)[same].min() > (z @ z.T)[(y >= 0)[:, None] & ~same].max() + 0.3


# -- features -------------------------------------------------------------------------------------


def pyramid(batch=3, width=5, side=256):
    return [torch.randn(batch, width, side // s, side // s) for s in STRIDES]


def boxes_of_all_sizes(rows=40, side=256):
    g = torch.Generator().manual_seed(1)
    size = torch.logspace(0.7, 2.39, rows)[:, None] * (0.8 + 0.4 * torch.rand(rows, 2, generator=g))
    low = (side - size).clamp(min=0) * torch.rand(rows, 2, generator=g)
    return torch.cat((low, low + size), dim=1)


def read_by_hand(values, box, stride, points):
    """Mean of bilinear samples at the middles of a regular grid, cell centres at half integers."""
    x1, y1, x2, y2 = (c / stride - 0.5 for c in box.double().tolist())
    total = torch.zeros(values.shape[0], dtype=torch.float64)
    height, width = values.shape[1:]
    for i in range(points):
        for j in range(points):
            y, x = y1 + (i + 0.5) * (y2 - y1) / points, x1 + (j + 0.5) * (x2 - x1) / points
            y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
            top, left = min(int(y), height - 2), min(int(x), width - 2)
            b, r = y - top, x - left
            total += (1 - b) * (1 - r) * values[:, top, left] + b * r * values[:, top + 1, left + 1]
            total += (1 - b) * r * values[:, top, left + 1] + b * (1 - r) * values[:, top + 1, left]
    return total / points**2


def test_features_are_the_mean_of_bilinear_samples_on_the_level_of_the_box():
    maps, boxes = pyramid(), boxes_of_all_sizes(12)
    image = torch.arange(12) % 3
    found = roi_features(maps, boxes, image, strides=STRIDES, output=3)
    for row, box in enumerate(boxes):
        side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
        k = min(max(math.floor(4 + math.log2(side / 224)), 2), 5)  # FPN's equation 1
        expected = read_by_hand(maps[k - 2][image[row]].double(), box, 2**k, 6)
        expected = expected / expected.norm()
        torch.testing.assert_close(found[row].double(), expected, rtol=1e-3, atol=1e-4)
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    assert sides.min() < 56 < 112 < sides.max()  # three levels at least have been read


def test_features_are_those_of_torchvisions_multi_scale_pooling():
    maps, boxes, image = pyramid(), boxes_of_all_sizes(), torch.arange(40) % 3
    pool = MultiScaleRoIAlign([str(s) for s in STRIDES], 7, 2, canonical_scale=224)
    rows = [torch.nonzero(image == b)[:, 0] for b in range(3)]
    named = {str(s): m for s, m in zip(STRIDES, maps, strict=True)}
    pooled = pool(named, [boxes[r] for r in rows], [(256, 256)] * 3).mean((2, 3))
    found = roi_features(maps, boxes, image, strides=STRIDES)
    # Theirs is not aligned to the half pixel: as ours for boxes moved by half a cell of the level.
    side = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
    level = torch.floor(4 + torch.log2(side / 224)).clamp(2, 5)
    moved = roi_features(maps, boxes + (2**level / 2)[:, None], image, strides=STRIDES)
    expected = torch.nn.functional.normalize(pooled, dim=1)
    inside = (boxes[:, 2:] + 2 ** level[:, None] < 256).all(1)[torch.cat(rows)]
    assert inside.sum() > 20
    torch.testing.assert_close(moved[torch.cat(rows)][inside], expected[inside], rtol=0, atol=2e-3)
    assert (found - moved).abs().max() > 0.1


def test_every_box_is_read_from_its_own_image():
    maps, boxes = pyramid(batch=2), boxes_of_all_sizes(10)
    image = torch.tensor([0, 1] * 5)
    found = roi_features(maps, boxes, image, strides=STRIDES)
    swapped = roi_features([m.flip(0) for m in maps], boxes, image, strides=STRIDES)
    other = roi_features(maps, boxes, 1 - image, strides=STRIDES)
    assert torch.equal(swapped, other)
    assert ((found - other).abs().amax(1) > 0.05).all()
    maps = [leaf(m) for m in maps]
    roi_features(maps, boxes[1:2], image[1:2], strides=STRIDES).sum().backward()
    assert all((m.grad[0] == 0).all() for m in maps)
    assert any((m.grad[1] != 0).any() for m in maps)


def test_features_have_length_1_and_the_order_of_boxes_does_not_matter():
    maps, boxes, image = pyramid(), boxes_of_all_sizes(), torch.arange(40) % 3
    found, order = roi_features(maps, boxes, image, strides=STRIDES), torch.randperm(40)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(40), rtol=0, atol=1e-3)
    again = roi_features(maps, boxes[order], image[order], strides=STRIDES)
    assert torch.equal(again, found[order])


def test_the_gradient_reaches_the_maps_as_finite_differences_say():
    maps = [torch.randn(2, 3, 6, 6), torch.randn(2, 3, 3, 3)]
    boxes = torch.tensor([[3.0, 4.0, 18.0, 15.0], [1.0, 1.0, 22.0, 20.0]])
    towards = torch.randn(2, 3)

    def read(first):
        found = roi_features(
            [first, maps[1]], boxes, torch.tensor([1, 0]), strides=(4, 8), output=2
        )
        return (found * towards).sum()

    first, along = leaf(maps[0]), torch.randn_like(maps[0])
    read(first).backward()
    slope = (read(maps[0] + 1e-2 * along) - read(maps[0] - 1e-2 * along)) / 2e-2
    assert (first.grad * along).sum().item() == pytest.approx(slope.item(), rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_and_autocast_are_read_in_float32(dtype):
    maps, boxes, image = pyramid(), boxes_of_all_sizes(), torch.arange(40) % 3
    maps = [m.to(dtype) for m in maps]
    expected = roi_features([m.float() for m in maps], boxes, image, strides=STRIDES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = roi_features(maps, boxes, image, strides=STRIDES)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


@moderate
@given(boxes=tensors(6, 4))
def test_every_finite_box_gives_finite_features_and_gradients(boxes):
    maps = [leaf(m) for m in pyramid(batch=2, width=2, side=64)]
    found = roi_features(maps, boxes, torch.tensor([0, 1] * 3), strides=STRIDES)
    assert_finite(found, *maps)


def test_a_box_that_is_not_finite_shows_and_spoils_no_other():
    maps, boxes, image = pyramid(), boxes_of_all_sizes(), torch.arange(40) % 3
    expected = roi_features(maps, boxes, image, strides=STRIDES)
    boxes[3, 0], boxes[5, 2] = math.nan, math.inf
    found = roi_features(maps, boxes, image, strides=STRIDES)
    bad = torch.zeros(40, dtype=torch.bool)
    bad[[3, 5]] = True
    assert found[bad].isnan().all()
    assert torch.equal(found[~bad], expected[~bad])


def test_no_boxes_give_no_rows_joined_to_the_maps():
    maps = [leaf(m) for m in pyramid()]
    none = torch.zeros(0, dtype=torch.long)
    found = roi_features(maps, torch.zeros(0, 4), none, strides=STRIDES)
    assert found.shape == (0, 5)
    loss = contrastive_proposals(found, none, torch.zeros(0))
    assert_finite(loss, *maps)


def test_nothing_is_read_from_the_device_from_boxes_to_loss():
    with FakeTensorMode(allow_non_fake_inputs=True):
        maps = [torch.empty(2, 8, 64 // s, 64 // s, requires_grad=True) for s in STRIDES]
        drawn = jittered_boxes(torch.empty(3, 4), 5)
        image = torch.zeros(3, dtype=torch.long)[drawn.source]
        found = roi_features(maps, drawn.boxes, image, strides=STRIDES)
        contrastive_proposals(found, image, drawn.ious).backward()
        assert maps[0].grad.shape == maps[0].shape


@pytest.mark.parametrize("image", [[0, 3], [0, -1]])
def test_an_image_that_is_not_there_is_refused(image):
    with pytest.raises(IndexError, match="index out of range"):
        roi_features(pyramid(), boxes_of_all_sizes(2), torch.tensor(image), strides=STRIDES)


# -- proposals ------------------------------------------------------------------------------------


def test_proposals_know_their_box_and_their_overlap():
    boxes = boxes_of_all_sizes(8)
    drawn = jittered_boxes(boxes, 200)
    assert drawn.boxes.shape == (1600, 4)
    assert drawn.source.tolist() == [row for row in range(8) for _ in range(200)]
    exact = box_iou(drawn.boxes.double(), boxes.double())[torch.arange(1600), drawn.source]
    torch.testing.assert_close(drawn.ious.double(), exact, rtol=1e-3, atol=1e-4)
    assert 0.3 < drawn.ious.min() < 0.5
    assert drawn.ious.max() > 0.99
    assert (drawn.ious > 0.5).float().mean() == pytest.approx(0.95, abs=0.02)
    middle = (drawn.boxes[:, :2] + drawn.boxes[:, 2:]) / 2
    true = ((boxes[:, :2] + boxes[:, 2:]) / 2)[drawn.source]
    shift = (middle - true) / (boxes[:, 2:] - boxes[:, :2])[drawn.source]
    assert shift.abs().max() <= 0.3 + 1e-4
    assert shift.mean(0).abs().max() < 0.02


def test_proposals_depend_on_the_generator_alone():
    boxes = boxes_of_all_sizes(4)
    torch.manual_seed(5)
    first = jittered_boxes(boxes, 6).boxes
    assert not torch.equal(jittered_boxes(boxes, 6).boxes, first)
    torch.manual_seed(5)
    assert torch.equal(jittered_boxes(boxes, 6).boxes, first)
    again = jittered_boxes(boxes, 6, generator=torch.Generator().manual_seed(5)).boxes
    assert torch.equal(again, first)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: contrastive_proposals(torch.zeros(3, 8), torch.zeros(3), torch.zeros(2)),
            UsageError,
            r"features of shape \(3, 8\), labels of shape \(3,\) and ious of shape \(2,\); "
            "expected R D, R and R",
        ),
        (
            lambda: contrastive_proposals(
                torch.zeros(2, 8), torch.zeros(2), torch.zeros(2), temperature=torch.ones(2)
            ),
            UsageError,
            r"temperature of shape \(2,\); expected a number or a tensor without axes",
        ),
        (
            lambda: contrastive_proposals(
                torch.zeros(2, 8), torch.zeros(2), torch.zeros(2), temperature=0.0
            ),
            ConfigError,
            "temperature 0.0; expected a finite number above 0",
        ),
        (
            lambda: contrastive_proposals(
                torch.zeros(2, 8), torch.zeros(2), torch.zeros(2), least_iou=1.5
            ),
            ConfigError,
            "least_iou 1.5; an overlap is from 0 to 1",
        ),
        (
            lambda: contrastive_proposals(
                torch.zeros(2, 8), torch.zeros(2), torch.zeros(2), reweight="square"
            ),
            ConfigError,
            "reweight 'square'; expected one of constant, linear, exponential",
        ),
        (
            lambda: roi_features(pyramid(), torch.zeros(2, 4), torch.zeros(2), strides=(4, 8)),
            UsageError,
            r"strides \[4, 8\]; expected B D h w per level.*and a stride for each",
        ),
        (
            lambda: roi_features(pyramid(), torch.zeros(2, 5), torch.zeros(2), strides=STRIDES),
            UsageError,
            r"boxes of shape \(2, 5\) and image of shape \(2,\); expected M 4 and M",
        ),
        (
            lambda: roi_features(
                pyramid(), torch.zeros(2, 4), torch.zeros(2), strides=(8, 4, 16, 32)
            ),
            ConfigError,
            r"strides \[8, 4, 16, 32\]; expected ascending ones above 0",
        ),
        (
            lambda: roi_features(
                pyramid(), torch.zeros(2, 4), torch.zeros(2), strides=STRIDES, output=0
            ),
            ConfigError,
            "output 0; at least 1 bin",
        ),
        (lambda: jittered_boxes(torch.zeros(4), 2), UsageError, r"shape \(4,\); expected M 4"),
        (lambda: jittered_boxes(torch.zeros(1, 4), 0), ConfigError, "count 0; at least 1"),
        (
            lambda: jittered_boxes(torch.zeros(1, 4), 1, reach=1.0),
            ConfigError,
            "reach 1.0; expected a number between 0 and 1",
        ),
    ],
)
def test_what_cannot_work_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
