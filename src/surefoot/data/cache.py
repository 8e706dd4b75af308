"""A least-recently-used cache with a budget in bytes, one per process."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from surefoot.errors import ConfigError

__all__ = ["ByteCache"]

V = TypeVar("V")


class ByteCache(Generic[V]):
    """Keeps what was used last, never more than ``budget_mb`` of it.

    It travels to worker processes empty: each worker fills its own, so ``n`` workers hold at most
    ``n * budget_mb`` together. For that, ``size`` must be picklable: no lambda.

    >>> cache = ByteCache[bytes](1.0, size=len)
    >>> cache.get("a", lambda: b"made")
    b'made'
    >>> cache.get("a", lambda: b"not called again")
    b'made'
    """

    def __init__(self, budget_mb: float, *, size: Callable[[V], int]) -> None:
        if not budget_mb >= 0:
            raise ConfigError(f"cache_mb is {budget_mb}; it is a size in MB, 0 or more.")
        self.budget = int(budget_mb * 1e6)
        self.used = 0
        self._size = size
        self._items: OrderedDict[Hashable, V] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value kept under ``key``, or what ``make`` returns, which is kept from then on.

        A value larger than the whole budget is returned and not kept.
        """
        if key in self._items:
            self._items.move_to_end(key)
            return self._items[key]
        value = make()
        self.put(key, value)
        return value

    def put(self, key: Hashable, value: V) -> None:
        """Keep ``value``; the values used longest ago make room for it."""
        if key in self._items:
            self.used -= self._size(self._items.pop(key))
        size = self._size(value)
        if size > self.budget:
            return
        self._items[key] = value
        self.used += size
        while self.used > self.budget:
            self.used -= self._size(self._items.popitem(last=False)[1])

    def __contains__(self, key: Hashable) -> bool:
        return key in self._items

    def __len__(self) -> int:
        return len(self._items)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "used": 0, "_items": OrderedDict()}
