"""Validation pairs held out of the training pairs, never out of a test set."""

from __future__ import annotations

import hashlib
from collections import defaultdict

from surefoot.data.camouflage.pairs import Pair, PairList
from surefoot.errors import ConfigError, UsageError

__all__ = ["hold_out"]


def hold_out(pairs: PairList, *, share: float = 0.1, seed: int = 0) -> tuple[PairList, PairList]:
    """Divide training pairs into those to train on and those to validate with.

    Each super-class of COD10K gives its part, the camouflaged and the others apart, and so do all
    images of other data sets together. Which pairs are held out depends on their ids and the seed,
    not on the order of files; of a set that grows, those held out stay held out, but for the few
    that the new ones displace.

    Args:
        pairs: of the split ``"train"``.
        share: how much to hold out, between 0 and 1; at least one pair of each part that has two.
        seed: which ones.

    Returns:
        The pairs to train on and those held out; both keep the report of ``pairs``.

    Raises:
        ConfigError: ``share`` is not between 0 and 1.
        UsageError: pairs of a test set, or a share that leaves nothing on one of the sides.
    """
    if not 0 < share < 1:
        raise ConfigError(f"hold_out: share is {share}; expected a share such as 0.1.")
    if pairs.split != "train":
        raise UsageError(
            f"hold_out: these are {pairs.split} pairs. Validation is held out of training pairs, "
            "for what chooses a checkpoint must not be what it is judged by."
        )
    strata: defaultdict[tuple[str, bool], list[Pair]] = defaultdict(list)
    for pair in pairs:
        strata[pair.super_class or "", pair.noncam].append(pair)
    held = {pair.id for stratum in strata.values() for pair in _drawn(stratum, share, seed)}
    rest = {pair.id for pair in pairs} - held
    if not held or not rest:
        raise UsageError(
            f"hold_out: {share:g} of {len(pairs)} pairs leaves {len(rest)} to train on and "
            f"{len(held)} to validate with; both need at least one."
        )
    return pairs.only(rest), pairs.only(held)


def _drawn(stratum: list[Pair], share: float, seed: int) -> list[Pair]:
    count = round(share * len(stratum))
    if len(stratum) > 1:
        count = min(max(count, 1), len(stratum) - 1)
    return sorted(stratum, key=lambda pair: _rank(pair.id, seed))[:count]


def _rank(name: str, seed: int) -> bytes:
    """A number that depends on the name and the seed alone, alike on every machine."""
    return hashlib.sha256(f"{seed} {name}".encode()).digest()
