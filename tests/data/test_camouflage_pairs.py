"""Images paired with masks: every layout data sets come in, and everything that can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from surefoot.data.camouflage import LEAKED, find_pairs, find_test_sets, read_mask, read_picture
from surefoot.errors import ConfigError, DataError

CAM = "COD10K-CAM-1-Aquatic-3-Crab-{}"
NONCAM = "COD10K-NonCAM-2-Terrestrial-30-Dog-{}"


def image(path: Path, size: tuple[int, int] = (24, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(3).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def mask(path: Path, size: tuple[int, int] = (24, 16), value: int = 255) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros((size[1], size[0]), dtype=np.uint8)
    values[4:10, 5:15] = value
    Image.fromarray(values).save(path)
    return path


def pairs(images: Path, masks: Path, *stems: str) -> None:
    for stem in stems:
        image(images / f"{stem}.jpg")
        mask(masks / f"{stem}.png", value=0 if "NonCAM" in stem else 255)


def ids(found) -> list[str]:
    return [pair.id for pair in found]


@pytest.fixture
def cod10k(tmp_path) -> Path:
    """COD10K-v3 in small, with further kinds of truth beside the masks."""
    for half, start in (("Train", 1), ("Test", 5)):
        stems = [CAM.format(start), CAM.format(start + 1), NONCAM.format(start)]
        home = tmp_path / "COD10K-v3" / half
        pairs(home / "Image", home / "GT_Object", *stems)
        pairs(home / "Image", home / "GT_Edge", *stems)
    return tmp_path / "COD10K-v3"


def test_cod10k_as_distributed(cod10k) -> None:
    training = find_pairs(cod10k, split="train")
    assert ids(training) == [CAM.format(1), CAM.format(2)]
    assert training[0].mask == cod10k / "Train" / "GT_Object" / f"{CAM.format(1)}.png"
    assert training[0].super_class == "Aquatic"
    assert training.report.noncam == (NONCAM.format(1),)
    assert "COD10K-v3" in training.report.folders[0]
    tests = find_test_sets(cod10k)
    assert {name: ids(found) for name, found in tests.items()} == {
        "COD10K": [CAM.format(5), CAM.format(6)]
    }


@pytest.mark.parametrize("above", ["..", "."])
def test_the_folder_above_and_a_half_are_found_too(cod10k, above) -> None:
    assert len(find_pairs(cod10k / above, split="train")) == 2
    assert len(find_pairs(cod10k / "Test", split="test")) == 2


def test_non_camouflaged_images_come_with_empty_masks_where_asked_for(cod10k) -> None:
    everything = find_pairs(cod10k, split="train", noncam="include")
    assert ids(everything) == [CAM.format(1), CAM.format(2), NONCAM.format(1)]
    assert [pair.noncam for pair in everything] == [False, False, True]
    assert everything.report.clean
    (cod10k / "Train" / "GT_Object" / f"{NONCAM.format(1)}.png").unlink()
    assert find_pairs(cod10k, split="train", noncam="include")[2].mask is None


@pytest.mark.parametrize(
    ("training", "folder"), [("TrainDataset", "Imgs"), ("TrainValDataset", "Image")]
)
def test_the_layout_of_most_code_bases(tmp_path, training, folder) -> None:
    pairs(tmp_path / training / folder, tmp_path / training / "GT", CAM.format(1), "camourflage_1")
    for name in ("CAMO", "CHAMELEON", "COD10K", "NC4K"):
        home = tmp_path / "TestDataset" / name
        pairs(home / folder, home / "GT", f"{name}-7")
    assert ids(find_pairs(tmp_path, split="train")) == [CAM.format(1), "camourflage_1"]
    tests = find_test_sets(tmp_path)
    assert list(tests) == ["CAMO", "CHAMELEON", "COD10K", "NC4K"]
    assert ids(tests["NC4K"]) == ["NC4K-7"]
    assert find_test_sets(tmp_path / "TestDataset").keys() == tests.keys()


def test_the_layout_of_zoomnext(tmp_path) -> None:
    for half, mark, stem in (("Train", "TR", 1), ("Test", "TE", 2)):
        for name, text in (("COD10K", CAM), ("CAMO", "camourflage_{}")):
            home = tmp_path / half / f"{name}-{mark}"
            pairs(home / "Image", home / "Mask", text.format(stem))
    pairs(tmp_path / "Test/NC4K/Imgs", tmp_path / "Test/NC4K/GT", "2")
    assert ids(find_pairs(tmp_path, split="train")) == [CAM.format(1), "camourflage_1"]
    assert {name: ids(found) for name, found in find_test_sets(tmp_path).items()} == {
        "CAMO": ["camourflage_2"],
        "COD10K": [CAM.format(2)],
        "NC4K": ["2"],
    }


def test_the_layout_of_birefnet(tmp_path) -> None:
    for folder, stem in (
        ("TR-COD10K", CAM.format(1)),
        ("TR-CAMO", "camourflage_1"),
        ("TE-COD10K", CAM.format(2)),
        ("CHAMELEON", "animal-1"),
        ("NC4K", "2"),
    ):
        pairs(tmp_path / folder / "im", tmp_path / folder / "gt", stem)
    assert ids(find_pairs(tmp_path, split="train")) == [CAM.format(1), "camourflage_1"]
    assert list(find_test_sets(tmp_path)) == ["CHAMELEON", "COD10K", "NC4K"]


def test_camo_as_released_has_one_folder_of_masks(tmp_path) -> None:
    home = tmp_path / "CAMO-V.1.0-CVIU2019"
    pairs(home / "Images" / "Train", home / "GT", "camourflage_00001")
    pairs(home / "Images" / "Test", home / "GT", "camourflage_01001")
    training = find_pairs(tmp_path, split="train")
    assert ids(training) == ["camourflage_00001"]
    assert training.report.clean, "masks of the other half were taken for orphans"
    assert ids(find_test_sets(tmp_path)["CAMO"]) == ["camourflage_01001"]


def test_parquet_is_refused_with_what_to_do(tmp_path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"Parquet files, which are not read.*GT/NAME\.png"):
        find_pairs(tmp_path, split="train")


def test_folders_named_outright(tmp_path) -> None:
    pairs(tmp_path / "photos", tmp_path / "truth" / "objects", "owl")
    found = find_pairs(tmp_path, split="test", images="photos", masks="truth/objects")
    assert (ids(found), found.split) == (["owl"], "test")
    with pytest.raises(ConfigError, match=r"only images= is given; images= and masks= go together"):
        find_pairs(tmp_path, split="test", images="photos")
    with pytest.raises(DataError, match=r"photo is no folder"):
        find_pairs(tmp_path, split="test", images="photo", masks="truth")


def test_bare_folders_are_of_the_split_that_is_asked_for(tmp_path) -> None:
    pairs(tmp_path / "Imgs", tmp_path / "GT", "owl")
    for split in ("train", "test"):
        assert find_pairs(tmp_path, split=split).split == split


def test_several_sets_beside_each_other_do_not_mix_up_plain_numbers(tmp_path) -> None:
    for name in ("mine-TR", "yours-TR"):
        pairs(tmp_path / name / "Imgs", tmp_path / name / "GT", "1", CAM.format(9))
    found = find_pairs(tmp_path, split="train")
    assert ids(found) == [CAM.format(9), "mine/1", "yours/1"]
    assert found.report.repeated == (CAM.format(9),)


def test_the_two_stems_of_both_halves_are_left_out_of_training_alone(tmp_path) -> None:
    for half in ("Train", "Test"):
        pairs(tmp_path / half / "Image", tmp_path / half / "GT_Object", *LEAKED, CAM.format(1))
    training = find_pairs(tmp_path, split="train")
    assert ids(training) == [CAM.format(1)]
    assert training.report.leaked == tuple(sorted(LEAKED))
    assert len(find_pairs(tmp_path, split="train", drop_leaked=False)) == 3
    assert len(find_test_sets(tmp_path)["COD10K"]) == 3


def test_stems_pair_whatever_their_case_and_hidden_files_are_passed_over(tmp_path) -> None:
    image(tmp_path / "Imgs" / "Moth.JPEG")
    mask(tmp_path / "GT" / "moth.bmp", value=0)
    mask(tmp_path / "GT" / "MOTH.png")
    for name in ("Imgs/._Moth.jpg", "Imgs/Thumbs.db", "GT/.DS_Store", "GT/._moth.png"):
        (tmp_path / name).write_bytes(b"\0")
    found = find_pairs(tmp_path, split="train")
    assert (ids(found), found.report.clean) == (["Moth"], True)
    assert found[0].mask is not None
    assert found[0].mask.name == "MOTH.png"


def test_everything_that_is_wrong_is_told(tmp_path) -> None:
    images, masks = tmp_path / "Imgs", tmp_path / "GT"
    pairs(images, masks, "fine", "odd", "grey", "ones", "blank", "torn", "fake", "turned")
    image(images / "lone.jpg")
    image(images / "fine.bmp")
    mask(masks / "orphan.png")
    mask(masks / "odd.png", size=(12, 8))
    mask(masks / "turned.png", size=(16, 24))
    mask(masks / "grey.png", value=200)
    mask(masks / "ones.png", value=1)
    mask(masks / "blank.png", value=0)
    torn = image(images / "torn.jpg", size=(200, 200)).read_bytes()
    (images / "torn.jpg").write_bytes(torn[: len(torn) // 2])
    (masks / "fake.png").write_text("not an image")
    found = find_pairs(tmp_path, split="train")
    report = found.report
    assert ids(found) == ["blank", "fine", "grey", "odd", "ones", "turned"]
    assert report.images_without_mask == ("lone",)
    assert report.masks_without_image == ("orphan",)
    assert report.repeated == ("fine.bmp",)
    assert report.empty_masks == ("blank",)
    assert report.sizes_differ == ("odd (24x16 and 12x8)", "turned (24x16 and 16x24) (turned?)")
    assert report.other_values == ("grey (200)", "ones (1)")
    assert [said.split(": ")[0] for said in report.unreadable] == [
        str(masks / "fake.png"),
        str(images / "torn.jpg"),
    ]
    assert not report.clean
    text = str(report)
    assert text.startswith(f"6 pairs from {images} and {masks}")
    assert "  pairs that cannot be read, left out: 2 (" in text
    assert len(text.splitlines()) == 8


def test_headers_alone_are_quicker_and_say_less(tmp_path) -> None:
    pairs(tmp_path / "Imgs", tmp_path / "GT", "grey", "torn")
    mask(tmp_path / "GT" / "grey.png", value=200)
    torn = image(tmp_path / "Imgs" / "torn.jpg", size=(200, 200)).read_bytes()
    (tmp_path / "Imgs" / "torn.jpg").write_bytes(torn[: len(torn) // 2])
    assert len(find_pairs(tmp_path, split="train", decode=False)) == 2


def test_nothing_usable_says_what_was_looked_for(tmp_path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(DataError, match=r"no known layout.*TrainDataset/\{Imgs,GT\}.*pictures"):
        find_pairs(tmp_path, split="train")
    with pytest.raises(DataError, match=r"absent: no such folder"):
        find_pairs(tmp_path / "absent", split="train")
    image(tmp_path / "Imgs" / "a.jpg")
    mask(tmp_path / "GT" / "b.png")
    with pytest.raises(
        DataError, match=r"not one usable pair(.|\n)*images without a mask, left out: 1 \(a\)"
    ):
        find_pairs(tmp_path, split="train")


def test_a_training_folder_is_no_test_set(tmp_path) -> None:
    pairs(tmp_path / "TrainDataset" / "Imgs", tmp_path / "TrainDataset" / "GT", "owl")
    with pytest.raises(DataError, match=r"only pairs of the other split \(TrainDataset\)"):
        find_test_sets(tmp_path)


@pytest.mark.parametrize("wrong", [{"split": "val"}, {"split": "train", "noncam": "only"}])
def test_settings_that_do_not_exist_are_refused(tmp_path, wrong) -> None:
    pairs(tmp_path / "Imgs", tmp_path / "GT", "owl")
    with pytest.raises(ConfigError, match="expected one of"):
        find_pairs(tmp_path, **wrong)


def test_masks_are_read_as_nought_and_one(tmp_path) -> None:
    for value, share in ((255, 60), (128, 60), (127, 0), (1, 60), (0, 0)):
        assert read_mask(mask(tmp_path / "m.png", value=value)).sum() == share
    one_bit = Image.open(mask(tmp_path / "m.png")).convert("1")
    one_bit.save(tmp_path / "bit.png")
    assert read_mask(tmp_path / "bit.png").sum() == 60
    colour = Image.open(tmp_path / "m.png").convert("RGB")
    colour.save(tmp_path / "colour.png")
    assert read_mask(tmp_path / "colour.png").sum() == 60


def test_an_orientation_in_the_file_is_ignored(tmp_path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(image(tmp_path / "a.png")).save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").shape == (16, 24, 3)


def test_a_damaged_file_is_named(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG")
    for read in (read_picture, read_mask):
        with pytest.raises(DataError, match=r"a\.png: .*Replace or remove it"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "count"), [("CAMO", 165), ("MoCA-Mask", 20), ("SOD-BSDS", 18), ("magnetic_tile", 25)]
)
def test_real_pairs(shared, name, count) -> None:
    found = find_pairs(shared / "data" / "segment" / name, split="train")
    assert len(found) == count
    assert found.report.clean, str(found.report)
