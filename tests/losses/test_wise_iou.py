"""Wise-IoU: the three versions under the paper's names, and the running mean."""

import math

import pytest
import torch
from loss_cases import assert_as_twin, ordinary_boxes

from oracles import losses as twins
from surefoot.errors import ConfigError
from surefoot.losses import WiseIoU, box_iou_aligned

PRED, TARGET = ordinary_boxes(30, 1), ordinary_boxes(30, 2)
INVERTED = torch.tensor([[150.0, 130.5, 90.0, 95.0]]), torch.tensor([[100.0, 100.0, 140.0, 120.0]])


def focus(version, beta, **settings):
    """r of a version at outlier degrees beta, read off the loss of one pair of boxes."""
    loss = WiseIoU(version, **settings).eval()
    plain = WiseIoU(1).eval()
    pred, target = torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([[0.0, 0.0, 20.0, 10.0]])
    quality = 1 - box_iou_aligned(pred, target)
    found = []
    for value in beta:
        loss.mean_loss.copy_(quality[0] / value)
        found.append((loss(pred, target) / plain(pred, target)).item())
    return found


@pytest.mark.parametrize("version", [1, 2, 3])
def test_value_and_gradient_are_those_of_the_float64_twin(version):
    pred, target = torch.cat((PRED, INVERTED[0])), torch.cat((TARGET, INVERTED[1]))
    loss = WiseIoU(version).eval()
    loss.mean_loss.fill_(0.4)
    assert_as_twin(loss, lambda p, t: twins.wise_iou(p, t, version, mean=0.4), pred, target)


def test_version_2_is_monotonic_and_version_3_is_not():
    beta = [0.25, 0.5, 1.0, 1.56, 3.0, 6.0, 12.0]
    second, third = focus(2, beta), focus(3, beta)
    assert second == sorted(second)
    assert second == pytest.approx([b**0.5 for b in beta], rel=1e-4)
    assert third[:4] == sorted(third[:4])
    assert third[3:] == sorted(third[3:], reverse=True)
    assert max(third) == pytest.approx(1.311, abs=1e-3)


def test_version_3_peaks_and_keeps_its_weight_where_the_docstring_says():
    alpha, delta = 1.6, 2.0
    peak = 1 / math.log(alpha)
    low, top, high, kept = focus(3, [peak - 0.1, peak, peak + 0.1, delta], alpha=alpha, delta=delta)
    assert top > low
    assert top > high
    assert kept == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("version", "least", "most"), [(1, 1, math.e), (2, 1, math.e), (3, 1.203, 3.272)]
)
def test_boxes_apart_give_the_documented_value_at_random_initialisation(version, least, most):
    pred = torch.tensor([[0.0, 0.0, 30.0, 30.0], [0.0, 0.0, 2.0, 2.0]])
    target = torch.tensor([[31.0, 0.0, 61.0, 30.0], [600.0, 600.0, 602.0, 602.0]])
    near, far = WiseIoU(version)(pred, target).tolist()
    assert least < near < far <= most
    assert far == pytest.approx(most, rel=0.01)


def test_the_running_mean_follows_the_batches_of_training_only():
    loss, expected = WiseIoU(momentum=0.1), 1.0
    batch_mean = (1 - box_iou_aligned(PRED, TARGET)).mean().item()
    for _ in range(3):
        loss(PRED, TARGET)
        expected = 0.9 * expected + 0.1 * batch_mean
    assert loss.mean_loss.item() == pytest.approx(expected, rel=1e-5)
    loss.eval()(PRED, TARGET)
    assert loss.mean_loss.item() == pytest.approx(expected, rel=1e-5)


def test_the_focus_uses_the_mean_that_this_batch_is_part_of():
    loss = WiseIoU(3, momentum=0.5)
    value = loss(PRED, TARGET)
    expected = twins.wise_iou(PRED.double(), TARGET.double(), 3, mean=loss.mean_loss.item())
    assert loss.mean_loss.item() < 1
    torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-5)


def test_the_running_mean_is_saved_and_restored():
    loss, other = WiseIoU(momentum=0.5), WiseIoU(momentum=0.5)
    loss(PRED, TARGET)
    assert set(loss.state_dict()) == {"mean_loss"}
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.eval()(PRED, TARGET), loss.eval()(PRED, TARGET))
    assert other.mean_loss.item() != 1


def test_a_nan_batch_and_an_empty_one_leave_the_running_mean_alone():
    loss = WiseIoU(momentum=0.5)
    loss(PRED, TARGET)
    before = loss.mean_loss.clone()
    bad = PRED.clone()
    bad[3, 0] = float("nan")
    assert loss(bad, TARGET)[3].isnan()
    loss(PRED[:0], TARGET[:0])
    assert torch.equal(loss.mean_loss, before)
    assert loss(PRED, TARGET).isfinite().all()


@pytest.mark.parametrize("version", [2, 3])
def test_a_running_mean_of_zero_divides_nothing(version):
    loss = WiseIoU(version, momentum=1.0)
    assert (loss(PRED, PRED) == 0).all()
    assert loss.mean_loss == 0
    assert loss.eval()(PRED, TARGET).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": 4}, "version 4; the paper has 1, 2 and 3"),
        ({"momentum": 0.0}, r"momentum 0.0; expected a number in \(0, 1\]"),
        ({"alpha": 1.0}, "alpha 1.0; expected a number above 1"),
        ({"delta": float("nan")}, "delta nan; expected a number above 0"),
        ({"gamma": -1.0}, "gamma -1.0; expected a number above 0"),
    ],
)
def test_a_setting_outside_its_range_is_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        WiseIoU(**settings)


def test_print_shows_the_settings():
    assert str(WiseIoU(2, momentum=0.5)) == "WiseIoU(version=2, momentum=0.5)"
