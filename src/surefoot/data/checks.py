"""What a sample has to be before it may join a batch: checks that say what is wrong with it."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from surefoot.errors import ConfigError

__all__ = ["Check", "finite_values", "label_range"]

Check = Callable[[Any], str | None]
"""Looks at a sample as the data set gives it; says what is wrong with it, or None."""
Place = int | str | Callable[[Any], Any]
"""Where something stands in a sample: a position, a key, or a function that takes it out."""


class label_range:  # written like the function it is used as; a class can be sent to workers
    """A check that every label is an integer below ``num_classes``.

    A label out of range ends a run on the CPU with an index error, and on a GPU with a device
    assert after which the process can do nothing more; here it is found on the host, by its value.

    Args:
        num_classes: labels are 0 to ``num_classes`` - 1.
        at: where the labels stand in a sample: a position, a key, or a function of the sample.
        ignore: further values that are allowed, such as an ignore index.

    Raises:
        ConfigError: ``num_classes`` below 1.

    >>> check = label_range(10)
    >>> check(("an image", 9)), check(("an image", 10))
    (None, 'label 10 is out of range: num_classes=10 allows 0 to 9')
    >>> label_range(3, at="mask", ignore=[255])({"mask": torch.tensor([[0, 255], [2, -1]])})
    'label -1 at [1, 1] is out of range: num_classes=3 allows 0 to 2 and 255'
    """

    def __init__(self, num_classes: int, *, at: Place = 1, ignore: Iterable[int] = ()) -> None:
        if num_classes < 1:
            raise ConfigError(f"label_range: num_classes={num_classes}; at least 1.")
        self._count, self._at, self._ignored = num_classes, at, tuple(ignore)

    def __call__(self, sample: Any) -> str | None:
        """Which label is out of range, or None."""
        labels = _array(_take(sample, self._at))
        if labels.dtype.kind not in "iub":
            return f"labels are {labels.dtype}; expected integers from 0 to {self._count - 1}"
        bad = (labels < 0) | (labels >= self._count)
        if self._ignored:
            bad &= ~np.isin(labels, self._ignored)
        if not bad.any():
            return None
        first = np.argwhere(bad)[0].tolist()
        place = f" at {first}" if first else ""
        more = f" ({int(bad.sum())} such labels)" if bad.sum() > 1 else ""
        also = "".join(f" and {value}" for value in self._ignored)
        return (
            f"label {labels[tuple(first)]}{place} is out of range{more}: "
            f"num_classes={self._count} allows 0 to {self._count - 1}{also}"
        )


class finite_values:  # see label_range
    """A check that no number in a sample is NaN or infinite.

    Args:
        at: what to look at: a position, a key, or a function of the sample; everything that is
            found in tuples, lists and dicts where it is not given.

    >>> check = finite_values()
    >>> check((torch.ones(2), 3)), check({"x": torch.tensor([[1.0, float("nan")]])})
    (None, "['x'] holds 1 value that is not finite, the first nan at [0, 1], of shape [1, 2]")
    """

    def __init__(self, at: Place | None = None) -> None:
        self._at = at

    def __call__(self, sample: Any) -> str | None:
        """What is not finite, or None."""
        return _not_finite(sample if self._at is None else _take(sample, self._at), "")


def _take(sample: Any, place: Place) -> Any:
    return place(sample) if callable(place) else sample[place]


def _array(value: Any) -> np.ndarray:
    if not isinstance(value, Tensor):
        return np.asarray(value)
    # NumPy knows no bfloat16; no label is one, and none is finite or not for being float32.
    value = value.detach().cpu()
    return (value.float() if value.dtype == torch.bfloat16 else value).numpy()


def _not_finite(value: Any, place: str) -> str | None:
    if isinstance(value, Mapping):
        inner = ((f"{place}[{name!r}]", child) for name, child in value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        inner = ((f"{place}[{number}]", child) for number, child in enumerate(value))
    elif isinstance(value, Tensor | np.ndarray | numbers.Real):
        return _not_finite_array(value, place)
    else:
        return None
    return next((said for at, child in inner if (said := _not_finite(child, at))), None)


def _not_finite_array(value: Any, place: str) -> str | None:
    if isinstance(value, Tensor) and bool(torch.isfinite(value).all()):
        return None  # the way of every healthy sample: no copy to NumPy
    array = _array(value)
    if array.dtype.kind not in "fc":
        return None
    bad = ~np.isfinite(array)
    if not bad.any():
        return None
    first, count = np.argwhere(bad)[0].tolist(), int(bad.sum())
    values = "1 value that is" if count == 1 else f"{count} values that are"
    where = f", the first {array[tuple(first)]} at {first}, of shape {list(array.shape)}"
    return f"{place or 'the sample'} holds {values} not finite{where if first else ''}"
