"""Heads by mode, what a step's gradient reaches, parts that hold still, weights that move on."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn

from surefoot.errors import ConfigError, UsageError
from surefoot.models import (
    BackboneSupportConfig,
    DinoSupportConfig,
    FusionName,
    ModeName,
    RefDet,
    RefDetConfig,
    StandardPrediction,
    YoloV8Config,
    YoloV8Detector,
    transfer,
)
from surefoot.shapes import DetectionPrediction

FUSIONS = get_args(FusionName)
BACKBONE = YoloV8Config(channels=(8, 8, 16, 16), depths=(1, 1, 1), strides=(4, 8, 16))


def small(**changes: object) -> RefDet:
    config = RefDetConfig(
        backbone=BACKBONE, support=BackboneSupportConfig(stride=8), embedding=16, parts=2
    )
    return RefDet(replace(config, **changes))


def dino() -> DinoSupportConfig:
    return DinoSupportConfig(model="test_vit", frozen_blocks=2)


def inputs(objects: int = 3, photos: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(2, 3, 32, 48), torch.rand(objects, photos, 3, 32, 32)


def backward(model: RefDet, images: torch.Tensor, supports: torch.Tensor | None) -> None:
    """Of a random linear loss on the two outputs that every head has."""
    said = model(images, supports)
    loss = torch.zeros(())
    for one in said if isinstance(said, tuple) else (said,):
        for value in (one.logits, one.distribution):
            loss = loss + (value * torch.randn_like(value)).sum()
    loss.backward()


@pytest.mark.parametrize("support", [BackboneSupportConfig(stride=8), dino()])
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("mode", get_args(ModeName))
def test_a_step_reaches_every_parameter_that_learns(
    mode: ModeName, fusion: FusionName, support: object
) -> None:
    model = small(mode=mode, fusion=fusion, support=support, classes=5 * (mode != "prototype"))
    images, supports = inputs()
    if fusion == "tokens" and mode != "standard":  # its values start at zero, so its keys do not
        nn.init.normal_(model.conditioning.value.weight)
    backward(model, images, None if mode == "standard" else supports)
    learns = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in learns.items() if p.grad is None] == []
    still = {name for name, p in learns.items() if not p.grad.any()}
    assert still <= {"pool.attention.bias"}  # a softmax does not change by what all places share
    held = {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad}
    assert held == (
        {"support"} if isinstance(support, DinoSupportConfig) and mode != "standard" else set()
    )


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_seeded_step_is_the_same_step_again(fusion: FusionName) -> None:
    def gradient() -> torch.Tensor:
        torch.manual_seed(3)
        model = small(fusion=fusion)
        backward(model, *inputs())
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    assert torch.equal(gradient(), gradient())


def test_a_mode_builds_what_it_needs_and_nothing_else() -> None:
    parts = {
        mode: {name for name, _ in small(mode=mode, classes=classes).named_children()}
        for mode, classes in (("prototype", 0), ("standard", 5), ("dual", 5))
    }
    by_photos = {"support", "pool", "head", "conditioning", "score"}
    assert parts["standard"] == {"backbone", "standard"}
    assert parts["prototype"] == {"backbone"} | by_photos
    assert parts["dual"] == {"backbone", "standard"} | by_photos
    names = {mode: set(small(mode=mode, classes=5).state_dict()) for mode in ("standard", "dual")}
    assert names["dual"] == names["standard"] | set(small().state_dict())


def test_both_heads_say_from_one_pass_what_each_says_alone() -> None:
    model, (images, supports) = small(mode="dual", classes=5).eval(), inputs()
    passes: list[object] = []
    model.backbone.register_forward_hook(lambda *a: passes.append(a))
    references = model.encode(supports)
    passes.clear()
    standard, prototype = model.both(images, references)
    assert len(passes) == 1
    assert isinstance(standard, StandardPrediction)
    assert isinstance(prototype, DetectionPrediction)
    assert torch.equal(standard.logits, model.classify(images).logits)
    assert torch.equal(prototype.logits, model.detect(images, references).logits)
    assert torch.equal(model(images).logits, standard.logits)
    assert torch.equal(model(images, supports)[1].logits, prototype.logits)
    cells = 8 * 12 + 4 * 6 + 2 * 3
    assert standard.logits.shape == (2, cells, 5)
    assert standard.distribution.shape == prototype.distribution.shape == (2, cells, 4, 16)
    assert torch.equal(standard.anchor_points, prototype.anchor_points)


def test_a_head_that_is_not_there_is_named() -> None:
    (images, supports), standard, prototype = inputs(), small(mode="standard", classes=5), small()
    references = prototype.encode(supports)
    with pytest.raises(UsageError, match=r"no prototype head, its mode is .standard.; build it w"):
        standard.detect(images, references)
    with pytest.raises(UsageError, match=r"encoding reference photos: this model has no prototype"):
        standard(images, supports)
    with pytest.raises(UsageError, match=r'classifying: this model has no standard head.*"dual"'):
        prototype.classify(images)
    with pytest.raises(UsageError, match=r"no standard head"):
        prototype.both(images, references)


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"mode 'dual' with 0 classes; a standard head has"):
        RefDetConfig.pocket(mode="dual")
    with pytest.raises(ConfigError, match=r"mode 'prototype' with 5 classes"):
        RefDetConfig.pocket(classes=5)
    with pytest.raises(ConfigError, match=r"fusion 'psalms'; expected one of tokens, psalm, cheaf"):
        RefDetConfig.pocket(fusion="psalms")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"mode 'both'; expected one of prototype, standard, du"):
        RefDetConfig.pocket(mode="both", classes=1)  # type: ignore[arg-type]


def test_nano_has_standard_classes_at_every_stride_and_the_fusion_asked_for() -> None:
    config = RefDetConfig.nano(dino(), fusion="cheaf", mode="dual", classes=80)
    assert (config.fusion, config.mode, config.classes) == ("cheaf", "dual", 80)
    model = RefDet(config).eval()
    with torch.no_grad():
        said = model(torch.rand(1, 3, 64, 64), torch.rand(2, 1, 3, 32, 32))
    assert [one.logits.shape for one in said] == [(1, 340, 80), (1, 340, 2)]
    assert said[1].levels == ((16, 16, 4), (8, 8, 8), (4, 4, 16), (2, 2, 32))


# -- holding still -----------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["backbone", "support"])
def test_a_frozen_part_keeps_its_weights_and_statistics_through_training(part: str) -> None:
    model, (images, supports) = small(support=dino()), inputs()
    model.freeze(part)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        model.eval()
        model.train()
        optimizer.zero_grad()
        backward(model, images, supports)
        optimizer.step()
    module = model.get_submodule(part)
    assert model.training
    assert not any(m.training for m in module.modules())
    assert all(p.grad is None for p in module.parameters())
    moved = {name for name, v in model.state_dict().items() if not torch.equal(v, before[name])}
    assert {name.split(".")[0] for name in moved} == {
        "backbone",
        "support",
        "pool",
        "head",
        "conditioning",
        "score",
    } - {part}


def test_thawing_gives_back_what_the_configuration_lets_learn() -> None:
    model = small(support=dino())
    learnt = {name for name, p in model.named_parameters() if p.requires_grad}
    model.freeze("backbone")
    model.freeze("support")
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {
        "pool",
        "head",
        "conditioning",
        "score",
    }
    model.freeze("none")
    assert {name for name, p in model.named_parameters() if p.requires_grad} == learnt
    assert all(module.training for module in model.modules())


def test_photos_statistics_hold_still_with_the_backbone() -> None:
    model, (images, supports) = small(), inputs()
    model.freeze("backbone")
    before = {n: b.clone() for n, b in model.support.named_buffers(recurse=False)}
    model.train()(images, supports)
    after = dict(model.support.named_buffers(recurse=False))
    assert before
    assert [n for n in before if not torch.equal(before[n], after[n])] == []


def test_what_cannot_be_frozen_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no support encoder of its own.*freeze\(.backbone.\)"):
        small().freeze("support")
    with pytest.raises(UsageError, match=r"no support encoder of its own"):
        small(mode="standard", classes=2).freeze("support")
    with pytest.raises(ConfigError, match=r"'head'; expected backbone, support or none"):
        small().freeze("head")  # type: ignore[arg-type]


# -- moving on -----------------------------------------------------------------------------------


def test_a_standard_stage_moves_on_into_a_dual_model_whole() -> None:
    first, second = small(mode="standard", classes=5), small(mode="dual", classes=5, fusion="psalm")
    told = transfer(second, first.state_dict())
    assert told.left_out == ()
    assert {name.split(".")[0] for name in told.fresh} == {
        "support",
        "pool",
        "head",
        "conditioning",
        "places",
        "score",
    }
    assert set(told.loaded) | set(told.fresh) == set(second.state_dict())
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(second.eval().classify(images).logits, first.eval().classify(images).logits)


def test_into_a_prototype_model_the_backbone_moves_on_and_the_head_is_told() -> None:
    first, second = small(mode="standard", classes=5), small(support=dino())
    told = transfer(second, first.state_dict())
    assert {name.split(".")[0] for name in told.left_out} == {"standard"}
    assert set(told.loaded) == {n for n in second.state_dict() if n.startswith("backbone.")}


def test_another_number_of_classes_keeps_all_but_the_last_convolutions() -> None:
    first, second = small(mode="standard", classes=5), small(mode="standard", classes=7)
    told = transfer(second, first.state_dict())
    last = {f"standard.label.{i}.2.{what}" for i in range(3) for what in ("weight", "bias")}
    assert set(told.left_out) == set(told.fresh) == last


def test_a_plain_detector_moves_on_under_our_names() -> None:
    detector, model = YoloV8Detector(BACKBONE, classes=5), small(mode="dual", classes=5)
    told = transfer(model, detector.state_dict())
    assert told.left_out == ()
    images = torch.rand(1, 3, 32, 32)
    expected = detector.eval()(images)
    given = model.eval().classify(images)
    assert torch.equal(given.logits, expected.logits)
    assert torch.equal(given.distribution, expected.distribution)
    told = transfer(small(), detector.state_dict())
    assert {name.split(".")[0] for name in told.left_out} == {"head"}  # as they were called there


def test_photos_start_with_the_scenes_statistics_where_there_are_no_better() -> None:
    first, second = small(mode="standard", classes=5), small()
    first.train()(torch.rand(2, 3, 32, 32))
    told = transfer(second, first.state_dict())
    own = second.state_dict()
    assert torch.equal(own["support.stem_bn_running_mean"], own["backbone.stem.bn.running_mean"])
    assert own["support.stem_bn_running_mean"].any()
    assert "support.stem_bn_running_mean" in told.loaded
    third = small()
    second(*inputs())
    transfer(third, second.state_dict())  # has better: its own
    statistics = second.state_dict()["support.stem_bn_running_mean"]
    assert torch.equal(third.state_dict()["support.stem_bn_running_mean"], statistics)


def test_a_backbone_that_does_not_fit_is_refused_and_nothing_is_loaded() -> None:
    model = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    coarser = YoloV8Detector(replace(BACKBONE, strides=(8, 16)), classes=5)
    with pytest.raises(ConfigError, match=r"backbone\.top_down\.4\.cv1\.conv\.weight is not among"):
        transfer(model, coarser.state_dict())
    wider = YoloV8Detector(replace(BACKBONE, channels=(12, 8, 16, 16)), classes=5)
    with pytest.raises(
        ConfigError, match=r"stem\.conv\.weight is \(12, 3, 3, 3\) in the weights and \(8, 3, 3, 3"
    ):
        transfer(model, wider.state_dict())
    with pytest.raises(ConfigError, match=r"not among the 0 tensors"):
        transfer(model, {})
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
