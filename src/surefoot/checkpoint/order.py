"""The order in which samples come, as something that can be saved and gone on with.

The order of an epoch is a permutation drawn from (seed, epoch) alone, cut into batches, and each
batch into as many parts as there are processes. So a position is one number, and nothing of the
past has to be drawn again to go on from it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed
from torch.utils.data import Sampler

from surefoot.checkpoint.seeded import SeededSamples, sample_seed
from surefoot.errors import CheckpointError, ConfigError, UsageError

__all__ = ["SampleOrder"]

_VERSION = 1
Batch = TypeVar("Batch")


class SampleOrder(Sampler[Any]):
    """A batch sampler that knows which batches the training has had.

    Give it to a ``DataLoader`` as ``batch_sampler=`` (or, with ``batch_size=None``, as
    ``sampler=``), and take the batches through :meth:`batches`. A batch counts once it has been
    handed out, not when a worker loads it ahead of time; save after the step it was used for. After
    :meth:`load_state_dict` the rest of the epoch follows, batch for batch.

    Every process gets its part of the same batches, as many batches as every other, and together
    they get each sample once an epoch: what is left after the last full batch is divided among
    the processes, too; where there are fewer samples left than processes they join the last full
    batch. With ``batch_size=None`` such a rest is left out.

    Args:
        samples: how many there are, or the data set.
        batch_size: samples of a batch in each process; None for a loader that makes no batches.
        seed: which order.
        shuffle: whether samples are in random order; ascending where not.
        drop_last: leave out what is left after the last full batch.
        rank: of this process; that in torch.distributed where it is not given.
        world_size: processes; those in torch.distributed, or 1.

    Raises:
        ConfigError: sizes that cannot work.

    >>> from torch.utils.data import DataLoader
    >>> data = torch.arange(6)
    >>> order = SampleOrder(data, batch_size=2, seed=3)
    >>> loader = DataLoader(data, batch_sampler=order)
    >>> for batch in order.batches(loader):
    ...     print(batch.tolist())
    ...     state = order.state_dict()  # with everything else of the run
    ...     break
    [2, 5]
    >>> resumed = SampleOrder(data, batch_size=2, seed=3)
    >>> resumed.load_state_dict(state)
    ()
    >>> loader = DataLoader(data, batch_sampler=resumed)
    >>> [batch.tolist() for batch in resumed.batches(loader)], resumed.epoch
    ([[4, 1], [3, 0]], 1)
    """

    def __init__(
        self,
        samples: int | Sized,
        *,
        batch_size: int | None,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        here = distributed.is_available() and distributed.is_initialized()
        self.samples = samples if isinstance(samples, int) else len(samples)
        self.batch_size, self.shuffle, self.drop_last = batch_size, shuffle, drop_last
        self.rank = distributed.get_rank() if rank is None and here else rank or 0
        world = distributed.get_world_size() if world_size is None and here else world_size
        self.world_size = 1 if world is None else world
        self._check(seed)
        # Shared memory, so that workers that outlive an epoch see the next one's number.
        self._seed_and_epoch = torch.tensor([seed, 0], dtype=torch.int64).share_memory_()
        self._offset = self._done = 0
        self._counted = self._ended = False

    def _check(self, seed: int) -> None:
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise ConfigError(
                f"SampleOrder: rank={self.rank} of world_size={self.world_size}; ranks are 0 to "
                "world_size - 1."
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(f"SampleOrder: batch_size={self.batch_size}; at least 1, or None.")
        if not 0 <= seed < 2**63:
            raise ConfigError(f"SampleOrder: seed={seed}; 0 or more, in 63 bits.")
        if not self._left(0):
            whole = "one full batch" if self.drop_last else "one sample"
            raise ConfigError(
                f"SampleOrder: {self.samples} samples for {self.world_size} processes with "
                f"batch_size={self.batch_size}; each process needs at least {whole}."
            )

    # -- position --------------------------------------------------------------------------------

    @property
    def seed(self) -> int:
        """Which order it is."""
        return int(self._seed_and_epoch[0])

    @property
    def epoch(self) -> int:
        """The epoch that is being handed out, from 0."""
        return int(self._seed_and_epoch[1])

    @property
    def position(self) -> int:
        """Batches of the epoch that have been handed out."""
        return self._done

    def __len__(self) -> int:
        """Batches of this epoch, those handed out included; in each process."""
        return self._done + self._left(self._offset)

    def set_epoch(self, epoch: int) -> None:
        """Begin with ``epoch``; a position in it stays where it is that epoch already.

        Raises:
            ConfigError: a negative one.
        """
        if epoch < 0:
            raise ConfigError(f"SampleOrder.set_epoch({epoch}): epochs count from 0.")
        if epoch != self.epoch:
            self._seed_and_epoch[1] = epoch
            self._offset = self._done = 0
        self._ended = False

    def batches(
        self,
        loader: Iterable[Batch],
        *,
        through: Callable[[Iterator[Batch]], Iterable[Batch]] | None = None,
    ) -> Iterator[Batch]:
        """The batches of a loader that this is the sampler of, counted as they are handed out.

        They are what remains of the epoch; after its last batch the next epoch begins. The loader's
        own draw, from which its workers are seeded, leaves torch's random numbers as they were.

        Args:
            loader: gives the batches.
            through: what they pass on their way, such as ``guard.batches``, which looks one ahead.

        Raises:
            UsageError: the loader gives batches that are not this order's.
        """
        self._counted, self._ended = True, False
        try:
            started = self._started(loader)
            for batch in through(started) if through else started:
                self.advance()
                yield batch
        finally:
            self._counted = False
        if not self._left(self._offset):
            self.set_epoch(self.epoch + 1)

    def advance(self) -> None:
        """Count one batch as had, where they are not taken through :meth:`batches`.

        Raises:
            UsageError: the epoch has no more.
        """
        if not self._left(self._offset):
            raise UsageError(
                f"SampleOrder: the loader gave more than the {len(self)} batches of this order. "
                "Make it with DataLoader(..., batch_sampler=order)."
            )
        self._offset = self._bounds(self._offset, 0)[1]
        self._done += 1

    def _started(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        state = torch.get_rng_state()
        seed = sample_seed(self.seed, self.epoch, self._offset)
        torch.default_generator.manual_seed(seed)
        try:
            return iter(loader)
        finally:
            torch.set_rng_state(state)

    def seeded(self, dataset: Any) -> SeededSamples:
        """A data set whose samples draw the same random numbers in every process and after every
        resume; see :class:`SeededSamples`.
        """
        return SeededSamples(dataset, self._seed_and_epoch)

    # -- batches ---------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        if self._ended:  # taken without batches(): every pass is an epoch
            self.set_epoch(self.epoch + 1)
        return self._run(self._offset)

    def _run(self, offset: int) -> Iterator[Any]:
        order = np.arange(self.samples)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.samples)
        for number in range(self._left(offset)):
            start, stop = self._bounds(offset, number)
            share, rest = divmod(stop - start, self.world_size)
            start += self.rank * share + min(self.rank, rest)
            batch = order[start : start + share + (self.rank < rest)].tolist()
            yield batch if self.batch_size is not None else batch[0]
        self._ended = not self._counted

    def _left(self, offset: int) -> int:
        """Batches from there on."""
        full, rest = divmod(max(self.samples - offset, 0), self._global_batch)
        own_batch = rest >= self.world_size and not self.drop_last
        return full + own_batch

    def _bounds(self, offset: int, number: int) -> tuple[int, int]:
        """Where a batch of all processes begins and ends, counted from ``offset`` on."""
        start = offset + number * self._global_batch
        last = number == self._left(offset) - 1
        if last and not self.drop_last and self.batch_size is not None:
            return start, self.samples
        return start, start + self._global_batch

    @property
    def _global_batch(self) -> int:
        return self.world_size * (self.batch_size or 1)

    # -- going on --------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Seed, epoch and position, as plain values; the same in every process."""
        return {
            "version": _VERSION,
            "seed": self.seed,
            "epoch": self.epoch,
            "shuffle": self.shuffle,
            "samples": self.samples,
            "samples_done": self._offset,
            "batches_done": self._done,
            "batch_size": self.batch_size,
            "world_size": self.world_size,
            "drop_last": self.drop_last,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> tuple[str, ...]:
        """Go on where :meth:`state_dict` was taken; call it before the loader is iterated.

        Seed, epoch, position and ``shuffle`` are those of the state; ``batch_size``,
        ``world_size`` and ``drop_last`` are those of this object.

        Returns:
            A sentence for each thing that is not as it was, and what it changes; empty where the
            rest of the epoch is exactly that of the saved run.

        Raises:
            CheckpointError: it is no such state, or one of a newer version.
        """
        if state.get("version") != _VERSION:
            raise CheckpointError(
                f"sample order of version {state.get('version')!r}; this surefoot reads "
                f"{_VERSION}. Give what state_dict() returned, or update surefoot."
            )
        try:
            numbers = [
                int(state[name]) for name in ("seed", "epoch", "samples_done", "batches_done")
            ]
            told = tuple(_changes(state, self.state_dict()))
        except (LookupError, TypeError, ValueError) as damage:
            raise CheckpointError(f"sample order: the state is damaged: {damage!r}.") from damage
        seed, epoch, self._offset, self._done = numbers
        self._seed_and_epoch.copy_(torch.tensor([seed, epoch]))
        self.shuffle, self._ended = bool(state["shuffle"]), False
        rest = self.samples - self._offset
        if rest > 0 and not self._left(self._offset) and not self.drop_last:
            told += (f"the last {rest} samples of the epoch are left out: too few to divide.",)
        return told


def _changes(saved: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    """What is no longer exact."""
    if saved["seed"] != here["seed"]:
        yield f"the order goes on with the saved seed {saved['seed']}, not with {here['seed']}."
    if saved["shuffle"] != here["shuffle"]:
        yield f"the order goes on with shuffle={saved['shuffle']}, as it was saved."
    if saved["samples"] != here["samples"]:
        yield (
            f"the data set had {saved['samples']} samples and has {here['samples']}: the order is "
            "another one, so that samples can come twice or not at all in this epoch."
        )
    sizes = [(one["world_size"], one["batch_size"]) for one in (saved, here)]
    if sizes[0] != sizes[1]:
        before, now = (f"{world} x {size}" for world, size in sizes)
        total = [world * (size or 1) for world, size in sizes]
        yield (
            f"batches of {now} samples (processes x batch_size) where the run was saved with "
            f"{before}: "
            + (
                "together they are the same batches, but each process gets another part, and sums "
                "over them are rounded differently."
                if total[0] == total[1]
                else "the rest of the epoch has the same samples, each once, in other batches; the "
                "number of steps is another one, and so is what a schedule by steps makes of it."
            )
        )
    if saved["drop_last"] != here["drop_last"]:
        yield (
            f"drop_last is {here['drop_last']} and was {saved['drop_last']}: the last batch of an "
            "epoch is another one."
        )
