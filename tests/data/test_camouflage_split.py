"""What validation pairs are held out of."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from surefoot.data.camouflage import Pair, PairList, PairReport, hold_out
from surefoot.errors import ConfigError, UsageError

SIZES = {"Aquatic": 60, "Terrestrial": 40, "Flying": 20, "Amphibian": 5, "Other": 2}


def listed(stems, split="train") -> PairList:
    made = [Pair(id=stem, image=Path(f"{stem}.jpg"), mask=None) for stem in stems]
    return PairList(split, tuple(made), PairReport())


def stems() -> list[str]:
    cod = [f"COD10K-CAM-1-{name}-3-X-{i}" for name, count in SIZES.items() for i in range(count)]
    none = [f"COD10K-NonCAM-1-Aquatic-3-X-{i}" for i in range(10)]
    return [*cod, *none, *(f"camourflage_{i:05d}" for i in range(30))]


def ids(pairs: PairList) -> set[str]:
    return {pair.id for pair in pairs}


def test_every_super_class_gives_its_part() -> None:
    everything = listed(stems())
    training, validation = hold_out(everything, share=0.1, seed=3)
    assert ids(training) | ids(validation) == ids(everything)
    assert not ids(training) & ids(validation)
    held = Counter((pair.super_class, pair.noncam) for pair in validation)
    assert held == {
        ("Aquatic", False): 6,
        ("Terrestrial", False): 4,
        ("Flying", False): 2,
        ("Amphibian", False): 1,
        ("Other", False): 1,
        ("Aquatic", True): 1,
        (None, False): 3,
    }


def test_the_seed_decides_and_the_order_of_files_does_not() -> None:
    forwards, backwards = listed(stems()), listed(stems()[::-1])
    assert ids(hold_out(forwards, seed=3)[1]) == ids(hold_out(backwards, seed=3)[1])
    assert ids(hold_out(forwards, seed=3)[1]) != ids(hold_out(forwards, seed=4)[1])


def test_what_is_held_out_stays_so_when_a_few_pairs_are_gone() -> None:
    everything = stems()
    held = ids(hold_out(listed(everything), share=0.2)[1])
    fewer = ids(hold_out(listed(everything[5:]), share=0.2)[1])
    assert len(held - fewer - set(everything[:5])) <= 1


def test_test_pairs_are_never_validated_with() -> None:
    with pytest.raises(UsageError, match="these are test pairs"):
        hold_out(listed(stems(), split="test"))


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_a_share_is_between_nought_and_one(share) -> None:
    with pytest.raises(ConfigError, match=r"share is .*; expected a share such as 0\.1"):
        hold_out(listed(stems()), share=share)


def test_a_single_pair_cannot_be_divided() -> None:
    with pytest.raises(UsageError, match="leaves 1 to train on and 0 to validate with"):
        hold_out(listed(["owl"]), share=0.1)
