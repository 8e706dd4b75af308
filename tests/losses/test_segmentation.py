"""Losses of masks: against slow twins, other people's code, and inputs that are hard on them."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from loss_cases import assert_finite, dtypes, gradients, leaf, moderate, tensors
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from transformers.loss.loss_for_object_detection import dice_loss as transformers_dice_loss

from surefoot.errors import ConfigError, UsageError
from surefoot.losses import (
    boundary_weights,
    dice_loss,
    edge_loss,
    outline,
    segmentation_terms,
    structure_loss,
    uncertainty_loss,
    uncertainty_ramp,
)

# From logits and a mask of one shape to a value per image.
LOSSES = {
    "structure": structure_loss,
    "dice": dice_loss,
    "edge": edge_loss,
    "uncertainty": lambda z, g: uncertainty_loss(z),
}
every_loss = pytest.mark.parametrize("name", LOSSES)
masks = tensors(2, 1, 6, 5, elements=st.sampled_from([0.0, 1.0])) | st.sampled_from(
    [torch.zeros(2, 1, 6, 5), torch.ones(2, 1, 6, 5)]
)


def blobs(images: int = 3, side: int = 40, seed: int = 0) -> torch.Tensor:
    """Smooth random shapes that touch the frame here and there; the last image has none."""
    noise = torch.randn(images, 1, side, side, generator=torch.Generator().manual_seed(seed))
    smooth = F.avg_pool2d(noise, 9, stride=1, padding=4)
    mask = (smooth > smooth.flatten(1).std(1).view(-1, 1, 1, 1) * 0.7).float()
    mask[-1] = 0
    return mask


def weights_twin(mask: np.ndarray, window: int) -> np.ndarray:
    """One image: the mean over what exists of the window, pixel by pixel."""
    weights, reach = np.empty(mask.shape), window // 2
    for y, x in np.ndindex(mask.shape):
        around = mask[max(0, y - reach) : y + reach + 1, max(0, x - reach) : x + reach + 1]
        weights[y, x] = 1 + 5 * abs(around.mean() - mask[y, x])
    return weights


def structure_twin(logits: torch.Tensor, mask: torch.Tensor, window: int) -> torch.Tensor:
    rows = []
    for z, g in zip(logits[:, 0], mask[:, 0].double(), strict=True):
        w = torch.from_numpy(weights_twin(g.numpy(), window))
        p = 1 / (1 + torch.exp(-z))
        bce = -(g * p.log() + (1 - g) * (1 - p).log())
        loss = (w * bce).sum() / w.sum()
        if g.any():
            both, total = (w * p * g).sum(), (w * (p + g)).sum()
            loss = loss + 1 - (both + 1) / (total - both + 1)
        rows.append(loss)
    return torch.stack(rows)


def edge_twin(logits: torch.Tensor, target: torch.Tensor, most: float) -> torch.Tensor:
    rows = []
    for z, g in zip(logits[:, 0], target[:, 0].double(), strict=True):
        p = 1 / (1 + torch.exp(-z))
        heavy = min(max(float((1 - g).sum()) / max(float(g.sum()), 1.0), 1.0), most)
        w = torch.where(g > 0, heavy, 1.0)
        loss = -(w * (g * p.log() + (1 - g) * (1 - p).log())).sum() / w.sum()
        if g.any():
            loss = loss + 1 - (2 * (p * g).sum() + 1) / (p.sum() + g.sum() + 1)
        rows.append(loss)
    return torch.stack(rows)


def assert_twin(function, twin, logits):
    value, (grad,) = gradients(function, logits)
    expected, (expected_grad,) = gradients(twin, logits.double())
    torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)
    scale = float(expected_grad.abs().max())
    torch.testing.assert_close(grad.double(), expected_grad, rtol=1e-4, atol=1e-5 * scale)


def test_structure_loss_is_its_float64_twin():
    mask = blobs()
    assert_twin(
        lambda z: structure_loss(z, mask),
        lambda z: structure_twin(z, mask, 5),
        3 * torch.randn(mask.shape),
    )


def test_edge_loss_is_its_float64_twin():
    mask = blobs(3, 80)
    target = outline(mask, (80, 80))
    assert 1 < float((target[0] == 0).sum() / target[0].sum()) < 10
    for most in (10.0, 2.0):
        assert_twin(
            lambda z, most=most: edge_loss(z, mask, most=most),
            lambda z, most=most: edge_twin(z, target, most),
            3 * torch.randn(target.shape),
        )


def test_uncertainty_is_its_float64_twin():
    def twin(z):
        p = 1 / (1 + torch.exp(-z))
        return (1 - (2 * p - 1).abs() ** 2).mean((1, 2, 3))

    assert_twin(uncertainty_loss, twin, 4 * torch.randn(3, 1, 8, 8))


@pytest.mark.parametrize("loss", [structure_loss, dice_loss, uncertainty_loss])
def test_gradients_are_those_of_finite_differences(loss):
    mask = blobs(2, 12)
    # Below the float32 island, so that a difference of 1e-6 means something.
    inside = loss.__wrapped__
    given = () if loss is uncertainty_loss else (mask.double(),)
    if loss is structure_loss:
        given = (*given, boundary_weights(mask).double())
    z = torch.randn(mask.shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: inside(z, *given), (z,))


def test_dice_is_that_of_transformers():
    mask, z = blobs()[:2], 3 * torch.randn(2, 1, 40, 40)
    ours, (grad,) = gradients(lambda z: dice_loss(z, mask).sum(), z)
    theirs, (their_grad,) = gradients(
        lambda z: transformers_dice_loss(z.flatten(1), mask.flatten(1), num_boxes=1), z
    )
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(grad, their_grad)


@pytest.mark.parametrize(("side", "window"), [(352, 31), (384, 33), (176, 17), (40, 5), (704, 61)])
def test_weights_are_those_of_scipys_box_filter(side, window):
    mask = blobs(2, side)
    g = mask[0, 0].numpy().astype(np.float64)
    total, count = (
        scipy.ndimage.uniform_filter(x, window, mode="constant") for x in (g, np.ones_like(g))
    )
    expected = torch.from_numpy(1 + 5 * np.abs(total / count - g))
    torch.testing.assert_close(
        boundary_weights(mask)[0, 0].double(), expected, rtol=1e-5, atol=1e-5
    )


def test_outline_is_scipys_dilation_without_erosion():
    mask = blobs(1 + 1, 48)
    g = mask[0, 0].numpy().astype(bool)
    eight = np.ones((3, 3), bool)
    grown = scipy.ndimage.binary_dilation(g, eight)
    shrunk = scipy.ndimage.binary_erosion(g, eight, border_value=1)
    expected = torch.from_numpy((grown & ~shrunk).astype(np.float32))
    assert torch.equal(outline(mask, (48, 48))[0, 0], expected)
    cells = expected.view(12, 4, 12, 4).amax((1, 3))
    assert torch.equal(outline(mask, (12, 12))[0, 0], cells)


@moderate
@given(logits=tensors(2, 1, 6, 5), mask=masks, dtype=dtypes)
def test_every_finite_logit_has_a_finite_loss_and_gradient(logits, mask, dtype):
    for function in LOSSES.values():
        z = leaf(logits, dtype)
        value = function(z, mask.to(dtype))
        assert value.shape == (2,)
        assert value.min() >= 0
        assert_finite(value, z)


@moderate
@given(logits=tensors(2, 1, 6, 5), mask=masks)
def test_overlap_and_uncertainty_are_shares(logits, mask):
    assert dice_loss(logits, mask).max() <= 1
    assert uncertainty_loss(logits).max() <= 1


@moderate
@given(logits=tensors(2, 1, 6, 5), mask=masks)
def test_losses_do_not_mind_a_mirror(logits, mask):
    for function in LOSSES.values():
        for axis in (2, 3):
            torch.testing.assert_close(
                function(logits.flip(axis), mask.flip(axis)),
                function(logits, mask),
                rtol=1e-4,
                atol=1e-5,
            )


@pytest.mark.parametrize("far", [30.0, 200.0, 1e4])
def test_the_worst_pixel_keeps_its_gradient_however_wrong(far):
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 1:3, 1:3] = 1
    z = leaf(far * (1 - 2 * mask))
    structure_loss(z, mask).sum().backward()
    w = boundary_weights(mask)
    torch.testing.assert_close(z.grad, (1 - 2 * mask) * w / w.sum())


def test_a_perfect_prediction_costs_next_to_nothing():
    mask = blobs()
    sure = 60 * mask - 30
    for name in ("structure", "dice", "uncertainty"):
        assert float(LOSSES[name](sure, mask).max()) < 1e-5, name
    assert float(edge_loss(60 * outline(mask, (40, 40)) - 30, mask).max()) < 1e-5


def test_a_wrong_prediction_costs_more_than_an_undecided_one():
    mask = blobs()[:2]
    for name in ("structure", "dice"):
        wrong, undecided = (LOSSES[name](z, mask) for z in (4 - 8 * mask, 0 * mask))
        assert (wrong > undecided).all(), name


def test_pixels_near_the_boundary_count_more_and_the_frame_is_none():
    mask = torch.zeros(1, 1, 352, 352)
    mask[..., :176, :] = 1
    w = boundary_weights(mask)
    assert float(w[0, 0, 0, 0]) == 1.0
    assert torch.equal(w[..., 175, :], w[..., 175, :1].expand(1, 1, 352))
    assert float(w[0, 0, 175, 0]) == pytest.approx(1 + 5 * 15 / 31)
    z = torch.zeros_like(mask)
    near, far = z.clone(), z.clone()
    near[..., 170:182, :], far[..., 20:32, :] = 3, 3
    bce_of = lambda z: structure_loss(-z * (2 * mask - 1), mask)  # noqa: E731
    assert float(bce_of(near)) > 1.5 * float(bce_of(far)) - 0.5 * float(bce_of(z))


def test_an_empty_mask_is_judged_by_cross_entropy_alone():
    empty, z = torch.zeros(2, 1, 16, 16), torch.randn(2, 1, 16, 16)
    value, (grad,) = gradients(lambda z: structure_loss(z, empty), z)
    bce = F.binary_cross_entropy_with_logits(z, empty, reduction="none").mean((1, 2, 3))
    torch.testing.assert_close(value, bce)
    torch.testing.assert_close(grad, z.sigmoid() / 256)
    value, (grad,) = gradients(lambda z: dice_loss(z, empty), z)
    assert torch.equal(value, torch.zeros(2))
    assert torch.equal(grad, torch.zeros_like(z))
    torch.testing.assert_close(edge_loss(z, empty), bce)


def test_an_image_does_not_change_what_its_neighbour_costs():
    mask = torch.cat((blobs(2, 16)[:1], torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16)))
    z = torch.randn(mask.shape)
    for name, function in LOSSES.items():
        alone = torch.cat([function(z[i : i + 1], mask[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(function(z, mask), alone, msg=name)


def test_weights_that_are_there_already_are_used():
    mask, z = blobs(), torch.randn(3, 1, 40, 40)
    same = structure_loss(z, mask, boundary_weights(mask))
    assert torch.equal(same, structure_loss(z, mask))
    flat = structure_loss(z, mask, torch.ones_like(mask))
    assert not torch.allclose(flat, same)


def test_yes_and_no_are_masks_as_well():
    mask, z = blobs(), torch.randn(3, 1, 40, 40)
    for function in LOSSES.values():
        assert torch.equal(function(z, mask > 0), function(z, mask))


def test_the_ramp_goes_from_nothing_to_one_and_stays():
    ramp = [uncertainty_ramp(t / 20) for t in range(21)]
    assert ramp == sorted(ramp)
    assert (ramp[0], ramp[10], ramp[20]) == pytest.approx((0, 0.5, 1))
    assert uncertainty_ramp(7.0) == 1
    assert uncertainty_ramp(-1.0) == 0


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_and_half_precision_change_nothing(name, dtype):
    z, mask = torch.randn(3, 1, 40, 40).to(dtype), blobs()
    expected, (grad,) = gradients(lambda z: LOSSES[name](z, mask), z.float())
    with torch.autocast("cpu", dtype=dtype):
        value, (half_grad,) = gradients(lambda z: LOSSES[name](z, mask), z)
    assert torch.equal(value, expected)
    assert half_grad.dtype == dtype
    assert torch.equal(half_grad, grad.to(dtype))


@every_loss
def test_nothing_is_read_from_the_device(name):
    with FakeTensorMode(allow_non_fake_inputs=True):
        z = torch.empty(2, 1, 16, 16, requires_grad=True)
        loss = LOSSES[name](z, torch.empty(2, 1, 16, 16)).sum()
        loss.backward()
        with pytest.raises(DataDependentOutputException):
            loss.item()


@every_loss
def test_nan_is_not_hidden(name):
    z = torch.randn(2, 1, 16, 16)
    z[0, 0, 3, 3] = math.nan
    mask = torch.zeros_like(z)
    mask[..., 4:9, 4:9] = 1
    assert LOSSES[name](z, mask).isnan().tolist() == [True, False]


@every_loss
def test_masks_get_no_gradient(name):
    z, mask = leaf(torch.randn(3, 1, 40, 40)), leaf(blobs())
    LOSSES[name](z, mask).sum().backward()
    assert mask.grad is None
    assert z.grad.abs().max() > 0


@pytest.mark.parametrize("function", [structure_loss, dice_loss])
def test_shapes_that_differ_are_refused(function):
    said = r"logits of shape \(2, 1, 8, 8\) and a mask of shape \(2, 8, 8\); expected B 1 H W"
    with pytest.raises(UsageError, match=said):
        function(torch.zeros(2, 1, 8, 8), torch.zeros(2, 8, 8))


def test_what_does_not_fit_is_refused():
    with pytest.raises(UsageError, match=r"grid of \(9, 8\); expected .* no finer"):
        edge_loss(torch.zeros(1, 1, 9, 8), torch.zeros(1, 1, 8, 8))
    with pytest.raises(UsageError, match=r"mask of shape \(8, 8\); expected B 1 H W"):
        boundary_weights(torch.zeros(8, 8))
    with pytest.raises(ConfigError, match=r"most 0.5; expected a finite number, at least 1"):
        edge_loss(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), most=0.5)


def output_of(truth: torch.Tensor, **changes: object) -> SimpleNamespace:
    batch, _, height, width = truth.shape
    deep = tuple(torch.randn(batch, 1, height // s, width // s) for s in (16, 8, 4))
    given = {
        "mask": torch.randn(truth.shape),
        "deep": deep,
        "edge": torch.randn(batch, 1, height // 4, width // 4),
        "auxiliary": {"balance": torch.tensor(1.5)},
    }
    return SimpleNamespace(**{**given, **changes})


def test_terms_are_the_losses_and_their_weights():
    mask = blobs(3, 64)
    output = output_of(mask)
    terms = segmentation_terms(output, mask, weights={"uncertainty": 0.25, "dice": 2.0, "focal": 3})
    assert terms.names == (
        "structure", "deep", "edge", "uncertainty", "dice", "focal", "balance",
    )  # fmt: skip
    for name, value in (
        ("structure", structure_loss(output.mask, mask)),
        ("edge", edge_loss(output.edge, mask)),
        ("uncertainty", uncertainty_loss(output.mask)),
        ("dice", dice_loss(output.mask, mask)),
    ):
        torch.testing.assert_close(terms.values[name], value.mean(), msg=name)
    wanted = {
        "structure": 1, "deep": 1, "edge": 0.5, "uncertainty": 0.25, "dice": 2, "focal": 3,
        "balance": 0.01,
    }  # fmt: skip
    assert {name: terms.weight(name) for name in terms.names} == wanted
    total = sum(wanted[n] * float(v) for n, v in terms.values.items())
    assert float(terms.total) == pytest.approx(total)


def test_finer_maps_on_the_way_count_more():
    mask = blobs(2, 64)[:1]
    w, g = (F.avg_pool2d(x, 4) for x in (boundary_weights(mask), mask))
    output = output_of(mask)
    terms = segmentation_terms(output, mask)
    expected = sum(
        share * structure_loss(F.interpolate(z, size=(16, 16), mode="bilinear"), g, w).mean()
        for share, z in zip((1 / 8, 1 / 4, 1 / 2), output.deep, strict=True)
    )
    torch.testing.assert_close(terms.values["deep"], expected)


def test_an_output_without_edge_and_auxiliary_has_no_such_terms():
    mask = blobs(2, 64)
    terms = segmentation_terms(output_of(mask, edge=None, auxiliary={}), mask)
    assert terms.names == ("structure", "deep", "uncertainty")
    assert float(terms.total) > 0


def test_every_logit_of_an_output_gets_gradient_and_no_other():
    mask = blobs(2, 64)
    output = output_of(mask)
    given = [output.mask, *output.deep, output.edge]
    for z in given:
        z.requires_grad_()
    segmentation_terms(output, mask).total.backward()
    assert all(z.grad.abs().sum() > 0 for z in given)


def test_terms_do_not_mind_half_precision_outputs():
    mask = blobs(2, 64)
    output = output_of(mask, auxiliary={})
    half = output_of(
        mask,
        mask=output.mask.half(),
        deep=tuple(z.half() for z in output.deep),
        edge=output.edge.half(),
        auxiliary={},
    )
    for name, value in segmentation_terms(half, mask).values.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(
            value, segmentation_terms(output, mask).values[name], rtol=2e-3, atol=2e-3
        )


def test_a_weight_of_no_term_is_refused():
    mask = blobs(2, 64)
    with pytest.raises(ConfigError, match=r"weights name \['iou'\]; the terms are \['balance'"):
        segmentation_terms(output_of(mask), mask, weights={"iou": 1.0})


def test_a_mask_of_another_size_is_refused():
    mask = blobs(2, 64)
    with pytest.raises(UsageError, match=r"segmentation_terms: logits of shape .*64, 64.*32, 32"):
        segmentation_terms(output_of(mask), mask[..., :32, :32])
