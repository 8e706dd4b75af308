"""Encoders of the segmentation model: what they give, and where their weights come from."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from surefoot.errors import CheckpointError, ConfigError, UsageError
from surefoot.models.camouflage import TimmEncoder, TinyEncoder

PYRAMIDS = {  # timm's own small test models, and one of each kind of layout
    "test_convnext": (24, 32, 48, 64),
    "test_resnet": (32, 48, 192, 96),
    "test_efficientnet": (24, 32, 48, 64),
    "test_mambaout": (16, 32, 48, 64),  # gives B H W C
    "pvt_v2_b0": (32, 64, 160, 256),
}


@pytest.mark.parametrize("name", PYRAMIDS)
def test_channels_and_strides_are_read_from_the_model(name: str) -> None:
    encoder = TimmEncoder(name).eval()
    assert encoder.channels == PYRAMIDS[name]
    assert encoder.strides == (4, 8, 16, 32)
    maps = encoder(torch.rand(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(encoder.channels, encoder.strides, strict=True)
    ]


@pytest.mark.parametrize("name", ["test_mambaout", "test_resnet"])
def test_features_are_those_of_timms_own_model(name: str) -> None:
    encoder = TimmEncoder(name).eval()
    whole = timm.create_model(name, features_only=True).eval()
    whole.load_state_dict(encoder.net.state_dict())
    images = torch.rand(1, 3, 64, 96)
    stated = whole.pretrained_cfg
    mean, std = (torch.tensor(stated[k]).view(3, 1, 1) for k in ("mean", "std"))
    theirs = whole((images - mean) / std)[-4:]
    for ours, other in zip(encoder(images), theirs, strict=True):
        turned = other.permute(0, 3, 1, 2) if name == "test_mambaout" else other
        assert torch.equal(ours, turned)


def test_a_map_that_could_be_either_layout_is_read_as_the_model_states() -> None:
    """Height, width and channels are all equal."""
    encoder = TimmEncoder("test_mambaout").eval()
    side = encoder.channels[-1] * 32
    found = torch.rand(1, *3 * (encoder.channels[-1],))
    turned = encoder._channels_first(found, (found.shape[1], side // 32, side // 32))
    assert torch.equal(turned, found.permute(0, 3, 1, 2))


def test_windows_made_for_one_size_take_others() -> None:
    maps = TimmEncoder("swin_tiny_patch4_window7_224").eval()(torch.rand(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [
        (96, 16, 24),
        (192, 8, 12),
        (384, 4, 6),
        (768, 2, 3),
    ]


def test_mean_and_deviation_lie_in_the_checkpoint() -> None:
    state = TimmEncoder("pvt_v2_b0").state_dict()
    assert state["mean"].flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert state["std"].flatten().tolist() == pytest.approx([0.229, 0.224, 0.225])


def test_the_tiny_encoder_sees_structure_and_not_brightness() -> None:
    encoder, images = TinyEncoder().eval(), torch.rand(2, 3, 32, 48)
    assert encoder.channels == (16, 24, 32, 48)
    for ours, dark in zip(encoder(images), encoder(0.2 * images + 0.1), strict=True):
        torch.testing.assert_close(ours, dark, rtol=1e-3, atol=1e-3)
    plain = encoder(torch.full((1, 3, 32, 32), 0.3))
    assert all(m.isfinite().all() for m in plain)


def test_a_model_without_a_pyramid_is_refused() -> None:
    said = r"test_vit gives maps at strides \[16, .*\]; \[4, 8, 32\] are missing of the"
    with pytest.raises(ConfigError, match=said):
        TimmEncoder("test_vit")


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"knows no model 'pvt_v9'.*list_models.*\"tiny\" is"):
        TimmEncoder("pvt_v9")


def test_a_map_of_another_size_than_stated_is_refused() -> None:
    with pytest.raises(UsageError, match=r"test_resnet: a map is \(32, 10, 16\); expected \(32, 9"):
        TimmEncoder("test_resnet").eval()(torch.rand(1, 3, 39, 64))


def test_an_unreachable_hub_is_no_reason_to_start_from_random_weights() -> None:
    with pytest.raises(
        CheckpointError, match=r"weights of test_resnet from the hub failed(.|\n)*local file"
    ):
        TimmEncoder("test_resnet", pretrained=True)


@pytest.mark.parametrize("name", ["pvt_v2_b0", "test_resnet", "test_mambaout", "test_efficientnet"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_local_file_of_the_whole_model_gives_its_features(
    name: str, suffix: str, tmp_path: Path
) -> None:
    torch.manual_seed(7)
    whole, path = timm.create_model(name).eval(), tmp_path / f"weights{suffix}"
    for buffer in whole.buffers():  # statistics as after training
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    state = whole.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    torch.manual_seed(0)
    encoder = TimmEncoder(name, pretrained=path).eval()
    images = torch.rand(1, 3, 64, 64)
    seen = whole.forward_intermediates(
        (images - encoder.mean) / encoder.std, output_fmt="NCHW", intermediates_only=True
    )
    theirs = {m.shape[-1]: m for m in seen}
    for ours in encoder(images):
        torch.testing.assert_close(ours, theirs[ours.shape[-1]])


def test_a_local_file_of_the_pyramid_alone_is_taken_as_well(tmp_path: Path) -> None:
    source, path = TimmEncoder("test_convnext").eval(), tmp_path / "weights.safetensors"
    state = {f"module.{name}": t for name, t in source.net.state_dict().items()}
    save_file(state, path)
    torch.manual_seed(1)
    loaded, fresh = (
        TimmEncoder("test_convnext", pretrained=path).eval(),
        TimmEncoder("test_convnext").eval(),
    )
    images = torch.rand(1, 3, 64, 64)
    for ours, theirs, other in zip(loaded(images), source(images), fresh(images), strict=True):
        assert torch.equal(ours, theirs)
        assert not torch.equal(ours, other)


def test_the_names_of_the_authors_are_understood(tmp_path: Path) -> None:
    source, path = timm.create_model("pvt_v2_b0"), tmp_path / "pvt.pth"
    state = {}
    for name, tensor in source.state_dict().items():
        stage = re.sub(r"stages\.(\d)\.blocks\.", lambda m: f"block{int(m.group(1)) + 1}.", name)
        stage = re.sub(
            r"stages\.(\d)\.downsample", lambda m: f"patch_embed{int(m.group(1)) + 1}", stage
        )
        stage = re.sub(r"stages\.(\d)\.norm", lambda m: f"norm{int(m.group(1)) + 1}", stage)
        stage = re.sub(r"^patch_embed\.", "patch_embed1.", stage)
        state[stage.replace("dwconv", "dwconv.dwconv")] = tensor
    torch.save(state, path)
    loaded = TimmEncoder("pvt_v2_b0", pretrained=path).net.state_dict()
    assert torch.equal(
        loaded["stages_1.downsample.proj.weight"],
        source.state_dict()["stages.1.downsample.proj.weight"],
    )


def test_a_file_that_has_a_part_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.pth"
    state = timm.create_model("test_resnet").state_dict()
    torch.save({n: t for n, t in state.items() if not n.startswith("layer4")}, path)
    said = r"half\.pth: \d+ of the \d+ tensors \(\d\d %\) fit; it has no .* more\. A backbone"
    with pytest.raises(CheckpointError, match=said) as refused:
        TimmEncoder("test_resnet", pretrained=path)
    assert refused.value.path == path


def test_a_file_of_a_wider_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "b1.safetensors"
    save_file(timm.create_model("pvt_v2_b1").state_dict(), path)
    with pytest.raises(CheckpointError, match=r"\(0 %\) fit; it has another shape of patch_embed"):
        TimmEncoder("pvt_v2_b0", pretrained=path)


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "linear.safetensors"
    save_file(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"0 of the \d+ tensors \(0 %\) fit; it has no "):
        TimmEncoder("test_convnext", pretrained=path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"FileNotFoundError.*none\.safetensors"):
        TimmEncoder("test_convnext", pretrained=tmp_path / "none.safetensors")
