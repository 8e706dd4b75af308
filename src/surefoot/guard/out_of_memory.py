"""A device whose memory runs out: how its allocator says so, and what became of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from surefoot.errors import ConfigError

__all__ = ["Halved", "TooLarge", "is_out_of_memory"]

_SAID = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


class TooLarge(ConfigError, torch.OutOfMemoryError):
    """Not even a batch that cannot be cut any further fits into the device's memory."""


@dataclass(frozen=True, kw_only=True)
class Halved:
    """A micro-batch that was cut."""

    sizes: tuple[float, ...]
    """Samples of each piece."""
    problem: str
    """What the allocator said last, its first line."""
    tried: bool
    """Whether memory ran out at this one; else it was cut because one of its size had not fit."""

    def __str__(self) -> str:
        sizes = " + ".join(f"{size:g}" for size in self.sizes)
        return (
            f"out of memory: the batch was computed in {len(self.sizes)} pieces ({sizes} samples)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a journal."""
        return {"pieces": len(self.sizes), "sizes": list(self.sizes), "problem": self.problem}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator has nothing left; some say so by a plain ``RuntimeError``.

    >>> is_out_of_memory(RuntimeError("CUDA error: out of memory")), is_out_of_memory(OSError(12))
    (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError):
        return not isinstance(error, TooLarge)
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID)
