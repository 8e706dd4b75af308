"""Distribution focal loss: a mean over sides, targets in strides."""

import math
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import assert_as_twin, assert_finite, dtypes, leaf, moderate, tensors

from oracles import losses as twins
from surefoot.errors import UsageError
from surefoot.losses import distribution_focal_loss


@pytest.mark.parametrize("bins", [2, 16, 17])
def test_random_initialisation_gives_ln_r_as_a_mean_over_sides(bins):
    target = torch.rand(50, 4) * (bins - 1)
    loss = distribution_focal_loss(torch.zeros(50, 4, bins), target)
    torch.testing.assert_close(loss, torch.full((50,), math.log(bins)))
    spread = distribution_focal_loss(0.01 * torch.randn(50, 4, bins), target)
    assert spread.mean().item() == pytest.approx(math.log(bins), rel=0.01)


@moderate
@given(logits=tensors(3, 4, 5), target=tensors(3, 4), dtype=dtypes)
def test_every_finite_input_has_a_finite_loss_and_gradient(logits, target, dtype):
    logits = leaf(logits, dtype)
    loss = distribution_focal_loss(logits, target.to(dtype))
    assert_finite(loss, logits)
    assert loss.min() >= 0
    assert logits.grad.abs().max() <= 1 / 12 + 1e-3  # mean over 3 rows of 4 sides


def test_value_and_gradient_are_those_of_the_float64_twin():
    target = torch.rand(20, 4) * 17 - 1  # on both ends outside what can be said
    assert_as_twin(
        lambda x: distribution_focal_loss(x, target),
        lambda x: twins.distribution_focal_loss(x, target.double()),
        3 * torch.randn(20, 4, 16),
    )


def test_it_is_ultralytics_loss():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # not of our making, raised while it is imported
        from ultralytics.utils.loss import DFLoss
    logits, target = torch.randn(40, 4, 16), torch.rand(40, 4) * 14.9
    expected = DFLoss(16)(logits.reshape(-1, 16), target.clone())
    torch.testing.assert_close(distribution_focal_loss(logits, target), expected[:, 0])


@pytest.mark.parametrize("outside", [-3.0, 15.0, 15.5, 1e9, math.inf])
def test_a_target_outside_the_range_is_read_as_the_nearest_end(outside):
    logits = leaf(torch.randn(1, 4, 16))
    loss = distribution_focal_loss(logits, torch.full((1, 4), outside))
    end = 0 if outside < 0 else 15
    expected = -logits.log_softmax(-1)[..., end].mean(-1)
    torch.testing.assert_close(loss, expected)
    loss.sum().backward()
    assert (logits.grad[..., end] < 0).all()


def test_a_nan_target_gives_nan_and_not_a_wrong_index():
    target = torch.tensor([[1.0, 2.0, float("nan"), 3.0], [1.0, 1.0, 1.0, 1.0]])
    loss = distribution_focal_loss(torch.zeros(2, 4, 16), target)
    assert loss.isnan().tolist() == [True, False]


@moderate
@given(y=st.floats(0, 15))
def test_the_least_value_is_the_entropy_of_the_target(y):
    share = y - math.floor(y)
    lower = min(math.floor(y), 14)
    weights = torch.zeros(16)
    weights[lower], weights[lower + 1] = 1 - (y - lower), y - lower
    best = weights.clamp(min=1e-30).log().expand(1, 4, 16)
    entropy = -sum(p * math.log(p) for p in (share, 1 - share) if p > 0)
    loss = distribution_focal_loss(best, torch.full((1, 4), y))
    assert loss.item() == pytest.approx(entropy, abs=1e-4)


def test_the_target_gets_no_gradient():
    target = leaf(torch.ones(2, 4))
    assert_finite(distribution_focal_loss(leaf(torch.zeros(2, 4, 8)), target))
    assert target.grad is None


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (
            (3, 4, 16),
            (3,),
            r"shape \(3, 4, 16\) and target of shape \(3,\); expected M 4 R and M 4",
        ),
        ((3, 64), (3, 4), r"shape \(3, 64\).*expected M 4 R and M 4"),
        ((3, 4, 1), (3, 4), "end in 1 bins; a distance lies between two of them"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(logits, target, message):
    with pytest.raises(UsageError, match=message):
        distribution_focal_loss(torch.zeros(logits), torch.zeros(target))
