"""Images paired with their masks by stem, checked before a run begins."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from surefoot.data.camouflage.files import Look, look_at
from surefoot.data.camouflage.layouts import Source, Split, find_sources
from surefoot.data.camouflage.report import PairReport
from surefoot.errors import ConfigError, DataError

__all__ = ["LEAKED", "NonCam", "Pair", "PairList", "find_pairs", "find_test_sets"]

NonCam = Literal["exclude", "include"]
LEAKED = ("COD10K-CAM-1-Aquatic-3-Crab-32", "COD10K-CAM-2-Terrestrial-23-Cat-1506")
"""Stems that are in COD10K's training and in its test set (found by the authors of SINet-V2)."""

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_MASK_SUFFIXES = (".png", ".bmp", ".webp", ".jpg", ".jpeg")
_STEM = re.compile(r"COD10K-(?:Non)?CAM-\d+-(?P<super>[^-]+)-\d+-.+-\d+", re.IGNORECASE)
_OWN_NAMES = re.compile(r"COD10K-|camourflage_\d+$", re.IGNORECASE)
_NONCAM = re.compile(r"(^|-)noncam(-|$)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Pair:
    """An image and its mask."""

    id: str
    """The stem; of several sets, with the set's name before it where it does not say it itself."""
    image: Path
    mask: Path | None
    """None: there is no object, and no file that says so."""

    @property
    def noncam(self) -> bool:
        """COD10K calls it non-camouflaged: there is nothing to segment."""
        return _NONCAM.search(self.image.stem) is not None

    @property
    def super_class(self) -> str | None:
        """COD10K's: Aquatic, Terrestrial, Flying, Amphibian or Other; None for other data sets."""
        found = _STEM.fullmatch(self.image.stem)
        return found["super"].capitalize() if found else None


@dataclass(frozen=True)
class PairList:
    """Pairs of one split, in the order of their ids, and what was found while they were paired."""

    split: Split
    pairs: tuple[Pair, ...]
    report: PairReport

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        return self.pairs[index]

    def only(self, ids: Iterable[str]) -> PairList:
        """The pairs with these ids, in the same order."""
        wanted = set(ids)
        kept = tuple(pair for pair in self.pairs if pair.id in wanted)
        return replace(self, pairs=kept)


def find_pairs(
    root: Path | str,
    *,
    split: Split,
    images: Path | str | None = None,
    masks: Path | str | None = None,
    noncam: NonCam = "exclude",
    drop_leaked: bool = True,
    decode: bool = True,
) -> PairList:
    """The pairs of a split, each file looked at.

    An image and a mask pair by their stem, whatever its case; images are jpg, jpeg, png, webp or
    bmp, and of several masks the png counts. Hidden files are passed over. What does not pair is
    left out and told in the report, which is worth printing.

    Args:
        root: the folder of the data set; see surefoot.data.camouflage.layouts for the layouts.
        split: ``"train"`` or ``"test"``; the test sets are merged, see :func:`find_test_sets`.
        images: a folder of images, where the layout is none of these; relative to ``root``.
        masks: the folder of their masks; given with ``images``.
        noncam: whether images that COD10K calls non-camouflaged take part, with empty masks. All
            published figures are without.
        drop_leaked: leave the two stems of :data:`LEAKED` out of the training pairs.
        decode: decode every file (some milliseconds a pair); otherwise only headers are read, and
            damaged files and odd mask values are not found.

    Raises:
        ConfigError: arguments that cannot work.
        DataError: no such folder, no known layout, or not one usable pair.
    """
    if noncam not in get_args(NonCam):
        raise ConfigError(f"find_pairs: noncam is {noncam!r}; expected one of {get_args(NonCam)}.")
    root = Path(root)
    sources = _explicit(root, split, images, masks) or find_sources(root, split)
    return _Pairing(noncam, drop_leaked, decode).of(sources)


def find_test_sets(
    root: Path | str, *, noncam: NonCam = "exclude", decode: bool = True
) -> dict[str, PairList]:
    """Each test set for itself, by name: COD10K, CAMO, CHAMELEON, NC4K, or its folder's name.

    Raises:
        DataError: as :func:`find_pairs`, for any of the sets.
    """
    sources: dict[str, list[Source]] = {}
    for source in find_sources(Path(root), "test"):
        sources.setdefault(source.name, []).append(source)
    pairing = _Pairing(noncam, False, decode)
    return {name: pairing.of(tuple(parts)) for name, parts in sorted(sources.items())}


def _explicit(
    root: Path, split: Split, images: Path | str | None, masks: Path | str | None
) -> tuple[Source, ...]:
    if images is None and masks is None:
        return ()
    if images is None or masks is None:
        given = "images" if masks is None else "masks"
        raise ConfigError(f"find_pairs: only {given}= is given; images= and masks= go together.")
    if split not in get_args(Split):
        raise ConfigError(f"find_pairs: split is {split!r}; expected one of {get_args(Split)}.")
    folders = [root / images, root / masks]
    for folder in folders:
        if not folder.is_dir():
            raise DataError(f"Looking for pairs: {folder} is no folder.", path=folder)
    name = root.name or "folders"
    return (Source(layout="given", split=split, name=name, images=folders[0], masks=folders[1]),)


@dataclass(frozen=True)
class _Pairing:
    """How pairs are made of folders."""

    noncam: NonCam
    drop_leaked: bool
    decode: bool

    def of(self, sources: tuple[Source, ...]) -> PairList:
        split, report = sources[0].split, PairReport()
        found: dict[str, Pair] = {}
        for source in sources:
            pairs, report = self._match(source, report, alone=len(sources) == 1)
            twice = [pair.id for pair in pairs if pair.id.lower() in found]
            report = report.adding(repeated=twice)
            found = {pair.id.lower(): pair for pair in pairs} | found
        report, usable = self._look(sorted(found.values(), key=lambda pair: pair.id), report)
        if not usable:
            raise DataError(
                f"Pairing images and masks for {split}: not one usable pair. An image and its "
                f"mask have the same name but for the ending.\n{report}",
                path=sources[0].images,
            )
        return PairList(split, usable, replace(report, pairs=len(usable)))

    def _match(
        self, source: Source, report: PairReport, *, alone: bool
    ) -> tuple[list[Pair], PairReport]:
        images, twice = _by_stem(source.images, _IMAGE_SUFFIXES)
        masks, _ = _by_stem(source.masks, _MASK_SUFFIXES)
        elsewhere = {
            stem for other in source.others for stem in _by_stem(other, _IMAGE_SUFFIXES)[0]
        }
        leaked = {stem.lower() for stem in LEAKED} if self._drops(source) else set[str]()
        out = {stem for stem in images if self.noncam == "exclude" and _NONCAM.search(stem)}
        lone = [s for s in images if s not in masks and not _NONCAM.search(s)]
        kept = [s for s in images if s not in out | leaked | set(lone)]
        folders = f"{source.images} and {source.masks} ({source.layout})"
        report = replace(report, folders=(*report.folders, folders)).adding(
            images_without_mask=_stems(images, lone),
            masks_without_image=_stems(masks, masks.keys() - images.keys() - elsewhere),
            repeated=twice if source.images != source.masks else (),
            leaked=_stems(images, leaked & images.keys()),
            noncam=_stems(images, out),
        )
        pairs = [
            Pair(
                id=images[s].stem if alone else _name(source, images[s].stem),
                image=images[s],
                mask=masks.get(s),
            )
            for s in kept
        ]
        return pairs, report

    def _drops(self, source: Source) -> bool:
        return self.drop_leaked and source.split == "train"

    def _look(self, pairs: list[Pair], report: PairReport) -> tuple[PairReport, tuple[Pair, ...]]:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            looks = list(threads.map(self._look_at, pairs))
        seen = list(zip(pairs, looks, strict=True))
        usable = tuple(pair for pair, look in seen if look.fault is None)
        told = report.adding(
            unreadable=[look.fault for _, look in seen if look.fault],
            sizes_differ=[_sizes(p.id, look) for p, look in seen if look.image != look.mask],
            other_values=[_values(p.id, look) for p, look in seen if look.others],
            empty_masks=[p.id for p, look in seen if look.empty and not p.noncam],
        )
        return told, usable

    def _look_at(self, pair: Pair) -> Look:
        return look_at(pair.image, pair.mask, decode=self.decode)


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> tuple[dict[str, Path], list[str]]:
    """Files by lower-case stem, of several the one whose suffix comes first; and those several."""
    files = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    ]
    files.sort(key=lambda path: (suffixes.index(path.suffix.lower()), path.name))
    found: dict[str, Path] = {}
    twice: list[str] = []
    for path in files:
        if found.setdefault(path.stem.lower(), path) != path:
            twice.append(path.name)
    return found, twice


def _stems(files: dict[str, Path], keys: Iterable[str]) -> list[str]:
    return sorted(files[key].stem for key in keys)


def _name(source: Source, stem: str) -> str:
    """Stems of COD10K and CAMO say where they are from; a plain number does not."""
    return stem if _OWN_NAMES.match(stem) else f"{source.name}/{stem}"


def _sizes(name: str, look: Look) -> str:
    turned = " (turned?)" if look.image == look.mask[::-1] else ""
    shown = ["x".join(map(str, size)) for size in (look.image, look.mask)]
    return f"{name} ({shown[0]} and {shown[1]}){turned}"


def _values(name: str, look: Look) -> str:
    shown = " ".join(map(str, look.others[:4])) + (" ..." if len(look.others) > 4 else "")
    return f"{name} ({shown})"
