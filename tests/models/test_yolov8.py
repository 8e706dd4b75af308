"""YOLOv8's backbone and neck: equal to the original's, at any choice of strides."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from surefoot.errors import CheckpointError, ConfigError
from surefoot.models import YoloV8, YoloV8Config, load_ultralytics_state_dict


def original(scale: str) -> nn.Module:
    """Ultralytics' own network with random weights and random batch statistics."""
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel(f"yolov8{scale}.yaml", verbose=False)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model


def original_maps(model: nn.Module, images: Tensor) -> dict[int, Tensor]:
    """What its detection head is given: layers 15, 18 and 21."""
    taken: dict[int, Tensor] = {}

    def keep(stride: int):
        return lambda module, args, output: taken.__setitem__(stride, output)

    handles = [
        model.model[layer].register_forward_hook(keep(stride))
        for stride, layer in {8: 15, 16: 18, 32: 21}.items()
    ]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return taken


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("scale", ["n", "s"])
def test_maps_equal_the_originals(scale: str, training: bool) -> None:
    theirs = original(scale).train(training)
    ours = YoloV8(scale)
    assert load_ultralytics_state_dict(ours, theirs.state_dict()) == ()
    images = torch.rand(2, 3, 64, 96)
    expected = original_maps(theirs, images)
    with torch.no_grad():
        maps = ours.train(training)(images)
    assert list(maps) == [8, 16, 32]
    for stride, theirs_at_stride in expected.items():
        assert theirs_at_stride.std() > 0.01
        torch.testing.assert_close(maps[stride], theirs_at_stride, atol=1e-4, rtol=1e-4)


def test_a_finer_level_takes_the_originals_weights_for_all_others() -> None:
    state = original("n").state_dict()
    ours = YoloV8(YoloV8Config.scaled("n", strides=(4, 8, 16, 32)))
    missing = load_ultralytics_state_dict(ours, state)
    assert {".".join(name.split(".")[:2]) for name in missing} == {"top_down.4", "bottom_up.8"}
    assert torch.equal(ours.top_down["8"].cv1.conv.weight, state["model.15.cv1.conv.weight"])


def test_weights_of_another_scale_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"take the checkpoint of the same scale"):
        load_ultralytics_state_dict(YoloV8("s"), original("n").state_dict())


def test_weights_of_another_network_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"none of the 2 tensors.*'weight'"):
        load_ultralytics_state_dict(YoloV8("n"), nn.Linear(2, 2).state_dict())


@pytest.mark.parametrize(
    ("scale", "channels", "depths", "neck_depth"),
    [
        ("n", (16, 32, 64, 128, 256), (1, 2, 2, 1), 1),
        ("s", (32, 64, 128, 256, 512), (1, 2, 2, 1), 1),
        ("m", (48, 96, 192, 384, 576), (2, 4, 4, 2), 2),
        ("l", (64, 128, 256, 512, 512), (3, 6, 6, 3), 3),
        ("x", (80, 160, 320, 640, 640), (3, 6, 6, 3), 3),
    ],
)
def test_published_sizes(
    scale: str, channels: tuple[int, ...], depths: tuple[int, ...], neck_depth: int
) -> None:
    config = YoloV8Config.scaled(scale)
    assert (config.channels, config.depths, config.neck_depth) == (channels, depths, neck_depth)


@pytest.mark.parametrize(
    "strides", [(4,), (8,), (16,), (4, 8), (8, 16), (4, 16), (4, 8, 16)], ids=str
)
def test_every_choice_of_strides_is_given_and_leaves_nothing_unused(
    strides: tuple[int, ...],
) -> None:
    config = YoloV8Config(channels=(4, 8, 8, 12), depths=(1, 1, 1), strides=strides)
    model = YoloV8(config)
    maps = model(torch.rand(2, 3, 32, 48))
    assert {s: tuple(m.shape[1:]) for s, m in maps.items()} == {
        s: (config.channels_at(s), 32 // s, 48 // s) for s in strides
    }
    sum(m.square().sum() for m in maps.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"depths": (1,)}, r"3 channels and 1 depths.*one depth fewer"),
        ({"channels": (4, 7, 8)}, r"channels \(4, 7, 8\).*even"),
        ({"strides": (16,)}, r"strides \(16,\) asked for.*reach \(4, 8\)"),
        ({"strides": ()}, r"strides \(\) asked for"),
        ({"strides": (8, 4)}, r"finest first"),
    ],
)
def test_an_impossible_configuration_is_refused(change: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        YoloV8Config(**({"channels": (4, 6, 8), "depths": (1, 1), "strides": (8,)} | change))


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown scale 'xl'; expected one of \['n'"):
        YoloV8("xl")
