"""Two stages: a backbone that holds still, then one that learns at a rate of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from surefoot.errors import ConfigError
from surefoot.losses import segmentation_terms
from surefoot.models.camouflage import (
    CamouflageNet,
    freeze_backbone,
    parameter_groups,
    unfreeze_backbone,
)


def net() -> CamouflageNet:
    """With batch normalisation in the backbone."""
    return CamouflageNet("test_resnet", channels=8)


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, now in module.state_dict().items() if not torch.equal(now, before[name])}


def step(model: CamouflageNet, optimizer: torch.optim.Optimizer) -> None:
    images = torch.rand(2, 3, 64, 64)
    segmentation_terms(model(images), (images[:, :1] > 0.5).float()).total.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_frozen_backbone_holds_still_through_training() -> None:
    model = net()
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-2, 0.1, weight_decay=0.5))
    step(model, optimizer)  # momentum that would go on moving it
    segmentation_terms(model(torch.rand(2, 3, 64, 64)), torch.ones(2, 1, 64, 64)).total.backward()
    freeze_backbone(model)
    backbone, decoder = state_of(model.backbone), state_of(model.finish)
    for _ in range(3):
        model.eval()
        model.train()
        step(model, optimizer)
    assert changed(model.backbone, backbone) == set()
    assert "correct.weight" in changed(model.finish, decoder)
    assert "narrow.1.running_mean" in changed(model.finish, decoder)
    assert not any(m.training for m in model.backbone.modules())
    assert model.finish.training


def test_an_unfrozen_backbone_learns_again_with_its_statistics() -> None:
    model = net()
    freeze_backbone(model)
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-2, 0.1))
    step(model, optimizer)
    unfreeze_backbone(model)
    assert all(m.training for m in model.backbone.modules())
    before = state_of(model.backbone)
    for _ in range(3):  # some weights stand behind others that start at 0
        step(model, optimizer)
    moved = changed(model.backbone, before)
    assert {n for n in before if "running_mean" in n} <= moved
    assert {f"net.{n}" for n, _ in model.backbone.net.named_parameters()} <= moved


def test_a_backbone_unfrozen_in_evaluation_stays_there() -> None:
    model = net()
    freeze_backbone(model)
    model.eval()
    unfreeze_backbone(model)
    assert not model.backbone.training
    assert model.train().backbone.training


def test_groups_hold_every_parameter_once_frozen_or_not() -> None:
    model = net()
    freeze_backbone(model)
    optimizer = torch.optim.AdamW(parameter_groups(model, 2e-4, 0.1, weight_decay=0.05))
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert list(groups) == ["decoder", "decoder.1d", "backbone", "backbone.1d"]
    assert [g["lr"] for g in groups.values()] == pytest.approx([2e-4, 2e-4, 2e-5, 2e-5])
    assert [g["weight_decay"] for g in groups.values()] == [0.05, 0.0, 0.05, 0.0]
    named = dict(model.named_parameters())
    listed = [name for group in groups.values() for name in group["param_names"]]
    assert sorted(listed) == sorted(named)
    for name, group in groups.items():
        for own, parameter in zip(group["param_names"], group["params"], strict=True):
            assert parameter is named[own]
            assert own.startswith("backbone.") == name.startswith("backbone")
            assert (parameter.ndim <= 1) == name.endswith(".1d")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((0.0, 0.1, 0.0), "lr 0.0; expected a number above 0"),
        ((1e-3, -0.1, 0.0), "backbone_factor -0.1; expected a number above 0"),
        ((1e-3, 0.1, -1.0), "weight_decay -1.0; expected 0 or more"),
    ],
)
def test_rates_outside_their_range_are_refused(
    given: tuple[float, float, float], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        parameter_groups(net(), given[0], given[1], weight_decay=given[2])
