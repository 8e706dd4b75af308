"""Supervised contrastive and prototype contrastive losses."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import assert_as_twin, assert_finite, dtypes, leaf, moderate, tensors
from pytorch_metric_learning.losses import SupConLoss

from oracles import losses as twins
from surefoot.errors import ConfigError, UsageError
from surefoot.losses import prototype_contrastive, supervised_contrastive

labels = st.lists(st.integers(0, 2), min_size=5, max_size=5).map(torch.tensor)
temperatures = st.sampled_from([0.07, 0.1, 1.0])


@moderate
@given(x=tensors(5, 3), y=labels, dtype=dtypes, temperature=temperatures)
def test_every_finite_embedding_has_a_finite_loss_and_gradient(x, y, dtype, temperature):
    x = leaf(x, dtype)
    loss = supervised_contrastive(x, y, temperature=temperature)
    assert_finite(loss, x)
    assert loss >= 0


@moderate
@given(x=tensors(5, 3), p=tensors(3, 3), y=labels, dtype=dtypes, temperature=temperatures)
def test_every_finite_prototype_has_a_finite_loss_and_gradient(x, p, y, dtype, temperature):
    x, p = leaf(x, dtype), leaf(p, dtype)
    loss = prototype_contrastive(x, p, y, temperature=temperature)
    assert_finite(loss, x, p)
    assert loss.min() >= 0


def test_value_and_gradient_are_those_of_the_float64_twin():
    y = torch.tensor([0, 1, 0, 2, 1, 0, 3])  # 2 and 3 have no positives
    assert_as_twin(
        lambda x: supervised_contrastive(x, y, temperature=0.2),
        lambda x: twins.supervised_contrastive(x, y, temperature=0.2),
        torch.randn(7, 16),
    )
    y = torch.tensor([0, 1, 0, 2, 1, 0, 2])
    assert_as_twin(
        lambda x, p: prototype_contrastive(x, p, y, temperature=0.2),
        lambda x, p: twins.prototype_contrastive(x, p, y, temperature=0.2),
        torch.randn(7, 16),
        torch.randn(3, 16),
    )


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_it_is_the_supcon_loss_of_pytorch_metric_learning(temperature):
    x, y = torch.randn(40, 32), torch.arange(40) // 3  # the last label occurs once
    expected = SupConLoss(temperature=temperature)(x, y)
    loss = supervised_contrastive(x, y, temperature=temperature)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)


def test_random_initialisation_gives_the_logarithm_of_the_number_of_choices():
    y = torch.arange(64) % 16
    assert supervised_contrastive(torch.ones(64, 8), y).item() == pytest.approx(math.log(63))
    x, p = torch.randn(64, 4096), torch.randn(16, 4096)
    assert supervised_contrastive(x, y).item() == pytest.approx(math.log(63), rel=0.02)
    assert prototype_contrastive(x, p, y).mean().item() == pytest.approx(math.log(16), rel=0.02)
    same = prototype_contrastive(x, torch.ones(16, 4096), y)
    torch.testing.assert_close(same, torch.full((64,), math.log(16)))


def test_a_row_without_positives_gives_nothing_but_stays_a_negative():
    x, y = leaf(torch.randn(5, 8)), torch.tensor([0, 0, 1, 1, 2])
    loss = supervised_contrastive(x, y)
    rows = 4  # of 5: each of the others compared with the remaining 4
    z = torch.nn.functional.normalize(x.detach().double(), dim=1)
    s = (z @ z.T / 0.1).fill_diagonal_(-math.inf).log_softmax(1)
    assert loss.item() == pytest.approx(
        -(s[0, 1] + s[1, 0] + s[2, 3] + s[3, 2]).item() / rows, rel=1e-4
    )
    loss.backward()
    assert x.grad[4].abs().max() > 0


@pytest.mark.parametrize("rows", [1, 4])
def test_no_label_twice_gives_0_joined_to_the_model(rows):
    x = leaf(torch.randn(rows, 8))
    loss = supervised_contrastive(x, torch.arange(rows))
    assert loss == 0
    with torch.autograd.set_detect_anomaly(True):  # no NaN on the way back either
        assert_finite(loss, x)
    assert (x.grad == 0).all()


def test_lengths_do_not_matter():
    x, p, y = torch.randn(6, 8), torch.randn(3, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    scale = torch.tensor([[0.5], [1.0], [2.0], [10.0], [100.0], [1e4]])
    torch.testing.assert_close(supervised_contrastive(x * scale, y), supervised_contrastive(x, y))
    torch.testing.assert_close(
        prototype_contrastive(x * scale, 7 * p, y), prototype_contrastive(x, p, y)
    )


def test_the_order_of_rows_and_the_names_of_labels_do_not_matter():
    x, y, order = torch.randn(12, 8), torch.arange(12) % 4, torch.randperm(12)
    expected = supervised_contrastive(x, y)
    torch.testing.assert_close(supervised_contrastive(x[order], 100 - y[order]), expected)


def test_the_temperature_can_be_learnt():
    temperature = leaf(torch.tensor(0.1))
    x, p, y = torch.randn(6, 8), torch.randn(3, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    prototype_contrastive(x, p, y, temperature=temperature).mean().backward()
    step = 1e-3
    higher, lower = (
        prototype_contrastive(x, p, y, temperature=0.1 + d).double().mean() for d in (step, -step)
    )
    assert temperature.grad.item() == pytest.approx((higher - lower).item() / (2 * step), rel=0.01)
    temperature.grad = None
    supervised_contrastive(x, y, temperature=temperature).backward()
    assert temperature.grad.abs() > 0


def test_training_pulls_labels_together():
    x, y = leaf(torch.randn(12, 8)), torch.arange(12) % 3
    optimizer = torch.optim.Adam([x], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        supervised_contrastive(x, y).backward()
        optimizer.step()
    z = torch.nn.functional.normalize(x.detach(), dim=1)
    same = y[:, None] == y
    assert (z @ z.T)[same].min() > 0.5
    assert (z @ z.T)[~same].max() < 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: supervised_contrastive(torch.zeros(3, 2, 8), torch.zeros(3)),
            r"supervised_contrastive: embeddings of shape \(3, 2, 8\).*expected M D and M",
        ),
        (
            lambda: prototype_contrastive(torch.zeros(3, 8), torch.zeros(2, 8), torch.zeros(2)),
            r"labels of shape \(2,\); expected M D and M",
        ),
        (
            lambda: prototype_contrastive(torch.zeros(3, 8), torch.zeros(2, 4), torch.zeros(3)),
            r"prototypes of shape \(2, 4\) and embeddings of shape \(3, 8\); expected N D and M D",
        ),
        (
            lambda: prototype_contrastive(torch.zeros(3, 8), torch.zeros(0, 8), torch.zeros(3)),
            "with N at least 1",
        ),
        (
            lambda: supervised_contrastive(
                torch.zeros(3, 8), torch.zeros(3), temperature=torch.ones(2)
            ),
            r"temperature of shape \(2,\); expected a number or a tensor without axes",
        ),
    ],
)
def test_shapes_that_do_not_fit_are_refused(call, message):
    with pytest.raises(UsageError, match=message):
        call()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_above_0_is_refused(temperature):
    with pytest.raises(ConfigError, match=f"temperature {temperature}; expected a finite number"):
        supervised_contrastive(torch.zeros(2, 2), torch.zeros(2), temperature=temperature)
