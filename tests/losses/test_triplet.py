"""Batch-hard triplet loss."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import assert_as_twin, assert_finite, dtypes, leaf, moderate, tensors
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.losses import TripletMarginLoss
from pytorch_metric_learning.miners import BatchHardMiner
from pytorch_metric_learning.reducers import MeanReducer

from surefoot.errors import ConfigError, UsageError
from surefoot.losses import batch_hard_triplet

labels = st.lists(st.integers(-1, 2), min_size=5, max_size=5).map(torch.tensor)
distances = st.sampled_from(["cosine", "euclidean"])
every_distance = pytest.mark.parametrize("distance", ["cosine", "euclidean"])
soft_or_not = pytest.mark.parametrize("soft", [False, True])


def twin(x, labels, *, margin=0.3, distance="cosine", soft=False):
    """Equation 5 of the paper, one anchor and one pair at a time."""
    y, rows = labels.tolist(), []

    def apart(a, b):
        if distance == "euclidean":
            return (x[a] - x[b]).square().sum().sqrt()
        return 1 - x[a] @ x[b] / (x[a] @ x[a]).sqrt() / (x[b] @ x[b]).sqrt()

    for a, label in enumerate(y):
        positives = [apart(a, p) for p in range(len(y)) if p != a and y[p] == label]
        negatives = [apart(a, n) for n in range(len(y)) if y[n] != label]
        if label < 0 or not positives or not negatives:
            continue
        behind = torch.stack(positives).max() - torch.stack(negatives).min()
        rows.append(torch.log1p(behind.exp()) if soft else torch.relu(margin + behind))
    return sum(rows) / len(rows)


@every_distance
@soft_or_not
def test_value_and_gradient_are_those_of_the_paper_written_as_loops(distance, soft):
    y = torch.tensor([0, 1, 0, 2, 1, 0, -1, -1, 3, 1])  # 2 and 3 have no positives
    how = {"margin": 0.7, "distance": distance, "soft": soft}
    assert_as_twin(
        lambda x: batch_hard_triplet(x, y, **how),
        lambda x: twin(x, y, **how),
        torch.randn(10, 16),
    )


@every_distance
@soft_or_not
def test_it_is_the_batch_hard_loss_of_pytorch_metric_learning(distance, soft):
    x, y = torch.randn(40, 32), torch.arange(40) // 3  # the last label occurs once
    far = CosineSimilarity() if distance == "cosine" else LpDistance(normalize_embeddings=False)
    margin = 0.0 if soft else 0.3  # theirs keeps the margin in the soft form
    theirs = TripletMarginLoss(margin, smooth_loss=soft, distance=far, reducer=MeanReducer())
    expected = theirs(x, y, BatchHardMiner(distance=far)(x, y))
    found = batch_hard_triplet(x, y, margin=0.3, distance=distance, soft=soft)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@every_distance
@soft_or_not
def test_the_gradient_is_that_of_finite_differences(distance, soft):
    y = torch.tensor([0, 1, 0, 1, -1, 0])
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    in_float64 = batch_hard_triplet.__wrapped__
    assert torch.autograd.gradcheck(
        lambda x: in_float64(x, y, margin=2.0, distance=distance, soft=soft), x
    )


@moderate
@given(x=tensors(5, 3), y=labels, dtype=dtypes, distance=distances, soft=st.booleans())
def test_every_finite_embedding_has_a_finite_loss_and_gradient(x, y, dtype, distance, soft):
    x = leaf(x, dtype)
    loss = batch_hard_triplet(x, y, distance=distance, soft=soft)
    assert_finite(loss, x)
    assert loss >= 0


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_euclidean_distances_of_extreme_size_find_the_same_pairs(size):
    x, y = torch.randn(12, 8), torch.arange(12) % 3
    expected = batch_hard_triplet(x, y, distance="euclidean", margin=0.0)
    found = batch_hard_triplet(x * size, y, distance="euclidean", margin=0.0)
    assert found.item() == pytest.approx(expected.item() * size, rel=1e-4)


def test_pairs_are_found_far_from_the_origin_as_near_it():
    x, y = torch.randn(30, 8), torch.arange(30) % 5
    expected = batch_hard_triplet(x, y, distance="euclidean", margin=5.0)
    found = batch_hard_triplet(x + 1000, y, distance="euclidean", margin=5.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


@every_distance
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_embeddings_lose_their_own_rounding_and_no_more(distance, dtype):
    x, y = torch.randn(12, 8).to(dtype), torch.arange(12) % 3
    found = batch_hard_triplet(x, y, distance=distance)
    assert found.dtype == torch.float32
    expected = twin(x.double(), y, distance=distance)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@every_distance
def test_the_order_of_rows_and_the_names_of_labels_do_not_matter(distance):
    x, y, order = torch.randn(20, 8), torch.arange(20) % 5 - 1, torch.randperm(20)
    renamed = torch.where(y < 0, -9, 100 - y)
    expected = batch_hard_triplet(x, y, distance=distance)
    found = batch_hard_triplet(x[order], renamed[order], distance=distance)
    torch.testing.assert_close(found, expected)


def test_background_is_a_negative_and_neither_anchor_nor_positive():
    x = leaf(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [-1.0, 0.0]]))
    loss = batch_hard_triplet(x, torch.tensor([0, 0, -1, -1]))
    # Anchors 0 and 1, both 1 from each other; the background of row 2 is 0.2 and 0.4 away.
    assert loss.item() == pytest.approx(((0.3 + 1 - 0.2) + (0.3 + 1 - 0.4)) / 2, rel=1e-5)
    loss.backward()
    assert (x.grad[3] == 0).all()
    assert (x.grad[2] != 0).any()


@pytest.mark.parametrize(
    "y",
    [[0, 1, 2], [0, 0, 0], [-1, -1, -1], [0, -1, -2], []],
    ids=["no positive", "no negative", "background", "one object", "no row"],
)
@every_distance
def test_without_an_anchor_it_is_0_joined_to_the_model(y, distance):
    x = leaf(torch.randn(len(y), 8))
    loss = batch_hard_triplet(x, torch.tensor(y, dtype=torch.long), distance=distance)
    assert loss == 0
    with torch.autograd.set_detect_anomaly(True):
        assert_finite(loss, x)
    assert (x.grad == 0).all()


@every_distance
def test_embeddings_that_coincide_give_the_margin_and_a_finite_gradient(distance):
    x, y = leaf(torch.ones(6, 4)), torch.arange(6) % 2
    loss = batch_hard_triplet(x, y, distance=distance)
    assert loss.item() == pytest.approx(0.3, abs=1e-5)
    assert_finite(loss, x)
    soft = batch_hard_triplet(x, y, distance=distance, soft=True)
    assert soft.item() == pytest.approx(math.log(2), abs=1e-5)


@every_distance
@pytest.mark.parametrize("row", range(6))
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_that_is_not_finite_is_never_hidden(distance, row, value):
    x, y = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, -1, 2])
    x[row, 1] = value
    assert batch_hard_triplet(x, y, distance=distance).isnan()


def test_training_leaves_the_margin_between_labels():
    x, y = leaf(torch.randn(12, 8)), torch.arange(12) % 4 - 1
    optimizer = torch.optim.Adam([x], lr=0.05)
    for _ in range(200):
        optimizer.zero_grad()
        loss = batch_hard_triplet(x, y)
        loss.backward()
        optimizer.step()
    assert loss < 0.01


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: batch_hard_triplet(torch.zeros(3, 8), torch.zeros(2)),
            UsageError,
            r"embeddings of shape \(3, 8\) and labels of shape \(2,\); expected R D and R",
        ),
        (
            lambda: batch_hard_triplet(torch.zeros(2, 8), torch.zeros(2), margin=-0.1),
            ConfigError,
            "margin -0.1; expected a finite number, at least 0",
        ),
        (
            lambda: batch_hard_triplet(torch.zeros(2, 8), torch.zeros(2), distance="manhattan"),
            ConfigError,
            "distance 'manhattan'; expected one of cosine, euclidean",
        ),
    ],
)
def test_what_cannot_work_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
