"""What holds for every loss: float32 inside, no read of the device, no batch too small."""

import pytest
import torch
from loss_cases import EVERY_LOSS, assert_finite, leaf
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from surefoot.losses import (
    WiseIoU,
    distribution_focal_loss,
    focal_loss,
    iou_loss,
    prototype_contrastive,
    rescale_above,
    supervised_contrastive,
)

every_loss = pytest.mark.parametrize("name", EVERY_LOSS)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_inputs_are_made_float32_before_any_arithmetic(name, dtype):
    function, make = EVERY_LOSS[name]
    given = [x.to(dtype) for x in make()]
    expected = function(*(x.float() for x in given))
    loss = function(*given)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(name, dtype):
    function, make = EVERY_LOSS[name]
    given = [leaf(x) for x in make()]
    expected = function(*given)
    expected_grads = torch.autograd.grad(expected.sum(), given)
    with torch.autocast("cpu", dtype=dtype):
        assert (given[0].flatten(1) @ given[0].flatten(1).T).dtype == dtype
        loss = function(*given)
    assert torch.equal(loss, expected)
    for grad, wanted in zip(torch.autograd.grad(loss.sum(), given), expected_grads, strict=True):
        assert torch.equal(grad, wanted)


@every_loss
def test_nothing_is_read_from_the_device(name):
    function, make = EVERY_LOSS[name]
    with FakeTensorMode(allow_non_fake_inputs=True):
        given = [torch.empty_like(x, requires_grad=True) for x in make()]
        loss = rescale_above(function(*given), 2.0)
        loss.sum().backward()
        assert given[0].grad.shape == given[0].shape
        with pytest.raises(DataDependentOutputException):
            loss.sum().item()


@every_loss
def test_nan_is_not_hidden(name):
    function, make = EVERY_LOSS[name]
    given = make()
    given[0][1] = float("nan")
    assert function(*given).isnan().any()


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: iou_loss(x.reshape(0, 4), torch.zeros(0, 4)),
        lambda x: WiseIoU()(x.reshape(0, 4), torch.zeros(0, 4)),
        lambda x: distribution_focal_loss(x.reshape(0, 4, 16), torch.zeros(0, 4)),
        lambda x: focal_loss(x, torch.zeros(0)),
        lambda x: supervised_contrastive(x.reshape(0, 8), torch.zeros(0, dtype=torch.long)),
        lambda x: prototype_contrastive(
            x.reshape(0, 8), torch.ones(2, 8), torch.zeros(0, dtype=torch.long)
        ),
    ],
    ids=["iou", "wise_iou", "dfl", "focal", "supcon", "prototype"],
)
def test_a_batch_without_rows_gives_a_zero_that_is_joined_to_the_model(loss):
    x = leaf(torch.zeros(0))
    total = loss(x).sum()
    assert total == 0
    assert_finite(total, x)
