"""The micro-batches of a run, one epoch after the other, from wherever it goes on.

A sample that cannot be read does not end the run: :class:`surefoot.data.SafeLoader` sets it aside
and puts the next good one of its batch in its place. Every batch keeps its size, and depends on the
batch and on which samples are bad alone, so that a resumed run has the same ones.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader

from surefoot.checkpoint import SampleOrder
from surefoot.checkpoint.signals import leave_signals_to_parent
from surefoot.data import DataIncident, SafeLoader

__all__ = ["Feed", "FeedOrder"]

Batch = TypeVar("Batch")
_LOG = logging.getLogger("surefoot.data")
_FOUND_AT = ("batch", "place", "worker")
"""Of an incident; the journal keeps them, a checkpoint need not."""


class _Items(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def set_epoch(self, epoch: int) -> None: ...


class Writes(Protocol):
    """A journal."""

    def event(self, kind: str, /, **fields: Any) -> None: ...


class FeedOrder(SampleOrder):
    """An order whose state names the samples that were set aside, too: a resumed run does not try
    them again, and has the batches that the run would have had.
    """

    loader: SafeLoader | None = None
    """Knows them."""

    def state_dict(self) -> dict[str, Any]:
        """See :class:`SampleOrder`; ``quarantine`` is there once a sample was set aside."""
        state = super().state_dict()
        if self.loader is None or not self.loader.quarantined:
            return state
        known = self.loader.state_dict()
        aside = [one | dict.fromkeys(_FOUND_AT) for one in known["quarantined"]]
        return state | {"quarantine": known | {"passes": 0, "quarantined": aside}}

    def load_state_dict(self, state: Mapping[str, Any]) -> tuple[str, ...]:
        """See :class:`SampleOrder`; samples of another data set are not the ones set aside."""
        told = super().load_state_dict(state)
        if self.loader is not None and state["samples"] == self.samples and "quarantine" in state:
            self.loader.load_state_dict(state["quarantine"])
        return told


class Feed(ABC, Generic[Batch]):
    """Loads micro-batches in an order that can be saved, whatever single samples do.

    Args:
        items: the training set, which knows its epoch.
        order: what is drawn of it.
        workers: processes that load.
        accumulate: micro-batches of an optimizer step.
        device: where micro-batches are put.
        collate: items to a micro-batch; torch's way where it is not given.
    """

    told: Callable[[DataIncident], object] | None = None
    """Is told of each sample that could not be used, and of each worker that died, once; the log
    ``surefoot.data`` where there is nobody."""

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
        self._first = 0
        safe = SafeLoader(self._loader, on_record=self._incident)
        if isinstance(order, FeedOrder):
            order.loader = safe

    def begin(self, epoch: int, steps: int) -> int:
        """Go to an epoch of so many optimizer steps; gives the number of its micro-batches that the
        run has not had.
        """
        self.order.set_epoch(epoch)
        whole = len(self.order)
        return min(whole, steps * self._accumulate) - self.order.position

    def batches(self, count: int) -> Iterator[Batch]:
        """The next ones of the epoch; each is to be counted by ``order.advance()``.

        Raises:
            DataError: more samples cannot be used, or more workers died, than
                :class:`surefoot.data.Limit` allows.
        """
        self._items.set_epoch(self.order.epoch)
        self._first = self.order.position
        yield from map(self.moved, islice(self._loader, count))

    def _incident(self, incident: DataIncident) -> None:
        """Pass it on, with the batch's number in its epoch also where the epoch is gone on with."""
        if incident.batch is not None:
            incident = replace(incident, batch=incident.batch + self._first)
        if self.told is None:
            _LOG.warning("%s", incident)
        else:
            self.told(incident)

    def tell(self, journal: Writes, interject: Callable[[str], object]) -> None:
        """Write incidents to a journal, and print each, with the name of its sample."""

        def told(incident: DataIncident) -> None:
            name = self.name_of(incident.index) if isinstance(incident.index, int) else None
            journal.event("data", sample=name, **incident.to_dict())
            interject(f"  {'' if name is None else f'{name}: '}{incident}")

        self.told = told

    def name_of(self, index: int) -> str | None:
        """Of a sample that could not be loaded; None where it is known by its number alone."""
        return None

    @abstractmethod
    def moved(self, batch: Batch) -> Batch:
        """It, on the device."""

    @abstractmethod
    def names(self, batch: Batch) -> tuple[str, ...]:
        """Of its samples."""
