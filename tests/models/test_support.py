"""Reference photos to tokens: what is frozen, what learns, and where weights come from."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from surefoot.errors import CheckpointError, ConfigError, UsageError
from surefoot.models import (
    BackboneSupport,
    BackboneSupportConfig,
    DinoSupport,
    DinoSupportConfig,
    SupportPool,
    YoloV8,
    YoloV8Config,
)

TINY = "test_vit"  # timm's own test model: 6 blocks of 64 channels


def tiny(frozen_blocks: int = 0, **settings: object) -> DinoSupport:
    return DinoSupport(DinoSupportConfig(model=TINY, frozen_blocks=frozen_blocks, **settings))


def test_the_default_is_a_dinov3_that_timm_knows() -> None:
    assert DinoSupportConfig().model == "vit_small_patch16_dinov3.lvd1689m"
    assert DinoSupportConfig().model in timm.list_pretrained("vit_small_patch16_dinov3")


def test_dinov3_gives_its_class_token_and_all_patches_without_registers() -> None:
    support = DinoSupport(DinoSupportConfig(frozen_blocks=12))
    tokens = support(torch.rand(1, 3, 32, 48))
    assert tokens.shape == (1, 1 + 2 * 3, 384)
    assert support.channels == 384
    assert sum(p.numel() for p in support.parameters()) == 21_586_944


def test_photos_of_any_multiple_of_the_patch_are_encoded() -> None:
    assert tiny()(torch.rand(2, 3, 32, 64)).shape == (2, 1 + 2 * 4, 64)


def test_other_sizes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"test_vit: they are 40x64 pixels.*patch size, 16"):
        tiny()(torch.rand(1, 3, 40, 64))


def test_photos_are_normalised_as_the_network_was_trained() -> None:
    support, photos = tiny().eval(), torch.rand(1, 3, 32, 32)
    stated = support.encoder.pretrained_cfg
    mean, std = (torch.tensor(stated[k]).view(3, 1, 1) for k in ("mean", "std"))
    expected = support.encoder.forward_features((photos - mean) / std)
    torch.testing.assert_close(support(photos), expected)


@pytest.mark.parametrize("frozen", [0, 1, 4, 6])
def test_frozen_blocks_run_without_a_graph_and_all_others_learn(frozen: int) -> None:
    support = tiny(frozen)
    carries_graph: list[bool] = []
    for block in support.encoder.blocks:
        block.register_forward_hook(lambda *a: carries_graph.append(a[2].requires_grad))
    tokens = support(torch.rand(2, 3, 32, 32))
    assert carries_graph == [False] * frozen + [True] * (6 - frozen)
    if frozen < 6:
        tokens.square().sum().backward()
    learns = {name for name, p in support.encoder.named_parameters() if p.grad is not None}
    expected = {
        name
        for name, _ in support.encoder.named_parameters()
        if frozen == 0
        or (name.startswith("norm.") and frozen < 6)
        or (name.startswith("blocks.") and int(name.split(".")[1]) >= frozen)
    }
    assert learns == expected
    assert {n for n, p in support.encoder.named_parameters() if p.requires_grad} == expected


def test_more_frozen_blocks_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match="7 blocks are to be frozen, but test_vit has 6"):
        tiny(7)
    with pytest.raises(ConfigError, match="frozen_blocks -1; 0 or more"):
        DinoSupportConfig(frozen_blocks=-1)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_from_a_local_file(tmp_path: Path, suffix: str) -> None:
    source, path = tiny(), tmp_path / f"weights{suffix}"
    state = source.encoder.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    torch.manual_seed(1)
    loaded = tiny(weights=path)
    photos = torch.rand(1, 3, 160, 160)
    assert not torch.equal(tiny()(photos), source(photos))
    torch.testing.assert_close(loaded(photos), source(photos))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "dino.safetensors"
    with pytest.raises(CheckpointError, match=r"FileNotFoundError.*dino\.safetensors"):
        tiny(weights=path)


def test_a_file_of_another_network_is_named(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file(nn.Linear(2, 2).state_dict(), path)
    said = r"other\.safetensors: the file has no cls_token, pos_embed.* and \d+ more"
    with pytest.raises(CheckpointError, match=said) as refused:
        tiny(weights=path)
    assert refused.value.path == path


def test_a_file_of_a_wider_network_is_named(tmp_path: Path) -> None:
    path = tmp_path / "wider.pth"
    state = tiny().encoder.state_dict() | {"norm.weight": torch.ones(99)}
    torch.save({"model": state}, path)
    with pytest.raises(CheckpointError, match=r"has another shape of norm\.weight; it is of"):
        tiny(weights=path)


def test_a_file_of_no_tensors_is_named(tmp_path: Path) -> None:
    path = tmp_path / "list.pth"
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match=r"expected a mapping of names to tensors.*list"):
        tiny(weights=path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "torn.safetensors"
    path.write_bytes(b"\x08")
    with pytest.raises(CheckpointError, match=r"test_vit from .*torn\.safetensors failed"):
        tiny(weights=path)


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "module.pth"
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(CheckpointError, match=r"weights of test_vit from .*module\.pth"):
        tiny(weights=path)


def test_an_unreachable_hub_names_the_model_and_the_ways_out() -> None:
    with pytest.raises(
        CheckpointError, match=r"weights of test_vit.r160_in1k from the hub failed(.|\n)*local file"
    ):
        DinoSupport(DinoSupportConfig(model="test_vit.r160_in1k", pretrained=True))


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"knows no model 'dinov9'.*list_models"):
        DinoSupport(DinoSupportConfig(model="dinov9"))


def test_a_network_without_patch_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="test_resnet is no vision transformer"):
        DinoSupport(DinoSupportConfig(model="test_resnet"))


@pytest.fixture
def backbone() -> YoloV8:
    return YoloV8(YoloV8Config(channels=(4, 8, 8), depths=(1, 1), strides=(8,)))


def statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: b.clone() for name, b in module.named_buffers()}


def test_photos_and_scenes_keep_batch_statistics_of_their_own(backbone: YoloV8) -> None:
    support = BackboneSupport(BackboneSupportConfig(stride=8), backbone)
    photos, scenes = torch.rand(6, 3, 32, 32), torch.randn(4, 3, 32, 32) * 3
    scenes_before, photos_before = statistics(backbone), statistics(support)
    support(photos, backbone)
    assert all(torch.equal(b, scenes_before[name]) for name, b in statistics(backbone).items())
    assert not any(torch.equal(b, photos_before[name]) for name, b in statistics(support).items())
    both = nn.ModuleList((support, backbone))
    expected = both.eval()[0](photos, backbone)
    both.train()
    for _ in range(20):
        backbone(scenes)
    both.eval()
    assert torch.equal(support(photos, backbone), expected)
    with_the_scenes = support.mix(backbone(photos)[8]).flatten(2).transpose(1, 2)
    assert (with_the_scenes - expected).abs().max() > 0.1


def test_the_backbone_learns_from_photos_and_exists_once(backbone: YoloV8) -> None:
    support = BackboneSupport(BackboneSupportConfig(stride=8), backbone)
    tokens = support(torch.rand(2, 3, 32, 32), backbone)
    assert tokens.shape == (2, 16, 8)
    tokens.square().sum().backward()
    assert all(p.grad is not None for p in backbone.parameters())
    assert {name.split(".")[0] for name, _ in support.named_parameters()} == {"mix"}


def test_a_level_that_the_backbone_does_not_give_is_refused(backbone: YoloV8) -> None:
    with pytest.raises(ConfigError, match=r"stride 16 is read, but the backbone gives \(8,\)"):
        BackboneSupport(BackboneSupportConfig(stride=16), backbone)


def test_pooling_gives_unit_shots_whose_mean_is_the_prototype() -> None:
    references = SupportPool(12, 8, parts=2)(torch.randn(4, 3, 10, 12))
    assert references.shots.shape == (4, 3, 8)
    assert references.tokens.shape == (4, 9, 8)
    torch.testing.assert_close(references.shots.norm(dim=-1), torch.ones(4, 3))
    mean = nn.functional.normalize(references.shots.mean(1), dim=-1)
    torch.testing.assert_close(references.prototypes, mean)


def test_pooling_attends_and_does_not_mind_the_order_of_places() -> None:
    pool, tokens = SupportPool(12, 8), torch.randn(1, 1, 10, 12)
    order = torch.randperm(10)
    torch.testing.assert_close(pool(tokens[:, :, order]).shots, pool(tokens).shots)
    nn.init.constant_(pool.attention.weight, 0)
    flat = pool(tokens).tokens[0, 0]
    expected = pool.value(pool.norm(tokens)).mean(2)[0, 0]
    torch.testing.assert_close(flat, expected)
