"""Photos as a set, whatever their number; what they change; pairs taken out of all pairs."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256
from typing import get_args

import pytest
import torch

from surefoot.errors import UsageError
from surefoot.models import (
    BackboneSupportConfig,
    DinoSupportConfig,
    FusionName,
    RefDet,
    RefDetConfig,
    References,
    YoloV8Config,
)

FUSIONS = get_args(FusionName)
CELLS = 16 * 16 + 8 * 8 + 4 * 4


def small(fusion: FusionName, **changes: object) -> RefDet:
    """Whose batch statistics tell one noise from another, in evaluation mode."""
    config = RefDetConfig(
        backbone=YoloV8Config(channels=(8, 8, 16, 16), depths=(1, 1, 1), strides=(4, 8, 16)),
        support=BackboneSupportConfig(stride=8),
        embedding=16,
        fusion=fusion,
    )
    model = RefDet(replace(config, **changes))
    if fusion == "tokens":
        torch.nn.init.normal_(model.conditioning.value.weight, std=1 / 16)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # the statistics of the last batch
    with torch.no_grad():
        model(torch.rand(4, 3, 64, 64), pictures(8))
    return model.eval()


def pictures(objects: int = 3, photos: int = 3) -> torch.Tensor:
    """N K 3 32 32: each object a colour, each photo with noise of its own."""
    colour = torch.rand(objects, 1, 3, 1, 1)
    return (0.7 * colour + 0.3 * torch.rand(objects, photos, 3, 32, 32)).clamp(0, 1)


@pytest.mark.parametrize("support", [BackboneSupportConfig(), DinoSupportConfig(model="test_vit")])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_order_of_an_objects_photos_changes_nothing(
    fusion: FusionName, support: object
) -> None:
    model, images, photos = small(fusion, support=support), torch.rand(2, 3, 64, 64), pictures()
    with torch.no_grad():
        given, turned = model(images, photos), model(images, photos[:, [2, 0, 1]])
        fewer = model(images, photos[:, :2])
    torch.testing.assert_close(turned.logits, given.logits, atol=1e-5, rtol=0)
    assert (fewer.logits - given.logits).abs().max() > 1e-4


@pytest.mark.parametrize("fusion", FUSIONS)
def test_one_model_takes_any_number_of_photos(fusion: FusionName) -> None:
    model, images = small(fusion), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        for photos in (1, 2, 5):
            logits = model(images, pictures(4, photos)).logits
            assert logits.shape == (2, CELLS, 4)
            assert logits.isfinite().all()
        one = pictures(2, 1)
        torch.testing.assert_close(  # the same photo again says nothing new
            model(images, one.expand(-1, 4, -1, -1, -1)).logits, model(images, one).logits
        )


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_grey_photo_and_another_objects_photos_change_what_is_detected(
    fusion: FusionName,
) -> None:
    model, images, photos = small(fusion), torch.rand(2, 3, 64, 64), pictures()
    with torch.no_grad():
        given = model(images, photos).logits
        swapped = model(images, photos.roll(1, 0)).logits
        null = model(images, torch.full_like(photos, 0.5)).logits
    torch.testing.assert_close(swapped, given.roll(1, -1))
    spread = given.std()
    assert (swapped - given).abs().mean() > 0.01 * spread
    assert null.isfinite().all()
    assert (null - given).abs().mean() > 0.01 * spread
    torch.testing.assert_close(null[..., 0], null[..., 1])  # grey is grey, whose ever photo it is


@pytest.mark.parametrize("stride", [None, 4, 8, 16])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_chosen_pairs_give_the_score_of_all_pairs(fusion: FusionName, stride: int | None) -> None:
    model = small(fusion)
    prediction = model(torch.rand(2, 3, 64, 64), pictures())
    image, object = torch.tensor([0, 1, 1, 1, 0]), torch.tensor([2, 0, 2, 2, 1])
    c = model.conditioned(prediction, None, image, object, stride=stride)
    cells = {None: slice(None), 4: slice(256), 8: slice(256, 320), 16: slice(320, None)}[stride]
    assert c.dtype == torch.float32
    likeness = (c * prediction.prototypes[object][:, None]).sum(-1, keepdim=True)
    objectness = prediction.objectness[:, cells][image]
    torch.testing.assert_close(
        model.score(likeness, objectness)[..., 0],
        prediction.logits[:, cells][image, :, object],
        atol=2e-5,  # the likeness within 1e-6, times a scale of 10
        rtol=0,
    )
    assert (c - prediction.embeddings[:, cells][image]).abs().max() > 0 or fusion == "none"
    c.square().sum().backward()
    assert model.backbone.stem.conv.weight.grad.any()


def test_pairs_can_be_conditioned_by_other_references_or_none_at_all() -> None:
    model, images = small("psalm"), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        prediction, other = model(images, pictures()), model.encode(pictures(7))
        one = torch.tensor([1])
        given = model.conditioned(prediction, other, one, torch.tensor([6]))
        again = model.detect(images, other)
        expected = model.conditioned(again, None, one, torch.tensor([6]))
        empty = model.conditioned(prediction, None, one[:0], one[:0])
    torch.testing.assert_close(given, expected)
    assert empty.shape == (0, CELLS, 16)


def test_pairs_that_are_none_are_refused() -> None:
    model = small("cheaf")
    prediction = model(torch.rand(1, 3, 64, 64), pictures())
    one = torch.tensor([0])
    with pytest.raises(UsageError, match=r"image indices \(1,\) and object indices \(2,\)"):
        model.conditioned(prediction, None, one, torch.tensor([0, 1]))
    with pytest.raises(UsageError, match=r"no level of stride 32; there are \[4, 8, 16\]"):
        model.conditioned(prediction, None, one, one, stride=32)
    with pytest.raises(UsageError, match=r"References\.of: the prediction has no tokens"):
        References.of(replace(prediction, tokens=None))


def test_a_prediction_holds_its_references_and_moves_with_them() -> None:
    model, photos = small("cheaf"), pictures()
    prediction = model(torch.rand(1, 3, 64, 64), photos).to("meta")
    references = References.of(prediction)
    assert (references.places.shape, references.places.device.type) == ((3, 3, 16, 16), "meta")
    assert prediction.scene.shape == (1, CELLS, 32)
    assert prediction.levels == ((16, 16, 4), (8, 8, 8), (4, 4, 16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_under_autocast_scores_and_gradients_are_finite_and_near(
    fusion: FusionName, dtype: torch.dtype
) -> None:
    model, images, photos = small(fusion), torch.rand(2, 3, 64, 64), pictures()
    expected = model(images, photos)
    with torch.autocast("cpu", dtype=dtype):
        given = model(images, photos)
    c = model.conditioned(given, None, torch.tensor([0]), torch.tensor([1]))
    assert given.logits.dtype == c.dtype == torch.float32
    assert (given.logits - expected.logits).abs().mean() < 0.2 * expected.logits.std()
    (given.logits.square().mean() + c.square().mean()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_the_defaults_names_and_shapes_are_those_of_every_checkpoint_so_far() -> None:
    state = RefDet(RefDetConfig.pocket()).state_dict()
    rest = {n: tuple(v.shape) for n, v in state.items() if n.split(".")[0] != "backbone"}
    assert {n: shape for n, shape in rest.items() if n.split(".")[0] != "support"} == {
        "pool.norm.weight": (64,),
        "pool.norm.bias": (64,),
        "pool.value.weight": (64, 64),
        "pool.value.bias": (64,),
        "pool.attention.weight": (2, 64),
        "pool.attention.bias": (2,),
        "head.embed.0.0.conv.weight": (64, 64, 3, 3),
        "head.embed.0.0.bn.weight": (64,),
        "head.embed.0.0.bn.bias": (64,),
        "head.embed.0.0.bn.running_mean": (64,),
        "head.embed.0.0.bn.running_var": (64,),
        "head.embed.0.0.bn.num_batches_tracked": (),
        "head.embed.0.1.weight": (64, 64, 1, 1),
        "head.embed.0.1.bias": (64,),
        "head.box.0.0.conv.weight": (64, 64, 3, 3),
        "head.box.0.0.bn.weight": (64,),
        "head.box.0.0.bn.bias": (64,),
        "head.box.0.0.bn.running_mean": (64,),
        "head.box.0.0.bn.running_var": (64,),
        "head.box.0.0.bn.num_batches_tracked": (),
        "head.box.0.1.weight": (65, 64, 1, 1),
        "head.box.0.1.bias": (65,),
        "conditioning.norm.weight": (64,),
        "conditioning.norm.bias": (64,),
        "conditioning.query.weight": (64, 64),
        "conditioning.key.weight": (64, 64),
        "conditioning.value.weight": (64, 64),
        "conditioning.value.bias": (64,),
        "score.raw_scale": (),
        "score.bias": (),
    }
    whole = sha256(b"".join(f"{n}{tuple(v.shape)}{v.dtype}".encode() for n, v in state.items()))
    assert (len(state), whole.hexdigest()[:16]) == (234, "5023f69fb7dd1d6f")
