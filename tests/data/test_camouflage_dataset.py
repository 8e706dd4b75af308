"""Items made of files: what they hold, that image and mask move together, exact repetition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from surefoot.data.camouflage import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Augment,
    CamouflageDataset,
    EvaluationItems,
    Pair,
    PairList,
    PairReport,
    collate_evaluation,
    find_pairs,
    hold_out,
    mean_mask,
    normalise,
)
from surefoot.data.camouflage.augment import augment_pair, resize_pair
from surefoot.errors import ConfigError

SIZE = 48
STILL = Augment(
    flip=0, vertical_flip=0, scale=(1, 1), rotate=0, brightness=0, contrast=0, saturation=0
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> PairList:
    """Six images of different sizes: a grey ground, and a white object where the mask says."""
    root = tmp_path_factory.mktemp("pairs")
    for number in range(6):
        height, width = 60 + 7 * number, 90 - 5 * number
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[10 + number : 40, 20 : 50 + number] = 255
        for folder, values in (
            ("Imgs", np.repeat(np.maximum(mask, 60)[..., None], 3, -1)),
            ("GT", mask),
        ):
            (root / folder).mkdir(exist_ok=True)
            Image.fromarray(values).save(root / folder / f"{number}.png")
    return find_pairs(root, split="train")


def brightness(image: torch.Tensor) -> torch.Tensor:
    return image.mean(0)


def test_an_item_is_what_it_says(pairs) -> None:
    item = CamouflageDataset(pairs, size=SIZE, augment=None)[2]
    assert (item["image"].shape, item["image"].dtype) == ((3, SIZE, SIZE), torch.float32)
    assert (item["mask"].shape, item["mask"].dtype) == ((1, SIZE, SIZE), torch.float32)
    assert (item["id"], item["index"]) == ("2", 2)
    assert set(item["mask"].unique().tolist()) == {0.0, 1.0}
    inside = brightness(item["image"])[item["mask"][0] > 0]
    assert inside.mean() > 0.97, "the object is white and lies under its mask"


def test_normalisation_is_that_of_most_backbones() -> None:
    grey = torch.full((2, 3, 2, 2), 0.2)
    expected = [(0.2 - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    torch.testing.assert_close(normalise(grey)[1, :, 0, 0], torch.tensor(expected))


@pytest.mark.parametrize("seed", range(12))
def test_image_and_mask_move_together(pairs, seed) -> None:
    how = Augment(rotate=30, scale=(0.6, 1.4), brightness=0, contrast=0, saturation=0)
    item = CamouflageDataset(pairs, size=96, augment=how, seed=seed)[seed % 6]
    bright, inside = brightness(item["image"]) > 0.61, item["mask"][0] > 0
    assert set(item["mask"].unique().tolist()) <= {0.0, 1.0}
    overlap = (bright & inside).sum() / (bright | inside).sum()
    assert overlap > 0.93, "the mask is not where the object is"


def test_a_shrunk_mask_lies_on_the_middle_of_its_object() -> None:
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    mask[8:40, 16:56] = 1
    _, small = resize_pair(mask.expand(3, -1, -1), mask, 16)
    assert small.nonzero().float().mean(0).tolist() == [(2 + 9) / 2, (4 + 13) / 2]
    assert small.sum() == 8 * 10


def test_nothing_changed_is_a_resize(pairs) -> None:
    plain = CamouflageDataset(pairs, size=SIZE, augment=None)
    still = CamouflageDataset(pairs, size=SIZE, augment=STILL)
    for before, after in zip(plain, still, strict=True):
        assert torch.equal(before["image"], after["image"])
        assert torch.equal(before["mask"], after["mask"])


@given(
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    seed=st.integers(0, 2**31),
    rotate=st.floats(0, 45),
    scale=st.tuples(st.floats(0.3, 1), st.floats(1, 3)),
)
def test_any_image_can_be_augmented(height, width, seed, rotate, scale) -> None:
    random = np.random.default_rng(seed)
    image = torch.from_numpy(random.integers(0, 256, (3, height, width), dtype=np.uint8))
    mask = torch.from_numpy(random.integers(0, 2, (height, width), dtype=np.uint8))
    how = Augment(rotate=rotate, scale=scale)
    changed, moved = augment_pair(image, mask, size=32, random=random, how=how)
    assert (changed.shape, changed.dtype) == ((3, 32, 32), torch.uint8)
    assert (moved.shape, moved.dtype) == ((32, 32), torch.uint8)
    assert int(moved.max()) <= 1


def test_what_lies_outside_is_mirrored_not_black() -> None:
    white = torch.full((3, 40, 40), 255, dtype=torch.uint8)
    full = torch.ones(40, 40, dtype=torch.uint8)
    how = Augment(scale=(0.5, 0.5), rotate=45, brightness=0, contrast=0, saturation=0)
    random = np.random.default_rng(0)
    image, mask = augment_pair(white, full, size=32, random=random, how=how)
    assert int(image.min()) == 255
    assert int(mask.min()) == 1


def test_colour_changes_the_image_alone(pairs) -> None:
    how = Augment(flip=0, vertical_flip=0, scale=(1, 1), rotate=0)
    plain = CamouflageDataset(pairs, size=SIZE, augment=None)[1]
    tinted = CamouflageDataset(pairs, size=SIZE, augment=how, seed=1)[1]
    assert torch.equal(plain["mask"], tinted["mask"])
    assert not torch.equal(plain["image"], tinted["image"])


def test_an_item_depends_on_seed_epoch_and_index_alone(pairs) -> None:
    data = CamouflageDataset(pairs, size=SIZE, augment=Augment(), seed=5)
    first = data[3]["image"]
    _ = data[0], torch.rand(3), np.random.rand()
    assert torch.equal(data[3]["image"], first)
    data.set_epoch(1)
    assert not torch.equal(data[3]["image"], first)
    data.set_epoch(0)
    assert torch.equal(data[3]["image"], first)
    other = CamouflageDataset(pairs, size=SIZE, augment=Augment(), seed=6)
    assert not torch.equal(other[3]["image"], first)


def test_torchs_own_random_numbers_are_left_alone(pairs) -> None:
    state = torch.get_rng_state()
    _ = CamouflageDataset(pairs, size=SIZE, augment=Augment(), seed=5)[3]
    assert torch.equal(torch.get_rng_state(), state)


def test_workers_change_nothing_in_any_epoch(pairs) -> None:
    seen = []
    for workers in (0, 2):
        data = CamouflageDataset(pairs, size=SIZE, augment=Augment(), seed=5, cache_mb=1)
        loader = DataLoader(data, batch_size=4, num_workers=workers, persistent_workers=workers > 0)
        batches = []
        for epoch in range(2):
            data.set_epoch(epoch)
            batches += list(loader)
        seen.append(batches)
    assert [batch["id"] for batch in seen[0]] == [["0", "1", "2", "3"], ["4", "5"]] * 2
    for alone, worked in zip(*seen, strict=True):
        assert alone["id"] == worked["id"]
        for name in ("image", "mask", "index"):
            assert torch.equal(alone[name], worked[name])
    assert not torch.equal(seen[0][0]["image"], seen[0][2]["image"])


def test_evaluation_keeps_the_resolution_of_the_mask(pairs) -> None:
    data = CamouflageDataset(pairs, size=SIZE, augment=Augment(), seed=5)
    item = data.evaluation_item(1)
    assert item["image"].shape == (3, SIZE, SIZE)
    assert (item["mask"].shape, item["mask"].dtype) == ((67, 85), torch.uint8)
    assert torch.equal(item["image"], CamouflageDataset(pairs, size=SIZE, augment=None)[1]["image"])
    loader = DataLoader(EvaluationItems(data), batch_size=4, collate_fn=collate_evaluation)
    first, last = loader
    assert first["image"].shape == (4, 3, SIZE, SIZE)
    assert [mask.shape[0] for mask in (*first["mask"], *last["mask"])] == [60, 67, 74, 81, 88, 95]
    assert last["id"] == ["4", "5"]


def test_a_cache_cannot_be_written_into(pairs) -> None:
    data = CamouflageDataset(pairs, size=SIZE, augment=None, cache_mb=10)
    data.evaluation_item(0)["mask"].zero_()
    assert data.evaluation_item(0)["mask"].any()


def test_an_image_of_another_size_is_brought_to_its_mask(tmp_path, pairs) -> None:
    small = tmp_path / "small.png"
    Image.open(pairs[0].image).resize((45, 30)).save(small)
    odd = PairList("train", (Pair(id="odd", image=small, mask=pairs[0].mask),), PairReport())
    image, mask = CamouflageDataset(odd, size=SIZE, augment=None).original(0)
    assert image.shape[:2] == mask.shape == (60, 90)


def test_no_mask_file_is_an_empty_mask(pairs) -> None:
    bare = PairList("train", (Pair(id="rock", image=pairs[0].image, mask=None),), PairReport())
    data = CamouflageDataset(bare, size=SIZE, augment=Augment(), seed=0)
    assert not data[0]["mask"].any()
    assert data.evaluation_item(0)["mask"].shape == (60, 90)


def test_the_mean_mask_is_the_mean(pairs) -> None:
    predict = mean_mask(CamouflageDataset(pairs, size=SIZE, augment=Augment(), seed=0), size=SIZE)
    masks = [item["mask"] for item in CamouflageDataset(pairs, size=SIZE, augment=None)]
    found = predict(np.zeros((SIZE, SIZE, 3), dtype=np.uint8))
    np.testing.assert_allclose(found, torch.stack(masks).mean(0)[0], atol=1e-6)
    assert predict(np.zeros((30, 50, 3), dtype=np.uint8)).shape == (30, 50)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"size": 8}, "size is 8; at least 16"),
        ({"seed": -1}, "seed is -1; an integer, 0 or more"),
        ({"pairs": PairList("train", (), PairReport())}, "the list of pairs is empty"),
    ],
)
def test_settings_that_cannot_work_are_refused(pairs, change, said) -> None:
    with pytest.raises(ConfigError, match=said):
        CamouflageDataset(**{"pairs": pairs, "size": SIZE, "augment": None, **change})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scale": (1.2, 0.8)}, "expected 0 < smallest <= largest"),
        ({"rotate": 90}, "Augment.rotate is 90; expected 0 to 45 degrees"),
        ({"flip": 2}, "Augment.flip is 2; expected 0 to 1"),
    ],
)
def test_changes_that_cannot_work_are_refused(change, said) -> None:
    with pytest.raises(ConfigError, match=said):
        Augment(**change)


def test_an_index_that_is_not_there(pairs) -> None:
    data = CamouflageDataset(pairs, size=SIZE, augment=None)
    with pytest.raises(IndexError, match="item 6: there are 6, numbered from 0"):
        _ = data[6]
    with pytest.raises(ConfigError, match="epochs count from 0"):
        data.set_epoch(-1)


def test_real_photographs(shared) -> None:
    training, held = hold_out(find_pairs(shared / "data/segment/CAMO", split="train"), seed=1)
    assert (len(training), len(held)) == (149, 16)
    data = CamouflageDataset(training, size=96, augment=Augment(), seed=0)
    items = [data[index] for index in range(0, 149, 15)]
    share = float(torch.stack([item["mask"] for item in items]).mean())
    assert 0.03 < share < 0.4
    assert all(torch.isfinite(item["image"]).all() for item in items)
