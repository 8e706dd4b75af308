"""The segmentation model: sizes, what depends on what, what learns, and that it can."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from surefoot.errors import ConfigError, UsageError
from surefoot.losses import segmentation_terms
from surefoot.models.camouflage import CamouflageNet, CamouflageOutput


def tiny(experts: int = 0, channels: int = 16) -> CamouflageNet:
    return CamouflageNet("tiny", channels=channels, experts=experts)


def parameters_of(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def textures(count: int, side: int = 64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Stripes across, and in a disc of random place and size stripes along: same mean, same
    contrast.
    """
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    images, masks = [], []
    for _ in range(count):
        cy, cx, radius, phase = torch.rand(4, generator=g).tolist()
        centre = [side * (0.3 + 0.4 * c) for c in (cy, cx)]
        disc = (y - centre[0]).hypot(x - centre[1]) < side * (0.12 + 0.12 * radius)
        wave = torch.where(disc, x, y) * 1.3 + 6 * phase
        noise = 0.1 * torch.randn(3, side, side, generator=g)
        images.append((0.5 + 0.2 * wave.sin() + noise).clamp(0, 1))
        masks.append(disc[None].float())
    return torch.stack(images), torch.stack(masks)


def train(model: CamouflageNet, images: Tensor, masks: Tensor, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses: list[float] = []
    for _ in range(steps):
        loss = segmentation_terms(model(images), masks).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_the_default_is_pvt_v2_b2_with_less_than_30_million_parameters() -> None:
    with torch.device("meta"):
        model = CamouflageNet()
    assert model.backbone.channels == (64, 128, 320, 512)
    assert parameters_of(model.backbone) == 24_849_856
    assert parameters_of(model) - parameters_of(model.backbone) == 454_342
    assert parameters_of(model) < 30_000_000


def test_the_tiny_model_is_tiny_and_experts_do_not_break_the_limit() -> None:
    assert parameters_of(tiny()) < 200_000
    added = parameters_of(CamouflageNet("tiny", channels=64, experts=6)) - parameters_of(
        tiny(channels=64)
    )
    assert added < 200_000


def test_training_gives_masks_on_the_way_and_an_outline() -> None:
    said = tiny()(torch.rand(2, 3, 64, 96))
    assert isinstance(said, CamouflageOutput)
    assert said.mask.shape == (2, 1, 64, 96)
    assert [tuple(m.shape[-2:]) for m in said.deep] == [(4, 6), (8, 12), (16, 24), (32, 48)]
    assert said.edge is not None
    assert said.edge.shape == (2, 1, 32, 48)
    assert said.auxiliary == {}


def test_evaluation_gives_no_outline_and_no_losses() -> None:
    said = tiny(experts=3).eval()(torch.rand(1, 3, 64, 64))
    assert said.edge is None
    assert said.auxiliary == {}
    assert len(said.deep) == 4


@pytest.mark.parametrize("name", ["tiny", "test_convnext"])
@pytest.mark.parametrize(("height", "width"), [(33, 65), (100, 70), (64, 64), (17, 200)])
def test_images_of_any_size_get_a_mask_of_that_size(name: str, height: int, width: int) -> None:
    model = CamouflageNet(name, channels=8).eval()
    said = model(torch.rand(2, 3, height, width))
    assert said.mask.shape == (2, 1, height, width)
    assert said.mask.isfinite().all()


@pytest.mark.parametrize("model", ["tiny", "tiny with experts", "test_mambaout"])
def test_an_image_does_not_depend_on_its_neighbours(model: str) -> None:
    name, _, experts = model.partition(" with ")
    net = CamouflageNet(name, channels=16, experts=4 if experts else 0)
    train_like = torch.rand(4, 3, 64, 64)
    for _ in range(3):
        net(train_like)  # statistics that are not those of a fresh model
    net.eval()
    # One ordinary image, and one that is far from it.
    images = torch.stack((torch.rand(3, 64, 64), 50 * torch.rand(3, 64, 64)))
    together = net(images)
    for i in range(2):
        alone = net(images[i : i + 1])
        torch.testing.assert_close(together.mask[i : i + 1], alone.mask, rtol=1e-4, atol=1e-4)
        for all_of_them, one in zip(together.deep, alone.deep, strict=True):
            torch.testing.assert_close(all_of_them[i : i + 1], one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["tiny", "test_convnext"])
@pytest.mark.parametrize("experts", [0, 3])
def test_every_parameter_is_part_of_every_backward_pass(name: str, experts: int) -> None:
    model = CamouflageNet(name, channels=16, experts=experts)
    images, masks = textures(4)
    segmentation_terms(model(images), masks).total.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == []
    still = {n.split(".")[0] for n, p in model.named_parameters() if not p.grad.any()}
    assert not still - {"experts"}, "only an expert that no image was given may have gradient 0"


def test_each_mask_corrects_the_one_before_it() -> None:
    """With corrections of 0, all masks are the first one, enlarged."""
    model = tiny().eval()
    for part in (*model.steps, model.finish):
        nn.init.zeros_(part.correct.weight)
        nn.init.zeros_(part.correct.bias)
    said = model(torch.rand(1, 3, 64, 64))
    for finer in (*said.deep[1:], said.mask):
        assert finer.shape[-1] > said.deep[0].shape[-1]
        low, high = said.deep[0].min(), said.deep[0].max()
        assert low <= finer.min() <= finer.max() <= high


def test_logits_stay_float32_under_autocast() -> None:
    model = tiny(experts=3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        said = model(torch.rand(2, 3, 64, 64))
    assert said.edge is not None
    tensors = (said.mask, *said.deep, said.edge, said.auxiliary["balance"])
    assert {t.dtype for t in tensors} == {torch.float32}
    segmentation_terms(said, torch.ones(2, 1, 64, 64)).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_output_moves_whole() -> None:
    said = tiny(experts=2)(torch.rand(1, 3, 32, 32)).to("meta")
    assert said.edge is not None
    moved = (said.mask, *said.deep, said.edge, *said.auxiliary.values())
    assert all(t.is_meta for t in moved)
    assert len(moved) == 7


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (0, 3, 64, 64), (1, 3, 0, 64)])
def test_what_is_no_batch_of_images_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"segmenting: images are \(.*expected B 3 H W"):
        tiny()(torch.zeros(shape))


def test_settings_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"channels 15; expected an even number"):
        tiny(channels=15)
    with pytest.raises(ConfigError, match=r"1 experts, of which an image is given 2"):
        tiny(experts=1)
    with pytest.raises(ConfigError, match=r"'tiny' has no published weights"):
        CamouflageNet("tiny", pretrained=Path("weights.pth"))


@pytest.mark.parametrize("experts", [0, 3])
def test_a_tiny_model_learns_eight_camouflaged_discs_by_heart(experts: int) -> None:
    images, masks = textures(8)
    model = tiny(experts)
    losses = train(model, images, masks, 30)
    assert losses[-1] < losses[0] / 3
    found = model.eval()(images).mask > 0
    truth = masks > 0
    iou = (found & truth).sum((1, 2, 3)) / (found | truth).sum((1, 2, 3))
    assert float(iou.mean()) > 0.7
