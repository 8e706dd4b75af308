"""Where images and masks lie in the layouts that camouflage data sets are handed on in.

    COD10K-v3     {Train,Test}/{Image,GT_Object}
    TrainDataset  TrainDataset/{Imgs,GT}, TestDataset/<set>/{Imgs,GT}
    ZoomNeXt      Train/<set>-TR/{Image,Mask}, Test/<set>-TE/{Image,Mask}
    BiRefNet      TR-<set>/{im,gt}, TE-<set>/{im,gt}, CHAMELEON/{im,gt}, NC4K/{im,gt}
    CAMO          Images/{Train,Test} and one GT for both
    folders       {Imgs,GT} alone, without a split

Each may lie in the folder named or up to two below it, several beside each other. Upper and lower
case are one, and Imgs, Image, Images, img and im (GT_Object, GT, Mask and Masks) are one in all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from surefoot.errors import ConfigError, DataError

__all__ = ["Source", "Split", "find_sources"]

Split = Literal["train", "test"]
"""What pairs are for: no validation and no choice of a checkpoint may look at ``"test"``."""

_IMAGES = ("imgs", "image", "images", "img", "im")
_MASKS = ("gt_object", "gt", "mask", "masks", "gts")
_HALVES: dict[str, Split] = {
    "train": "train",
    "traindataset": "train",
    "trainvaldataset": "train",
    "test": "test",
    "testdataset": "test",
}
_MARKS: dict[str, Split] = {"tr": "train", "te": "test"}
_SETS = {name.lower(): name for name in ("COD10K", "CAMO", "CHAMELEON", "NC4K")}
_TEST_ONLY = ("CHAMELEON", "NC4K")
_DEPTH = 2
_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class Source:
    """A folder of images and the one that holds their masks."""

    layout: str
    """Which of the layouts it was found in."""
    split: Split
    name: str
    """Data set: COD10K, CAMO, CHAMELEON, NC4K, or what its folder is called."""
    images: Path
    masks: Path
    others: tuple[Path, ...] = ()
    """Further folders whose masks lie in ``masks`` as well."""


def find_sources(root: Path, split: Split) -> tuple[Source, ...]:
    """The folders of a split, in whichever layout they are.

    Args:
        root: the folder that was unpacked, or one of its halves.
        split: which half. A bare pair of folders has no split and is taken for the one asked for.

    Raises:
        ConfigError: there is no such split.
        DataError: no such folder, or none of the layouts is in it; the message says what is there.
    """
    if split not in get_args(Split):
        raise ConfigError(f"find_pairs: split is {split!r}; expected one of {get_args(Split)}.")
    if not root.is_dir():
        raise DataError(f"Looking for image and mask pairs in {root}: no such folder.", path=root)
    found = list(_search(root, _DEPTH))
    if not found and (bare := _bare(root)):
        return (_source("folders", split, root.name, bare),)
    mine = tuple(source for source in found if source.split == split)
    if not mine:
        raise _nothing(root, split, found)
    return mine


def _search(home: Path, depth: int) -> Iterator[Source]:
    if half := _HALVES.get(home.name.lower()):
        here = list(_half(home, half))
        if here:
            yield from here
            return
    claimed: set[Path] = set()
    for child in _folders(home):
        for source in _recognised(child):
            claimed.add(child)
            yield source
    raw = list(_raw_camo(home))
    yield from raw
    if depth and not raw:
        for child in _folders(home):
            if child not in claimed:
                yield from _search(child, depth - 1)


def _recognised(folder: Path) -> Iterator[Source]:
    """A half of a data set, or a set whose own name says which half it is."""
    if half := _HALVES.get(folder.name.lower()):
        yield from _half(folder, half)
        return
    name, mark = _set_name(folder.name)
    split = mark or ("test" if name in _TEST_ONLY else None)
    if split and (bare := _bare(folder)):
        yield _source("BiRefNet", split, name, bare)


def _half(folder: Path, split: Split) -> Iterator[Source]:
    """A training or test folder that holds pairs itself, or one folder for each set."""
    if bare := _bare(folder):
        official = bare[1].name.lower() == "gt_object"
        layout = "COD10K-v3" if official else "TrainDataset"
        yield _source(layout, split, "COD10K" if official else folder.name, bare)
        return
    layout = "ZoomNeXt" if folder.name.lower() in ("train", "test") else "TrainDataset"
    for child in _folders(folder):
        if bare := _bare(child):
            yield _source(layout, split, _set_name(child.name)[0], bare)


def _raw_camo(home: Path) -> Iterator[Source]:
    images, masks = _child(home, ("images",)), _child(home, _MASKS)
    if images is None or masks is None:
        return
    halves = {half: _child(images, (half,)) for half in get_args(Split)}
    there = {half: path for half, path in halves.items() if path is not None}
    for half, path in there.items():
        others = tuple(other for other in there.values() if other != path)
        yield Source(
            layout="CAMO", split=half, name="CAMO", images=path, masks=masks, others=others
        )


def _source(layout: str, split: Split, name: str, bare: tuple[Path, Path]) -> Source:
    return Source(layout=layout, split=split, name=name, images=bare[0], masks=bare[1])


def _bare(folder: Path) -> tuple[Path, Path] | None:
    images, masks = _child(folder, _IMAGES), _child(folder, _MASKS)
    return None if images is None or masks is None else (images, masks)


def _set_name(folder: str) -> tuple[str, Split | None]:
    """What a set is called without the mark of its half, and that mark.

    >>> _set_name("COD10K-TR"), _set_name("te-camo"), _set_name("NC4K")
    (('COD10K', 'train'), ('CAMO', 'test'), ('NC4K', None))
    """
    parts = folder.replace("_", "-").split("-")
    for place in (0, -1):
        if len(parts) > 1 and (mark := _MARKS.get(parts[place].lower())):
            del parts[place]
            name = "-".join(parts)
            return _SETS.get(name.lower(), name), mark
    return _SETS.get(folder.lower(), folder), None


def _child(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The folder inside with the first of the names that is there, whatever its case."""
    there = {path.name.lower(): path for path in _folders(folder)}
    return next((there[name] for name in names if name in there), None)


def _folders(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith((".", "__MACOSX"))
    )


def _nothing(root: Path, split: Split, others: list[Source]) -> DataError:
    if others:
        there = ", ".join(sorted({source.name for source in others}))
        return DataError(
            f"Looking for {split} pairs in {root}: it holds only pairs of the other split "
            f"({there}). Name the folder that holds both, or give images= and masks=.",
            path=root,
        )
    if any(root.glob("*.parquet")) or any(root.glob("data/*.parquet")):
        return DataError(
            f"Looking for {split} pairs in {root}: it holds Parquet files, which are not read. "
            "Write their columns image and mask out as Imgs/NAME.jpg and GT/NAME.png.",
            path=root,
        )
    names = [path.name for path in _folders(root)]
    seen = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    return DataError(
        f"Looking for {split} pairs in {root}: no known layout. Looked there and two folders "
        "below for Train/{Image,GT_Object}, TrainDataset/{Imgs,GT}, TestDataset/<set>/{Imgs,GT}, "
        "Train/<set>-TR/{Image,Mask}, TR-<set>/{im,gt}, Images/{Train,Test} beside GT, and "
        f"{{Imgs,GT}}; found the folders: {seen or 'none'}. Name the folder above, or give "
        "images= and masks=.",
        path=root,
    )
