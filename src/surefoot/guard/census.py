"""What the interpreter holds: tensors by shape and containers by length, to be compared later.

A pass over everything that the garbage collector knows takes tens of milliseconds, so it is made
twice in a run at most: when memory is first suspected to grow, and when that is told.
"""

from __future__ import annotations

import gc
import inspect
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable
from types import FrameType
from typing import Any

from torch import Tensor

__all__ = ["Census"]

_CONTAINERS = {list, dict, set, deque, OrderedDict, defaultdict, Counter}
_LEAST = 8
"""Shorter containers are not looked at, and fewer new elements are not told."""


class Census:
    """Counts at one moment.

    >>> losses = [0.5] * 20
    >>> before = Census()
    >>> losses += [0.25] * 30
    >>> [line for line in before.became_more() if "float" in line]
    ['30 more float in the list losses of ...']
    """

    def __init__(self) -> None:
        self._tensors: Counter[str] = Counter()
        self._lengths: dict[int, int] = {}
        lengths = self._lengths
        for thing in gc.get_objects():
            if issubclass(type(thing), Tensor):
                self._tensors[_kind(thing)] += 1
            elif _may_grow(thing) and len(thing) >= _LEAST and thing is not lengths:
                lengths[id(thing)] = len(thing)

    def became_more(self, most: int = 3) -> tuple[str, ...]:
        """Kinds of tensors, then containers, that have grown since; the fastest first.

        Args:
            most: how many of either.
        """
        now = Census()
        kinds = (now._tensors - self._tensors).most_common(most)
        grown = {
            place: now._lengths[place] - length
            for place, length in self._lengths.items()
            if now._lengths.get(place, 0) - length >= _LEAST
        }
        places = sorted(grown, key=grown.__getitem__, reverse=True)[:most]
        found = {id(thing): thing for thing in gc.get_objects() if id(thing) in places}
        return (
            *(f"{count} more of {kind}" for kind, count in kinds),
            *(
                f"{grown[place]} more {_element(found[place])} in {_owner(found[place])}"
                for place in places
                if place in found
            ),
        )


def _may_grow(thing: Any) -> bool:
    return type(thing) in _CONTAINERS and getattr(thing, "maxlen", None) is None


def _kind(tensor: Tensor) -> str:
    graph = ", with its graph" if tensor.grad_fn is not None else ""
    shape = "x".join(map(str, tensor.shape)) or "scalar"
    return f"{str(tensor.dtype).removeprefix('torch.')} {shape}{graph}"


def _element(container: Any) -> str:
    """Class of the newest element, where there is an order."""
    values: Iterable[Any] = container.values() if isinstance(container, dict) else container
    ordered = isinstance(container, list | dict | deque)
    return type(next(iter(reversed(values) if ordered else values), None)).__name__  # type: ignore[call-overload]


def _owner(container: Any) -> str:
    """The container's class, and the name that something holds it by, if it can be found."""
    kind = f"the {type(container).__name__}"
    for holder in gc.get_referrers(container):
        if isinstance(holder, dict) and "__name__" in holder:
            names = [name for name, value in holder.items() if value is container]
            if names:
                return f"{kind} {names[0]} of {holder['__name__']}"
        elif not isinstance(holder, FrameType) and hasattr(holder, "__dict__"):
            names = [name for name, value in vars(holder).items() if value is container]
            if names:
                return f"{kind} {type(holder).__name__}.{names[0]}"
    return _local(container, kind)


def _local(container: Any, kind: str) -> str:
    frame = sys._getframe()
    while (frame := frame.f_back) is not None:
        if frame.f_globals.get("__name__", "").startswith("surefoot.guard."):
            continue
        names = [name for name, value in frame.f_locals.items() if value is container]
        if frame.f_code.co_flags & inspect.CO_OPTIMIZED and sys.version_info < (3, 13):
            frame.f_locals.clear()  # a copy, which would keep this step's tensors until the end
        if names:
            return f"{kind} {names[0]} of {frame.f_code.co_name}"
    return f"a {type(container).__name__}"
