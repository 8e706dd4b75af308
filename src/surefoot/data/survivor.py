"""The loader's side: asks for batches, and starts the workers anew where one has died."""

from __future__ import annotations

import pickle
import signal
from collections.abc import Callable, Iterator
from multiprocessing.connection import wait
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import (
    _MultiProcessingDataLoaderIter,
    _SingleProcessDataLoaderIter,
)

from surefoot.data.checks import Check
from surefoot.data.ledger import DataIncident, Ledger
from surefoot.data.watched import Answer, Board, Request, Watched, WorkerStart, as_is, key_of

__all__ = ["Survivor"]

# What reading from a worker that dies at that moment can raise.
_BROKEN = (RuntimeError, OSError, EOFError, pickle.UnpicklingError)
_GRACE = 1.0
"""Seconds in which a worker whose connection broke is seen to be dead."""


class _Requests(Sampler[Request]):
    """The batches of an epoch in the loader's own order; those not yet handed out can be repeated.

    The loader's sampler is asked as late as a plain loader asks it, so that it draws its random
    numbers at the same moments.
    """

    def __init__(self, sampler: Any, ledger: Ledger) -> None:
        self._sampler, self._ledger = sampler, ledger
        self.begin()

    def begin(self) -> None:
        """A new epoch."""
        self._drawn = 0
        self._source: Iterator[Any] = iter(())
        self._waiting: dict[int, Any] = {}
        self._singly: set[int] = set()

    def __iter__(self) -> Iterator[Request]:
        if not self._drawn:
            self._source = iter(self._sampler)
        return self._run(list(self._waiting))

    def _run(self, again: list[int]) -> Iterator[Request]:
        yield from map(self._request, again)
        for keys in self._source:
            number, self._drawn = self._drawn, self._drawn + 1
            self._waiting[number] = keys
            yield self._request(number)

    def _request(self, number: int) -> Request:
        keys, banned = self._waiting[number], self._ledger.banned
        return Request(number, keys, banned, number in self._singly)

    def handed_out(self, number: int) -> Any:
        """A batch is through; gives its keys."""
        return self._waiting.pop(number)

    def look_closer(self, number: int | None) -> Any:
        """Load the samples of a batch one by one from now on; gives its keys."""
        if number not in self._waiting:
            return None
        self._singly.add(number)
        return self._waiting[number]


class _Workers(_MultiProcessingDataLoaderIter):
    """Torch's own workers, whose deaths are raised only while a batch is waited for.

    Torch raises them from a signal handler, wherever the training stands at that moment: in the
    middle of an optimizer step, too.
    """

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        if first_iter:
            self.ignore_deaths()
        super()._reset(loader, first_iter)

    def raise_deaths(self) -> None:
        """From now on, and those of before."""
        if self._shutdown:
            return
        if self.dead():
            raise RuntimeError("a data worker died between two batches")
        pids: Any = tuple(worker.pid for worker in self._workers)
        signal_handling._set_worker_pids(id(self), pids)
        self._worker_pids_set = True

    def ignore_deaths(self) -> None:
        """Until they are asked for."""
        if self._worker_pids_set:
            signal_handling._remove_worker_pids(id(self))
            self._worker_pids_set = False

    def dead(self) -> list[int]:
        """Numbers of the workers that are."""
        return [n for n, worker in enumerate(self._workers) if not worker.is_alive()]

    def kill_the_silent(self) -> None:
        """The one that the next batch was asked of."""
        worker = self._workers[self._task_info[self._rcvd_idx][0]]
        worker.kill()
        worker.join()

    def discard(self) -> None:
        """End all of them."""
        done: Any = self._workers_done_event
        # A worker killed while it held this lock took it along; torch would wait for it for ever.
        if done._cond.acquire(timeout=_GRACE):
            done._cond.release()
            self._shutdown_workers()
            return
        self._shutdown = True
        for worker in self._workers:
            worker.kill()

    def wait_for_death(self) -> None:
        """Of a worker whose connection broke."""
        broken = wait([worker.sentinel for worker in self._workers], timeout=_GRACE)
        for worker in self._workers:
            if worker.sentinel in broken:  # a dying process closes its files before it is dead
                worker.join(_GRACE)

    def exit_of(self, number: int) -> tuple[str, str]:
        """How a worker ended, in a word and in a sentence."""
        worker = self._workers[number]
        code = worker.exitcode or 0
        if code >= 0:
            return f"exit {code}", f"worker process {worker.pid} ended with status {code}"
        name = signal.Signals(-code).name
        memory = ", as the system does where memory runs out" if name == "SIGKILL" else ""
        return name, f"worker process {worker.pid} was ended by {name}{memory}"


class _NoWorkers(_SingleProcessDataLoaderIter):
    """The same where the training process loads."""

    def raise_deaths(self) -> None:
        """There are none."""

    ignore_deaths = wait_for_death = raise_deaths

    def dead(self) -> list[int]:
        """There are none."""
        return []


class _Loader(DataLoader[Answer]):
    def _get_iterator(self) -> Any:
        return _Workers(self) if self.num_workers else _NoWorkers(self)


class Survivor:
    """The iterator of one loader: the batches of a plain one, whatever happens to its workers.

    Args:
        loader: a map-style loader.
        checks: what each sample has to satisfy.
        ledger: where incidents go.
        epoch: tells which one it is.
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        checks: tuple[Check, ...],
        ledger: Ledger,
        epoch: Callable[[], int],
    ) -> None:
        # The loader itself is not kept: it keeps this where its workers are persistent, and workers
        # that wait for the garbage collector to end them are still there when others are forked.
        self._ledger, self._epoch, self._sampler = ledger, epoch, loader._index_sampler
        self._requests = _Requests(self._sampler, ledger)
        self._board = Board(loader.num_workers)
        collate: Any = loader.collate_fn
        self._watched = Watched(
            loader.dataset, collate, loader._auto_collation, checks, self._board
        )
        self._options = _options_of(loader)
        self._restarts, self._begun = 0, False
        self._start(loader.generator)
        self._base_seed: int = self._batches._base_seed

    def _start(self, generator: torch.Generator | None) -> None:
        """Workers that begin with the first batch that was not handed out."""
        self._inner = _Loader(
            self._watched, sampler=self._requests, generator=generator, **self._options
        )
        self._batches: Any = iter(self._inner)

    def __iter__(self) -> Survivor:
        return self

    def __len__(self) -> int:
        sampler: Any = self._sampler
        return len(sampler)

    def _reset(self, loader: DataLoader[Any], first_iter: bool = False) -> None:
        """Called by a loader with persistent workers when an epoch begins."""
        self._requests.begin()
        self._begun = False
        self._surviving(lambda: iter(self._inner))

    def __next__(self) -> Any:
        if not self._begun:  # not when it is made: Lightning makes one that it does not use
            self._begun = True
            self._ledger.passes += 1
        return self._settle(self._surviving(lambda: next(self._batches)))

    def _surviving(self, ask: Callable[[], Any]) -> Any:
        """What the workers give, or those that take the place of dead ones."""
        while True:
            try:
                try:
                    self._batches.raise_deaths()
                    return ask()
                finally:
                    self._batches.ignore_deaths()
            except _BROKEN as problem:  # from the line above, too: a signal comes when it likes
                self._start_anew(problem)

    def _settle(self, answer: Answer) -> Any:
        keys = self._requests.handed_out(answer.number)
        for trouble in answer.troubles:
            values = trouble._asdict()
            self._ledger.add(
                DataIncident(
                    index=values.pop("key"),
                    quarantined=True,
                    epoch=self._epoch(),
                    batch=answer.number,
                    worker=answer.worker,
                    **values,
                )
            )
        if not answer.complete:
            raise self._ledger.stuck(keys)
        self._ledger.batches += 1
        return answer.batch

    def _start_anew(self, problem: Exception) -> None:
        """Tell of the workers that died, and start others; raises what came where none has."""
        batches = self._batches
        batches.ignore_deaths()
        silent = isinstance(problem, RuntimeError) and "timed out after" in str(problem)
        if silent and self._options["num_workers"]:
            batches.kill_the_silent()
        elif not isinstance(problem, RuntimeError):
            batches.wait_for_death()
        dead = batches.dead()
        if not dead:
            raise problem
        for number in dead:
            self._ledger.add_death(self._incident(number, silent))
            self._board.clear(number)
        batches.discard()
        self._restarts += 1
        # Seeds that a plain loader would not have drawn, and no draw from the run's own generator.
        self._start(torch.Generator().manual_seed(self._base_seed + self._restarts))

    def _incident(self, worker: int, silent: bool) -> DataIncident:
        batch, place = self._board.read(worker) or (None, -1)
        keys = self._requests.look_closer(batch)
        index = None
        if keys is not None and place >= 0:
            index = key_of(keys[place] if self._watched.batched else keys)
        error, text = self._batches.exit_of(worker)
        if silent:
            error, text = "timeout", f"silent for {self._options['timeout']:g} s, so it was ended"
        return DataIncident(
            what="killed",
            quarantined=False,
            index=index,
            epoch=self._epoch(),
            batch=batch,
            place=None if index is None else place,
            error=error,
            text=text,
            worker=worker,
        )


def _options_of(loader: DataLoader[Any]) -> dict[str, Any]:
    """How to make a loader of whole batches that is like this one in everything else."""
    options: dict[str, Any] = {
        "batch_size": None,
        "num_workers": loader.num_workers,
        "collate_fn": as_is,
        "pin_memory": loader.pin_memory,
    }
    if hasattr(loader, "in_order"):  # not in every torch that there is
        options["in_order"] = loader.in_order
    if loader.num_workers:
        options |= {
            "multiprocessing_context": loader.multiprocessing_context,
            "prefetch_factor": loader.prefetch_factor,
            "persistent_workers": loader.persistent_workers,
            "worker_init_fn": WorkerStart(loader.worker_init_fn),
            "timeout": loader.timeout,
        }
    return options
