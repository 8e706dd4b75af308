"""Binary cross-entropy and focal loss with logits."""

import math

import pytest
import torch
import torchvision.ops as tv
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import assert_as_twin, assert_finite, dtypes, gradients, leaf, moderate, tensors

from oracles import losses as twins
from surefoot.errors import ConfigError, UsageError
from surefoot.losses import binary_cross_entropy, focal_loss

targets = tensors(12, elements=st.sampled_from([0.0, 1.0, 0.5, 1e-6]) | st.floats(0, 1))


@moderate
@given(
    logits=tensors(12),
    target=targets,
    dtype=dtypes,
    gamma=st.sampled_from([0.0, 0.3, 1.0, 2.0, 5.0]),
    alpha=st.sampled_from([None, 0.0, 0.25, 1.0]),
)
def test_every_finite_input_has_a_finite_loss_and_gradient(logits, target, dtype, gamma, alpha):
    for loss in (
        binary_cross_entropy,
        lambda x, t: focal_loss(x, t, gamma=gamma, alpha=alpha),
    ):
        x = leaf(logits, dtype)
        value = loss(x, target.to(dtype))
        assert_finite(value, x)
        assert value.min() >= 0


def test_cross_entropy_is_ln_2_at_random_initialisation():
    loss = binary_cross_entropy(torch.zeros(4), torch.tensor([0.0, 1.0, 0.0, 1.0]))
    torch.testing.assert_close(loss, torch.full((4,), math.log(2)))


@pytest.mark.parametrize(
    ("bias", "positive", "negative"), [(0.0, 0.0433, 0.130), (-math.log(99), 1.13, 7.5e-7)]
)
def test_focal_loss_is_what_the_docstring_says_at_random_initialisation(bias, positive, negative):
    loss = focal_loss(torch.full((2,), bias), torch.tensor([1.0, 0.0])).tolist()
    assert loss == pytest.approx([positive, negative], rel=0.01)


@pytest.mark.parametrize("far", [30.0, 200.0, 1e4])
def test_a_wrong_answer_keeps_its_full_gradient_however_wrong(far):
    x = torch.tensor([-far, far])
    for loss, size in ((binary_cross_entropy, 1.0), (lambda x, t: focal_loss(x, t, alpha=None), 1)):
        value, (grad,) = gradients(lambda x, loss=loss: loss(x, torch.tensor([1.0, 0.0])), x)
        assert value.tolist() == pytest.approx([far, far])
        assert grad.tolist() == pytest.approx([-size, size])


@pytest.mark.parametrize("gamma", [0.1, 0.5, 1.0, 2.0])
def test_a_right_answer_has_a_finite_gradient_however_right(gamma):
    x = torch.tensor([20.0, -20.0, 200.0, -200.0, 1e4, -1e4])
    t = (x > 0).float()
    value, (grad,) = gradients(lambda x: focal_loss(x, t, gamma=gamma), x)
    assert (value < 1e-8).all()
    assert (grad.abs() < 1e-8).all()  # false for NaN


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (1.5, None), (0.5, 0.75), (0.0, 0.25)])
def test_value_and_gradient_are_those_of_the_float64_twin(gamma, alpha):
    target = torch.cat((torch.rand(40), torch.zeros(40), torch.ones(40)))
    assert_as_twin(
        lambda x: focal_loss(x, target, gamma=gamma, alpha=alpha),
        lambda x: twins.focal_loss(x, target.double(), gamma=gamma, alpha=alpha),
        4 * torch.randn(120),
    )
    assert_as_twin(
        lambda x: binary_cross_entropy(x, target),
        lambda x: twins.binary_cross_entropy(x, target.double()),
        4 * torch.randn(120),
    )


@pytest.mark.parametrize(("alpha", "torchvision_alpha"), [(0.25, 0.25), (0.75, 0.75), (None, -1)])
def test_focal_loss_is_torchvisions(alpha, torchvision_alpha):
    x, t = 4 * torch.randn(8, 50), (torch.rand(8, 50) < 0.2).float()
    value, (grad,) = gradients(lambda x: focal_loss(x, t, alpha=alpha), x)
    expected, (expected_grad,) = gradients(
        lambda x: tv.sigmoid_focal_loss(x, t, alpha=torchvision_alpha), x
    )
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("loss", [binary_cross_entropy, focal_loss])
def test_yes_and_no_are_targets_as_well(loss):
    x, t = torch.randn(20), torch.rand(20) < 0.5
    assert torch.equal(loss(x, t), loss(x, t.float()))


def test_swapping_the_answers_swaps_the_sign_of_the_logit():
    x, t = torch.randn(20), torch.rand(20)
    torch.testing.assert_close(binary_cross_entropy(x, t), binary_cross_entropy(-x, 1 - t))
    torch.testing.assert_close(focal_loss(x, t, alpha=0.3), focal_loss(-x, 1 - t, alpha=0.7))


@pytest.mark.parametrize("loss", [binary_cross_entropy, focal_loss])
def test_targets_get_no_gradient(loss):
    x, t = leaf(torch.randn(20)), leaf(torch.rand(20))
    loss(x, t).sum().backward()
    assert t.grad is None
    assert x.grad.abs().min() > 0


@pytest.mark.parametrize("loss", [binary_cross_entropy, focal_loss])
def test_shapes_that_differ_are_refused(loss):
    with pytest.raises(UsageError, match=r"logits of shape \(3, 2\) and targets of shape \(3,\)"):
        loss(torch.zeros(3, 2), torch.zeros(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": -0.5}, "gamma -0.5; expected a finite number, at least 0"),
        ({"gamma": math.inf}, "gamma inf"),
        ({"alpha": 1.5}, r"alpha 1.5; expected a number in \[0, 1\], or None"),
    ],
)
def test_a_setting_outside_its_range_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        focal_loss(torch.zeros(1), torch.zeros(1), **settings)
