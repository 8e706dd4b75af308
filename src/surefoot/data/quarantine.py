"""A loader that survives its data: bad samples are set aside and told of, dead workers replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast
from weakref import ref

from torch.utils.data import DataLoader, IterableDataset

from surefoot.data.checks import Check, finite_values, label_range
from surefoot.data.ledger import DataIncident, Ledger, Limit
from surefoot.data.survivor import Survivor
from surefoot.errors import ConfigError

__all__ = ["DataIncident", "Limit", "SafeLoader", "finite_values", "label_range"]


class SafeLoader:
    """Gives the batches of a loader, and goes on where a sample or a worker fails.

    It takes a finished ``DataLoader``, so one line adopts it, and every argument the loader was
    made with keeps its meaning. While nothing is wrong, batches, their order and all random numbers
    are those of the loader alone, bit for bit. From then on the loader itself is protected, too:
    hand out either.

    **A bad sample** is one whose loading raises an exception, that a check refuses, that has
    another shape than the rest of its batch and cannot be batched with it, or during whose loading
    a worker died twice. It is set aside for the rest of the run, and its place is taken by the next
    good sample of its batch (after the last one comes the first), loaded once more; where the batch
    has none, by the next good one in the data set. So each batch keeps its size, and it depends on
    nothing but the batch and which samples are bad.

    **A worker that dies** (killed, out of memory, crashed in native code) is replaced: all workers
    are started anew, with the first batch that was not handed out; no batch is lost, repeated or
    moved. Samples are the same again if they draw no random numbers from the worker's own stream;
    see ``SampleOrder.seeded`` in surefoot.checkpoint. A worker that is silent for longer than the
    loader's ``timeout``, where that is set, counts as dead.

    Each is told to ``on_record``, or to the log where that is not given, when its batch is handed
    out. Each process of a distributed run has its own quarantine.

    An ``IterableDataset`` is refused: its samples have no names to set aside, and its position
    cannot be found again. Catch errors within its ``__iter__``.

    Args:
        loader: a ``DataLoader`` of a map-style data set, or one that Accelerate has prepared.
        check: what each sample has to satisfy, such as ``label_range(10)``; or several of these.
        limit: how much may go wrong before loading stops.
        on_record: told of each incident, in the training process.

    Raises:
        ConfigError: a loader of another kind.

    >>> import torch
    >>> class Photos(torch.utils.data.Dataset):
    ...     def __len__(self):
    ...         return 6
    ...     def __getitem__(self, index):
    ...         if index == 1:
    ...             raise OSError("image file is truncated")
    ...         return torch.tensor(float(index)), index
    >>> loader = SafeLoader(
    ...     DataLoader(Photos(), batch_size=3), check=label_range(5), limit=Limit(share=0.5),
    ...     on_record=print,
    ... )
    >>> for images, labels in loader:
    ...     print(labels.tolist())
    sample 1 is not loaded again (epoch 0, batch 0): OSError: image file is truncated;
    sample 2 in its place
    [0, 2, 2]
    sample 5 is not loaded again (epoch 0, batch 1): label_range: label 5 is out of range:
    num_classes=5 allows 0 to 4; sample 3 in its place
    [3, 4, 3]
    >>> [one.index for one in loader.quarantined]
    [1, 5]
    """

    def __init__(
        self,
        loader: DataLoader[Any],
        *,
        check: Check | Sequence[Check] = (),
        limit: Limit | None = None,
        on_record: Callable[[DataIncident], object] | None = None,
    ) -> None:
        self.loader = loader
        base: Any = getattr(loader, "base_dataloader", loader)
        _refuse_others(base)
        length = len(base.dataset) if hasattr(base.dataset, "__len__") else None
        checks = (check,) if callable(check) else tuple(check)
        self._ledger = Ledger(limit or Limit(), length, on_record)
        base._get_iterator = _iterators(base, checks, self._ledger)

    @property
    def quarantined(self) -> tuple[DataIncident, ...]:
        """Samples that are not loaded any more, and why, in the order they were found."""
        return tuple(self._ledger.quarantined)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not there yet while it is copied or unpickled
            raise AttributeError(name)
        return getattr(self.loader, name)

    def state_dict(self) -> dict[str, Any]:
        """The quarantine, as plain values, so that a resumed run does not try the samples again."""
        return self._ledger.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`, between two epochs.

        Raises:
            CheckpointError: it is no such state, or one of a newer version.
        """
        self._ledger.load_state_dict(state)


def _iterators(
    loader: DataLoader[Any], checks: tuple[Check, ...], ledger: Ledger
) -> Callable[[], Survivor]:
    """What makes the loader's iterators from now on."""
    weakly = ref(loader)  # which is not to hold itself
    parts = (loader.batch_sampler, loader.sampler, loader.dataset)

    def epoch() -> int:
        """That of the sampler or the data set, where one counts epochs; else passes so far."""
        counted = (getattr(part, "epoch", None) for part in parts)
        return next((n for n in counted if isinstance(n, int)), ledger.passes - 1)

    def make() -> Survivor:
        return Survivor(cast(DataLoader[Any], weakly()), checks, ledger, epoch)

    return make


def _refuse_others(loader: Any) -> None:
    if not isinstance(loader, DataLoader):
        raise ConfigError(f"SafeLoader({type(loader).__name__}): expected a DataLoader.")
    if isinstance(loader.dataset, IterableDataset):
        raise ConfigError(
            f"SafeLoader: {type(loader.dataset).__name__} is an IterableDataset, whose samples "
            "have no index to set aside and no order to go on in. Use a map-style data set, or "
            "catch errors within its __iter__."
        )
    if type(loader)._get_iterator is not DataLoader._get_iterator:
        raise ConfigError(
            f"SafeLoader: a {type(loader).__name__} has iterators of its own, which would be "
            "replaced. Give a plain DataLoader of the same data set."
        )
