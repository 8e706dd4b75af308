"""RefDet as a whole: what goes in, what comes out, and what depends on what."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from torch import nn

from surefoot.errors import ConfigError, UsageError
from surefoot.models import (
    BackboneSupportConfig,
    DinoSupport,
    DinoSupportConfig,
    RefDet,
    RefDetConfig,
    YoloV8Config,
)


def small(**changes: object) -> RefDetConfig:
    config = RefDetConfig(
        backbone=YoloV8Config(channels=(8, 8, 16, 16), depths=(1, 1, 1), strides=(8, 16)),
        support=BackboneSupportConfig(stride=8),
        embedding=16,
    )
    return replace(config, **changes)


def inputs(objects: int = 3, photos: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(2, 3, 64, 96), torch.rand(objects, photos, 3, 32, 32)


def test_the_querys_class_can_be_no_input() -> None:
    assert list(inspect.signature(RefDet.forward).parameters) == ["self", "images", "supports"]
    assert list(inspect.signature(RefDet.encode).parameters) == ["self", "supports"]
    assert list(inspect.signature(RefDet.detect).parameters) == ["self", "images", "references"]


@pytest.mark.parametrize("support", [BackboneSupportConfig(), DinoSupportConfig(model="test_vit")])
def test_a_prediction_has_the_promised_axes(support: object) -> None:
    images, supports = inputs()
    prediction = RefDet(small(support=support))(images, supports)
    anchors = 8 * 12 + 4 * 6
    tensors = {k: v for k, v in vars(prediction).items() if isinstance(v, torch.Tensor)}
    assert prediction.levels == ((8, 12, 8), (4, 6, 16))
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {
        "logits": (2, anchors, 3),
        "objectness": (2, anchors),
        "distribution": (2, anchors, 4, 16),
        "embeddings": (2, anchors, 16),
        "prototypes": (3, 16),
        "shots": (3, 2, 16),
        "tokens": (3, 2 * 2, 16),
        "anchor_points": (anchors, 2),
        "strides": (anchors,),
    }
    torch.testing.assert_close(prediction.embeddings.norm(dim=-1), torch.ones(2, anchors))


def test_pocket_is_small_and_nano_is_yolov8n_with_a_dino() -> None:
    pocket = RefDet(RefDetConfig.pocket())
    assert sum(p.numel() for p in pocket.parameters()) == 372_757
    nano = RefDetConfig.nano()
    assert nano.backbone == YoloV8Config.scaled("n", strides=(4, 8, 16, 32))
    assert nano.support == DinoSupportConfig()
    with torch.device("meta"):
        rest = RefDet(replace(nano, support=BackboneSupportConfig(stride=8)))
    assert sum(p.numel() for p in rest.backbone.parameters()) == 2_309_328


def test_nano_detects_in_a_scene_with_dinov3_references() -> None:
    model = RefDet(RefDetConfig.nano()).eval()
    assert isinstance(model.support, DinoSupport)
    with torch.no_grad():
        prediction = model(torch.rand(1, 3, 64, 64), torch.rand(2, 1, 3, 32, 32))
    assert prediction.logits.shape == (1, 16 * 16 + 8 * 8 + 4 * 4 + 2 * 2, 2)
    assert prediction.logits.isfinite().all()


def test_references_encoded_once_give_what_forward_gives() -> None:
    model, (images, supports) = RefDet(small()).eval(), inputs()
    references = model.encode(supports)
    torch.testing.assert_close(
        model.detect(images, references).logits, model(images, supports).logits
    )


def test_an_objects_scores_depend_on_its_own_references_alone() -> None:
    model, (images, supports) = RefDet(small()), inputs()
    nn.init.normal_(model.conditioning.value.weight)
    for _ in range(50):
        model(images, supports)  # batch statistics that tell noise from noise
    model.eval()
    together = model(images, supports).logits
    torch.testing.assert_close(model(images, supports[[2, 0]]).logits, together[..., [2, 0]])
    swapped = model(images, supports.roll(1, 0)).logits
    torch.testing.assert_close(swapped, together.roll(1, -1))
    assert (together[..., 0] - together[..., 1]).abs().mean() > 1e-3


def test_what_is_said_of_boxes_and_objectness_does_not_depend_on_references() -> None:
    model, (images, supports) = RefDet(small()).eval(), inputs()
    one, other = model(images, supports), model(images, 1 - supports)
    assert torch.equal(one.distribution, other.distribution)
    assert torch.equal(one.objectness, other.objectness)


def test_at_random_initialisation_nothing_is_found_and_dfl_is_uniform() -> None:
    model, (images, supports) = RefDet(RefDetConfig.pocket()), inputs(16)
    prediction = model(images, supports)
    assert prediction.logits.sigmoid().max() < 0.02
    assert abs(prediction.objectness.sigmoid().mean() - 0.01) < 0.005
    share = prediction.distribution.detach().softmax(-1)
    assert -share.log().mean() == pytest.approx(2.7726, abs=0.15)


def test_bf16_autocast_agrees_with_float32_and_gives_float32() -> None:
    model, (images, supports) = RefDet(small()).eval(), inputs()
    expected = model(images, supports)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = model(images, supports)
    for name in ("logits", "objectness", "distribution", "embeddings", "prototypes"):
        value = getattr(given, name)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, getattr(expected, name), atol=0.1, rtol=0.05)


def test_the_fusion_can_be_left_out() -> None:
    model, (images, supports) = RefDet(small(fusion="none")), inputs()
    prediction = model(images, supports)
    cosine = prediction.embeddings @ prediction.prototypes.mT
    torch.testing.assert_close(prediction.logits, model.score(cosine, prediction.objectness))


def test_wrong_shapes_are_refused_by_what_they_are() -> None:
    model, (images, supports) = RefDet(small()), inputs()
    with pytest.raises(UsageError, match=r"images are 64x90 pixels.*multiples of 16"):
        model(images[..., :90], supports)
    with pytest.raises(UsageError, match=r"reference photos are 20x32 pixels"):
        model(images, supports[..., :20, :])
    with pytest.raises(UsageError, match=r"shape is \(2, 3, 32, 32\); expected N K 3 h w"):
        model(images, supports[0])
    with pytest.raises(UsageError, match=r"at least one object \(N\)"):
        model(images, supports[:0])
    with pytest.raises(UsageError, match=r"images are \(3, 64, 96\); expected B 3 H W"):
        model(images[0], supports)


def test_an_impossible_configuration_is_refused() -> None:
    with pytest.raises(ConfigError, match="reg_max 1; at least 2"):
        small(reg_max=1)
