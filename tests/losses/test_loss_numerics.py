"""The arithmetic below the losses: values, gradients at the bad points, float32 islands."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import assert_finite, dtypes, gradients, leaf, moderate, tensors

from surefoot.errors import ConfigError
from surefoot.losses import fp32_island, rescale_above, safe_divide, safe_norm, unit_vectors


@fp32_island
def gram(x, *, other=None, name="x", rows=None):
    """Docstring of the function."""
    return x @ (x if other is None else other).T


def test_an_island_computes_in_float32_under_autocast_and_returns_gradients_in_kind():
    x = leaf(torch.full((2, 2), 300.0), torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = gram(x)
    assert value.dtype == torch.float32
    assert (value == 180_000).all()
    value.sum().backward()
    assert x.grad.dtype == torch.float16


def test_an_island_upcasts_named_arguments_and_leaves_the_rest_as_it_is():
    seen = {}

    @fp32_island
    def look(x, count, *, mask, scale, name):
        seen.update(x=x.dtype, count=count, mask=mask.dtype, scale=scale.dtype, name=name)

    ones = torch.ones(2)
    look(ones.double(), 3, mask=ones.bool(), scale=ones.half(), name="x")
    assert seen == {
        "x": torch.float32,
        "count": 3,
        "mask": torch.bool,
        "scale": torch.float32,
        "name": "x",
    }


def test_an_island_keeps_the_name_and_the_words_of_its_function():
    assert gram.__name__ == "gram"
    assert gram.__doc__ == "Docstring of the function."


def test_autocast_is_on_again_after_an_island_that_raised():
    @fp32_island
    def fail(x):
        raise ValueError("inside")

    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.raises(ValueError, match="inside"):
            fail(torch.ones(1))
        assert torch.is_autocast_enabled("cpu")


@moderate
@given(x=tensors(3, 4))
def test_the_norm_and_its_gradient_are_right_everywhere(x):
    value, (grad,) = gradients(safe_norm, x)
    expected = x.double().norm(dim=-1)
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-37)
    direction = torch.where(
        expected[:, None] > 0, x.double() / expected.clamp(min=1e-300)[:, None], 0.0
    )
    normal = expected > 1e-30  # below, float32 has no digits left
    torch.testing.assert_close(grad.double()[normal], direction[normal], rtol=1e-5, atol=1e-6)
    assert grad.isfinite().all()


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_the_norm_neither_overflows_nor_underflows(size):
    value, (grad,) = gradients(safe_norm, torch.tensor([3.0, 4.0]) * size)
    assert value.item() == pytest.approx(5 * size)
    assert grad.tolist() == pytest.approx([0.6, 0.8])


def test_the_norm_keeps_its_axis_when_asked_and_takes_any():
    x = torch.randn(2, 3, 4)
    assert safe_norm(x, keepdim=True).shape == (2, 3, 1)
    torch.testing.assert_close(safe_norm(x, dim=1), x.norm(dim=1))
    assert safe_norm(torch.tensor([1.0, math.nan])).isnan()


def test_division_by_zero_is_zero_in_value_and_gradient():
    value, grads = gradients(safe_divide, torch.tensor([1.0, 3.0]), torch.tensor([0.0, 2.0]))
    assert value.tolist() == [0.0, 1.5]
    assert [g.tolist() for g in grads] == [[0.0, 0.5], [0.0, -0.75]]


def test_division_does_not_hide_nan():
    bad = torch.tensor([math.nan, 1.0])
    assert safe_divide(bad, torch.tensor([1.0, math.nan])).isnan().all()


@moderate
@given(x=tensors(3, 4), dtype=dtypes)
def test_unit_vectors_are_at_most_one_long_with_a_bounded_gradient(x, dtype):
    given_x = leaf(x, dtype)
    unit = unit_vectors(given_x.float())
    assert (unit.norm(dim=-1) <= 1 + 1e-6).all()
    long = x.norm(dim=-1) > 1
    torch.testing.assert_close(unit[long].norm(dim=-1), torch.ones(int(long.sum())))
    assert_finite(unit, given_x)
    assert given_x.grad.abs().max() <= 1e3


@moderate
@given(loss=tensors(4, elements=st.floats(0, 1e4)), limit=st.sampled_from([1e-3, 1.0, 12.0, 1e4]))
def test_a_rescaled_loss_is_bounded_and_keeps_the_direction_of_its_gradient(loss, limit):
    value, (grad,) = gradients(lambda x: rescale_above(x, limit), loss)
    assert (value <= limit * (1 + 1e-6)).all()
    below = loss <= limit
    assert torch.equal(value[below], loss[below])
    assert (grad[below] == 1).all()
    assert (grad > 0).all()
    torch.testing.assert_close(grad[~below], limit / loss[~below])


def test_rescaling_leaves_a_negative_loss_alone():
    value, (grad,) = gradients(lambda x: rescale_above(x, 1.0), torch.tensor([-5.0, 0.0]))
    assert value.tolist() == [-5.0, 0.0]
    assert grad.tolist() == [1.0, 1.0]


def test_rescaling_does_not_hide_what_is_not_finite():
    bounded = rescale_above(torch.tensor([math.inf, math.nan, 20.0, 0.0]), 10.0)
    assert bounded.isfinite().tolist() == [False, False, True, True]


@pytest.mark.parametrize("limit", [0.0, -1.0, math.nan, math.inf])
def test_a_limit_that_is_none_is_refused(limit):
    with pytest.raises(ConfigError, match=f"limit {limit}; expected a finite number above 0"):
        rescale_above(torch.ones(1), limit)
