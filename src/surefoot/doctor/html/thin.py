"""Fewer points for a drawing, without losing one that stands out."""

from __future__ import annotations

import numpy as np

__all__ = ["stretches", "thin"]


def thin(values: np.ndarray, bins: int = 300) -> np.ndarray:
    """Indices, in order, of the values that a drawing needs.

    Of each of at most ``bins`` equal stretches they are the first, the least, the greatest and the
    last; wherever numbers end or begin again, the values on both sides are among them.

    Args:
        values: N values; they need not be finite.
        bins: stretches, 1 or more.

    >>> wild = np.zeros(100_000)
    >>> wild[77_123] = 5.0
    >>> kept = thin(wild, 100)
    >>> 77_123 in kept, kept.size <= 400
    (True, True)
    """
    size = values.size
    if size <= 4 * bins:
        return np.arange(size)
    width = -(-size // bins)
    padded = np.full(width * -(-size // width), np.nan)
    padded[:size] = values
    rows = padded.reshape(-1, width)
    known = np.isfinite(rows)
    first = np.arange(rows.shape[0]) * width
    least = first + np.argmin(np.where(known, rows, np.inf), axis=1)
    greatest = first + np.argmax(np.where(known, rows, -np.inf), axis=1)
    last = np.minimum(first + width, size) - 1
    edges = np.flatnonzero(np.diff(np.isfinite(values)))
    if edges.size > 2 * bins:  # numbers that come and go all the time: some of their edges do
        edges = edges[np.linspace(0, edges.size - 1, 2 * bins).round().astype(int)]
    found = np.concatenate([first, least, greatest, last, edges, edges + 1])
    return np.unique(found[found < size])


def stretches(bad: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of every unbroken stretch of ``True``.

    >>> stretches(np.array([True, False, True, True]))
    [(0, 0), (2, 3)]
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], bad, [False]])))
    return [(int(a), int(b) - 1) for a, b in edges.reshape(-1, 2)]
