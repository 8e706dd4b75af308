"""Procedural camouflage: a function of its seed, hidden from pixels, and not from structure."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from surefoot.data.camouflage import (
    ProceduralCamouflage,
    centre_gaussian,
    colour_saliency,
    nothing,
    otsu,
)
from surefoot.data.camouflage.procedural import hidden_object
from surefoot.data.camouflage.silhouettes import HELD_OUT_SILHOUETTES, SILHOUETTES, silhouette
from surefoot.data.camouflage.textures import HELD_OUT_TEXTURES, TEXTURES, Process, smooth, texture
from surefoot.errors import ConfigError

SIZE = 64


def made(**change) -> ProceduralCamouflage:
    return ProceduralCamouflage(**{"length": 8, "size": SIZE, "seed": 4, **change})


def equal(a, b) -> bool:
    return all(torch.equal(a[name], b[name]) for name in ("image", "mask"))


def test_an_item_is_what_the_data_set_of_files_gives() -> None:
    item = made()[5]
    assert (item["image"].shape, item["image"].dtype) == ((3, SIZE, SIZE), torch.float32)
    assert (item["mask"].shape, item["mask"].dtype) == ((1, SIZE, SIZE), torch.float32)
    assert item["id"] == "procedural-train-4-5"
    item = made().evaluation_item(5)
    assert (item["mask"].shape, item["mask"].dtype) == ((SIZE, SIZE), torch.uint8)


def test_the_same_seed_gives_the_same_images_in_any_process() -> None:
    here, again = made(), made()
    loaded = next(iter(DataLoader(again, batch_size=8, num_workers=2)))
    for index, item in enumerate(here):
        assert torch.equal(item["image"], loaded["image"][index])
    assert not equal(here[0], here[1])
    assert not equal(here[0], made(seed=5)[0])


def test_epochs_repeat_images_unless_fresh_ones_are_asked_for() -> None:
    for fresh in (False, True):
        data = made(fresh=fresh)
        first = data[2]
        data.set_epoch(1)
        assert equal(data[2], first) != fresh
        assert (data[2]["id"] == first["id"]) != fresh


def test_no_two_splits_share_an_image() -> None:
    found = [made(split=split)[0] for split in ("train", "validation", "test", "novel")]
    assert not any(equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_textures_and_outlines_are_held_out() -> None:
    assert not set(TEXTURES) & set(HELD_OUT_TEXTURES)
    assert not set(SILHOUETTES) & set(HELD_OUT_SILHOUETTES)


@pytest.mark.parametrize("family", [*SILHOUETTES, *HELD_OUT_SILHOUETTES])
def test_an_outline_keeps_to_its_bounds(family) -> None:
    for seed in range(20):
        mask = silhouette(np.random.default_rng(seed), family, 48, (0.05, 0.28))
        assert 0.05 <= mask.mean() <= 0.28
    with pytest.raises(ConfigError, match=r"no .* that covers 0\.3 to 0\.3 of 48 x 48"):
        silhouette(np.random.default_rng(0), family, 48, (0.3, 0.3))


@pytest.mark.parametrize("family", [*TEXTURES, *HELD_OUT_TEXTURES])
def test_a_texture_is_a_standard_draw_of_its_process(family) -> None:
    random = np.random.default_rng(1)
    process = Process.draw(random, family, SIZE)
    first, second = texture(random, process, SIZE), texture(random, process, SIZE)
    assert abs(first.mean()) < 1e-9
    assert abs(first.std() - 1) < 1e-9
    assert abs((first * second).mean()) < 0.3, "two draws are two textures"


def test_an_object_is_of_another_process_than_its_ground() -> None:
    random = np.random.default_rng(2)
    turns, ratios = [], []
    for _ in range(300):
        ground = Process.draw(random, "grain", 96)
        other = ground.changed(random)
        turns.append(abs(np.degrees(other.angle - ground.angle)))
        ratios.append(max(other.frequency / ground.frequency, ground.frequency / other.frequency))
        assert 1.9 <= 1 / other.frequency <= 25
    turned, scaled = np.array(turns) > 1, np.array(ratios) > 1.01
    assert (turned | scaled).all()
    assert np.array(turns)[turned].min() >= 45
    assert np.array(ratios)[scaled].min() >= 1.5
    assert turned.mean() > 0.6
    assert scaled.mean() > 0.45


def test_brightness_does_not_give_the_object_away() -> None:
    """Inside and outside differ no more than under the mask of another image: by light alone."""
    made = [hidden_object(np.random.default_rng([7, index]), 96) for index in range(40)]

    def differences(shift: int) -> tuple[np.ndarray, np.ndarray]:
        found = []
        for index, (image, _) in enumerate(made):
            grey = image.mean(-1)
            soft = smooth(made[(index + shift) % 40][1].astype(float), 1.5)
            core, far = grey[soft > 0.95], grey[soft < 0.05]
            found.append(((core.mean() - far.mean()) / grey.std(), core.std() / far.std()))
        return np.array(found).T

    brighter, rougher = differences(0)
    elsewhere = np.concatenate([differences(shift)[0] for shift in (1, 2, 3)])
    assert abs(brighter.mean()) < 0.12
    assert np.abs(brighter).mean() < 1.3 * np.abs(elsewhere).mean()
    assert 0.85 < np.median(rougher) < 1.1


@pytest.mark.parametrize("baseline", [nothing, otsu, colour_saliency, centre_gaussian])
def test_no_trivial_prediction_finds_it(baseline) -> None:
    overlaps = []
    for index in range(40):
        image, mask = made(split="test").original(index)
        found = baseline(image)
        assert (found.shape, found.dtype) == (mask.shape, np.float32)
        assert 0 <= found.min() <= found.max() <= 1
        both = ((found >= 0.5) & (mask > 0)).sum()
        overlaps.append(both / max(((found >= 0.5) | (mask > 0)).sum(), 1))
    assert np.mean(overlaps) < 0.3


def test_otsu_finds_what_does_stand_out() -> None:
    image = np.full((20, 30, 3), 90, dtype=np.uint8)
    image[5:9, 6:16] = 30
    assert otsu(image).nonzero()[0].size == 40
    assert otsu(image)[5:9, 6:16].all()
    assert not otsu(np.full((4, 4, 3), 9, dtype=np.uint8)).any()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"length": 0}, "0 images of 64 pixels; at least 1 of 32"),
        ({"size": 24}, "8 images of 24 pixels"),
        ({"split": "held"}, "split is 'held'; expected one of"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, said) -> None:
    with pytest.raises(ConfigError, match=said):
        made(**change)
