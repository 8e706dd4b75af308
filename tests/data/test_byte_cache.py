"""The cache keeps to its budget."""

from __future__ import annotations

import copy

import pytest

from surefoot.data.cache import ByteCache
from surefoot.errors import ConfigError


def test_the_values_used_longest_ago_make_room():
    cache = ByteCache[bytes](30e-6, size=len)
    for name in "abc":
        cache.get(name, lambda: b"0123456789")
    cache.get("a", lambda: b"")
    cache.get("d", lambda: b"0123456789")
    assert [name for name in "abcd" if name in cache] == ["a", "c", "d"]
    assert cache.used == 30


def test_a_value_is_made_once_while_it_is_kept():
    cache = ByteCache[bytes](1, size=len)
    made: list[int] = []
    for _ in range(3):
        cache.get("a", lambda: made.append(1) or b"x")
    assert made == [1]


def test_a_value_larger_than_the_budget_is_given_out_and_not_kept():
    cache = ByteCache[bytes](5e-6, size=len)
    assert cache.get("a", lambda: b"0123456789") == b"0123456789"
    assert len(cache) == cache.used == 0


def test_putting_a_key_again_replaces_its_value_and_its_size():
    cache = ByteCache[bytes](30e-6, size=len)
    cache.put("a", b"0123456789")
    cache.put("a", b"01234")
    assert (cache.used, len(cache)) == (5, 1)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy])
def test_a_copy_travels_empty(again):
    cache = ByteCache[bytes](1, size=len)
    cache.put("a", b"x")
    other = again(cache)
    assert (len(other), other.used, other.budget) == (0, 0, cache.budget)
    assert "a" in cache


@pytest.mark.parametrize("budget", [-1, float("nan")])
def test_a_budget_below_nothing_is_refused(budget):
    with pytest.raises(ConfigError, match="cache_mb is"):
        ByteCache[bytes](budget, size=len)
