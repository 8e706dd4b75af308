"""What a training program is put together from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from surefoot.checkpoint import SampleOrder
from surefoot.recipes.hardware import Amp
from surefoot.recipes.ranks import ALONE, Ranks

__all__ = ["Feed", "Measured", "Place", "RunSettings"]

Batch = TypeVar("Batch")


class RunSettings(Protocol):
    """What a program reads of a recipe's settings."""

    @property
    def checkpoint(self) -> Path | None: ...  # noqa: D102
    @property
    def resume(self) -> Path | None: ...  # noqa: D102
    @property
    def save_dir(self) -> Path | None: ...  # noqa: D102
    @property
    def save_interval(self) -> int: ...  # noqa: D102
    @property
    def save_steps(self) -> int: ...  # noqa: D102
    @property
    def keep_last(self) -> int: ...  # noqa: D102
    @property
    def keep_every(self) -> int: ...  # noqa: D102
    @property
    def save_in_background(self) -> bool: ...  # noqa: D102
    @property
    def val_interval(self) -> int: ...  # noqa: D102


class Feed(Protocol[Batch]):
    """Where micro-batches come from."""

    order: SampleOrder

    def begin(self, epoch: int, steps: int) -> int:
        """Go to an epoch of so many optimizer steps; gives the number of its micro-batches that the
        run has not had.
        """
        ...

    def batches(self, count: int) -> Iterator[Batch]:
        """The next ones of the epoch, on the device."""
        ...

    def names(self, batch: Batch) -> tuple[str, ...]:
        """Of its samples."""
        ...


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What validation gives."""

    metric: float
    """The larger the better."""
    weights: str
    """Which of the learner's weights it was measured on: ``model`` or ``ema``."""
    fields: Mapping[str, Any]
    """For the journal."""
    lines: tuple[str, ...]
    """For a person."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where it computes."""

    device: torch.device
    amp: Amp
    why: str
    """Why in this precision."""
    check: bool
    """Whether the precision is tried on the first batch."""
    cache: float = 0.0
    """Bytes of host memory that caches may still fill."""
    ranks: Ranks = ALONE
    """The processes that train together."""
