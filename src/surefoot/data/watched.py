"""The worker's side of a loader that survives: makes a batch, whatever single samples do."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch.utils.data import Dataset, get_worker_info

from surefoot.data.checks import Check

__all__ = ["Answer", "Board", "Request", "Trouble", "Watched", "WorkerStart", "as_is", "key_of"]

_NEIGHBOURS = 64
_TEXT = 500
_WHOLE, _BESIDE = -2, -1


class Request(NamedTuple):
    """A batch to be loaded."""

    number: int
    """In its epoch, from 0."""
    keys: Any
    """What the loader's sampler gave: the indices of a batch, or one index where it makes none."""
    banned: frozenset[Hashable]
    """Samples that are not to be loaded."""
    singly: bool
    """Whether not to load the batch by one call."""


class Trouble(NamedTuple):
    """A sample that could not be used."""

    key: Hashable
    place: int | None
    what: str
    error: str
    text: str
    replaced_by: Hashable | None = None


class Answer(NamedTuple):
    """A loaded batch."""

    number: int
    batch: Any
    troubles: tuple[Trouble, ...]
    worker: int | None
    complete: bool
    """Whether there is a sample in every place; if not there is no batch."""


class _Attempt:
    """Keeps what somebody else's code raised, of whatever type: it becomes a record."""

    error: Exception | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self.error = error if isinstance(error, Exception) else None
        return self.error is not None


def _tried(call: Callable[..., Any], *arguments: Any) -> tuple[Any, Exception | None]:
    attempt = _Attempt()
    with attempt:
        return call(*arguments), None
    try:
        return None, attempt.error
    finally:
        attempt.error = None  # its traceback holds this frame: what it holds would outlive it


class Board:
    """What each worker is loading at the moment; it can be read when the worker is dead."""

    def __init__(self, workers: int) -> None:
        self._cells = torch.zeros(max(workers, 1), dtype=torch.int64).share_memory_()

    def write(self, worker: int | None, number: int, place: int) -> None:
        """Say what ``worker`` begins with; in one write, so that it never stands there by half."""
        if worker is not None:
            self._cells.numpy()[worker] = (number + 1) << 24 | (place - _WHOLE)

    def clear(self, worker: int | None) -> None:
        """Say that ``worker`` waits for work."""
        if worker is not None:
            self._cells.numpy()[worker] = 0

    def read(self, worker: int) -> tuple[int, int] | None:
        """Number of the batch and place of the sample in it, negative where it was no single one
        of them; None for a worker that waited.
        """
        cell = int(self._cells[worker])
        return ((cell >> 24) - 1, (cell & 0xFFFFFF) + _WHOLE) if cell else None


@dataclass
class Watched(Dataset[Answer]):
    """A data set of whole batches: an item is the :class:`Answer` to a :class:`Request`."""

    dataset: Any
    collate: Callable[[Any], Any]
    batched: bool
    checks: Sequence[Check]
    board: Board

    def __post_init__(self) -> None:
        self._bad: set[Hashable] = set()
        self._number = 0
        self._worker: int | None = None

    def __getitem__(self, request: Request) -> Answer:
        info = get_worker_info()
        self._number, self._worker = request.number, None if info is None else info.id
        self._bad |= request.banned
        batch = _Batch(self, list(request.keys) if self.batched else [request.keys])
        complete = batch.load(singly=request.singly)
        made = self._make(batch) if complete else None
        if isinstance(made, _Misfits):  # from the beginning: it may have changed the samples
            batch = _Batch(self, batch.raw, self._troubles(batch, made))
            complete = batch.load(singly=True)
            made = self.collate(batch.gathered) if complete else None
        self.board.clear(self._worker)
        return Answer(request.number, made, tuple(batch.troubles), self._worker, complete)

    def _make(self, batch: _Batch) -> Any:
        """What the loader hands out, or the samples that do not fit in it."""
        self.board.write(self._worker, self._number, _BESIDE)
        made, error = _tried(self.collate, batch.gathered)
        if error is None:
            return made
        places = batch.odd_ones()
        if not places:
            raise error
        return _Misfits(places, error)

    def _troubles(self, batch: _Batch, misfits: _Misfits) -> list[Trouble]:
        found = [
            self.trouble(batch.raw[place], place, "misfit", misfits.error)
            for place in misfits.places
        ]
        return [*batch.troubles, *found]

    def load(self, key: Any, place: int | None) -> tuple[Any, Trouble | None]:
        """A sample that every check accepts, or what is wrong with it."""
        self.board.write(self._worker, self._number, _BESIDE if place is None else place)
        sample, error = _tried(operator.getitem, self.dataset, key)
        if error is None:
            return sample, self.judge(sample, key, place)
        return None, self.trouble(key, place, "exception", error)

    def load_many(self, keys: list[Any]) -> list[Any]:
        """All of them by the data set's own call for that; none where it has none or it failed."""
        several = getattr(self.dataset, "__getitems__", None)
        if not several or not self.batched:
            return []
        self.board.write(self._worker, self._number, _WHOLE)
        samples, _ = _tried(several, keys)  # what failed shows when they are loaded singly
        return list(samples) if samples is not None and len(samples) == len(keys) else []

    def judge(self, sample: Any, key: Any, place: int | None) -> Trouble | None:
        """What the first check that is not satisfied says."""
        for check in self.checks:
            said, error = _tried(check, sample)
            if error is not None:
                return self.trouble(key, place, "refused", error)
            if said is not None:
                self._bad.add(key_of(key))
                return Trouble(key_of(key), place, "refused", _name_of(check), said[:_TEXT])
        return None

    def trouble(self, key: Any, place: int | None, what: str, error: Exception) -> Trouble:
        """The same for an exception; this worker does not load the sample again."""
        self._bad.add(key_of(key))
        return Trouble(key_of(key), place, what, type(error).__name__, str(error)[:_TEXT])

    def is_bad(self, key: Any) -> bool:
        """Whether it was found bad before."""
        return key_of(key) in self._bad


class _Misfits(NamedTuple):
    places: list[int]
    error: Exception


class _Batch:
    """The places of one batch, empty until a good sample is in them."""

    def __init__(self, watched: Watched, raw: list[Any], troubles: Sequence[Trouble] = ()) -> None:
        self.raw, self.troubles = raw, list(troubles)
        self._watched = watched
        self._good: dict[int, Any] = {}

    @property
    def samples(self) -> list[Any]:
        return [self._good[place] for place in range(len(self.raw))]

    @property
    def gathered(self) -> Any:
        """What the collate function takes."""
        return self.samples if self._watched.batched else self._good[0]

    def load(self, *, singly: bool) -> bool:
        """Load every sample, and others in place of the bad ones; whether there were enough."""
        if not singly and not any(map(self._watched.is_bad, self.raw)):
            for place, sample in enumerate(self._watched.load_many(self.raw)):
                self._keep(place, sample, self._watched.judge(sample, self.raw[place], place))
        for place, key in enumerate(self.raw):
            if place not in self._good and not self._watched.is_bad(key):
                self._keep(place, *self._watched.load(key, place))
        empty = [place for place in range(len(self.raw)) if place not in self._good]
        return all(self._fill(place) for place in empty)

    def _keep(self, place: int, sample: Any, trouble: Trouble | None) -> None:
        if trouble is None:
            self._good[place] = sample
        else:
            self.troubles.append(trouble)

    def _fill(self, place: int) -> bool:
        for key in self._candidates(place):
            if self._watched.is_bad(key):
                continue
            # Loaded anew: a collate function may change its samples, so none is given to it twice.
            sample, trouble = self._watched.load(key, None)
            if trouble is None:
                self._good[place] = sample
                self.troubles = [_replaced(one, place, key_of(key)) for one in self.troubles]
                return True
            self.troubles.append(trouble)
        return False

    def _candidates(self, place: int) -> Iterator[Any]:
        """The batch's own samples from there on and round, then those next in the data set."""
        yield from self.raw[place + 1 :] + self.raw[:place]
        key = key_of(self.raw[place])
        if isinstance(key, int) and hasattr(self._watched.dataset, "__len__"):
            length = len(self._watched.dataset)
            yield from ((key + step) % length for step in range(1, min(_NEIGHBOURS, length)))

    def odd_ones(self) -> list[int]:
        """Places of the few whose shapes are not those of the many; none where it is half."""
        if not self._watched.batched:
            return [0]
        shapes = [_shapes(sample) for sample in self.samples]
        usual = max(shapes, key=shapes.count)
        odd = [place for place, shape in enumerate(shapes) if shape != usual]
        return odd if 2 * len(odd) < len(shapes) else []


def _shapes(sample: Any) -> Any:
    """What two samples have to have in common to be stacked."""
    if isinstance(sample, dict):
        return {name: _shapes(child) for name, child in sample.items()}
    if isinstance(sample, tuple | list):
        return [_shapes(child) for child in sample]
    return type(sample), getattr(sample, "shape", None), getattr(sample, "dtype", None)


def _replaced(trouble: Trouble, place: int, key: Hashable) -> Trouble:
    return trouble._replace(replaced_by=key) if trouble.place == place else trouble


def _name_of(check: Check) -> str:
    return getattr(check, "__name__", type(check).__name__)


def key_of(index: Any) -> Hashable:
    """What a sampler gave, as a plain value that tells samples apart.

    >>> key_of(torch.tensor(3)), key_of("a"), key_of([1, 2])
    (3, 'a', (1, 2))
    """
    try:
        return operator.index(index)
    except TypeError:
        if isinstance(index, list | tuple):
            return tuple(key_of(one) for one in index)
        return index if isinstance(index, str) else repr(index)


def as_is(batch: Any) -> Any:
    """The collate function of batches that are made already."""
    return batch


@dataclass(frozen=True)
class WorkerStart:
    """Shows a worker's own start-up function the data set that it knows."""

    then: Callable[[int], object] | None

    def __call__(self, worker: int) -> None:
        """Called in each worker when it begins."""
        info: Any = get_worker_info()
        object.__setattr__(info, "dataset", info.dataset.dataset)  # it lets nobody change it
        if self.then is not None:
            self.then(worker)
