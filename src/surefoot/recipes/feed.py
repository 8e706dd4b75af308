"""The micro-batches of a run, one epoch after the other, from wherever it goes on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader

from surefoot.checkpoint import SampleOrder
from surefoot.checkpoint.signals import leave_signals_to_parent

__all__ = ["Feed"]

Batch = TypeVar("Batch")


class _Items(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def set_epoch(self, epoch: int) -> None: ...


class Feed(ABC, Generic[Batch]):
    """Loads micro-batches in an order that can be saved.

    Args:
        items: the training set, which knows its epoch.
        order: what is drawn of it.
        workers: processes that load.
        accumulate: micro-batches of an optimizer step.
        device: where micro-batches are put.
        collate: items to a micro-batch; torch's way where it is not given.
    """

    def __init__(
        self,
        items: _Items,
        order: SampleOrder,
        *,
        workers: int,
        accumulate: int,
        device: torch.device,
        collate: Callable[[list[Any]], Batch] | None = None,
    ) -> None:
        self.order = order
        self._items, self._device, self._accumulate = items, device, accumulate
        batched = order.batch_size is not None
        self._loader: DataLoader[Any] = DataLoader(
            items,  # type: ignore[arg-type]
            batch_sampler=order if batched else None,
            sampler=None if batched else order,
            batch_size=1 if batched else None,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=4 if workers else None,
            pin_memory=batched and device.type == "cuda",
            collate_fn=collate,
            worker_init_fn=leave_signals_to_parent,
            # Its own: drawing the workers' seeds from the global one would move the run's random
            # numbers.
            generator=torch.Generator().manual_seed(order.seed),
        )

    def begin(self, epoch: int, steps: int) -> int:
        """Go to an epoch of so many optimizer steps; gives the number of its micro-batches that the
        run has not had.
        """
        self.order.set_epoch(epoch)
        whole = len(self.order)
        return min(whole, steps * self._accumulate) - self.order.position

    def batches(self, count: int) -> Iterator[Batch]:
        """The next ones of the epoch; each is to be counted by ``order.advance()``."""
        self._items.set_epoch(self.order.epoch)
        yield from map(self.moved, islice(self._loader, count))

    @abstractmethod
    def moved(self, batch: Batch) -> Batch:
        """It, on the device."""

    @abstractmethod
    def names(self, batch: Batch) -> tuple[str, ...]:
        """Of its samples."""
