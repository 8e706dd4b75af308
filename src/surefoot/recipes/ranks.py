"""The processes that train together, of which the first one speaks for all.

torchrun starts them, or whoever sets the variables that it sets: RANK, LOCAL_RANK, WORLD_SIZE,
MASTER_ADDR, MASTER_PORT.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from typing import Any, TextIO, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from surefoot.checkpoint import capture_rng, restore_rng
from surefoot.checkpoint.signals import Interrupted
from surefoot.errors import ConfigError, SurefootError
from surefoot.recipes.hardware import seed_everything

__all__ = ["ALONE", "Ranks", "joined"]

T = TypeVar("T")
R = TypeVar("R")
M = TypeVar("M", bound=nn.Module)

_VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_FAILED = 2


@dataclass(frozen=True)
class Ranks:
    """One of ``size`` processes; the methods that talk are called by all of them, in one order.

    What is sent goes from CPU to CPU as a pickle, between processes of one job.

    >>> ALONE.share("a"), ALONE.gather("b"), ALONE.each([1, 2], str)
    ('a', ['b'], ['1', '2'])
    """

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether it prints and writes."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.size > 1

    # -- talking -----------------------------------------------------------------------------------

    def gather(self, value: T) -> list[T]:
        """What every process gave, by rank."""
        if not self.several:
            return [value]
        found: list[Any] = [None] * self.size
        distributed.all_gather_object(found, value)
        return found

    def share(self, value: T) -> T:
        """What the first one gave."""
        if not self.several:
            return value
        box: list[Any] = [value]
        distributed.broadcast_object_list(box, src=0)
        return box[0]

    def of_first(self, call: Callable[[], T]) -> T:
        """What the first one's call returns; the others do not call.

        Raises:
            SurefootError: what the call raised, in the first one; the others end with its status.
        """
        if not self.several:
            return call()
        found, problem = None, None
        if self.first:
            try:
                found = call()
            except SurefootError as error:
                problem = error
        found, failed = self.share((found, problem is not None))
        if problem is not None:
            raise problem
        if failed:
            raise SystemExit(_FAILED)
        return found  # type: ignore[return-value]

    def each(self, items: Sequence[T], work: Callable[[T], R]) -> list[R]:
        """The work done on every item, by place; each process does its part and has all of it."""
        parts = self.gather([work(item) for item in items[self.rank :: self.size]])
        return [parts[place % self.size][place // self.size] for place in range(len(items))]

    # -- learning ----------------------------------------------------------------------------------

    def device(self, chosen: torch.device) -> torch.device:
        """This process's own GPU, where GPUs are chosen.

        Raises:
            ConfigError: there are fewer than processes, or one is named for all.
        """
        if not self.several or chosen.type != "cuda":
            return chosen
        place, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if ":" in str(chosen):
            raise ConfigError(
                f"--device {chosen}: {self.size} processes cannot share a GPU; give --device cuda."
            )
        if place >= count:
            raise ConfigError(
                f"--device cuda: this is process {place} of its machine, which has {count} GPUs. "
                "Start as many as there are (torchrun --nproc-per-node), or take --device cpu."
            )
        torch.cuda.set_device(place)
        return torch.device("cuda", place)

    def seed(self, seed: int) -> None:
        """Give every process but the first random numbers of its own, once the model is built."""
        if not self.first:
            seed_everything((seed + self.rank) % 2**32)

    def replicated(self, module: nn.Module, learns: Iterable[nn.Parameter]) -> nn.Module:
        """The module, with gradients that are means over all processes.

        What ``learns`` may be frozen and thawed later, and a batch need not reach all of it.
        Gradients then keep the buckets that they are summed in, so that a resumed run rounds as it
        did.
        """
        if not self.several:
            return module
        frozen = [parameter for parameter in learns if not parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(True)
        replica = DistributedDataParallel(module, find_unused_parameters=True)
        for parameter in frozen:
            parameter.requires_grad_(False)
        return replica

    def mesh(self, device: torch.device) -> DeviceMesh:
        """All processes in one row, to divide weights between.

        Raises:
            ConfigError: there is only this one.
        """
        if not self.several:
            raise ConfigError(
                "--fsdp: this is one process, and there is nobody to divide the weights with. "
                "Start several (torchrun --nproc-per-node 2 ...), or leave it out."
            )
        return init_device_mesh(device.type, (self.size,))

    def synchronised(self, model: M, device: torch.device, *, wanted: bool) -> M:
        """The model, whose BatchNorm takes statistics over all processes where that is ``wanted``.

        Raises:
            ConfigError: on a CPU, where torch cannot.
        """
        if not wanted or not self.several:
            return model
        if device.type != "cuda":
            raise ConfigError(
                f"--sync-batchnorm: torch has it on GPUs only, and this runs on {device}; leave it "
                "out, or take larger batches."
            )
        return nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[return-value]

    def random_states(self) -> dict[str, Any]:
        """Of all processes, for a checkpoint; with one process it is that of every other run."""
        first, *others = self.gather(capture_rng())
        return {"rng": first, **({"other_ranks": others} if others else {})}

    def put_back(self, state: Mapping[str, Any]) -> tuple[str, ...]:
        """The inverse of :meth:`random_states`; gives sentences on what is no longer exact."""
        saved = [state["rng"], *state.get("other_ranks", [])]
        if len(saved) == self.size:
            return restore_rng(saved[self.rank])
        told = restore_rng(saved[0]) if self.first else ()
        return (
            *told,
            f"random numbers of {self.size} processes, where {len(saved)} were saved: those drawn "
            "in training (dropout) are others.",
        )

    def agree(self, modules: Iterable[nn.Module]) -> None:
        """Give all processes the first one's buffers: BatchNorm's statistics are each one's own."""
        alike: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for module in modules if self.several else ():
            for buffer in module.buffers():
                alike.setdefault((buffer.dtype, buffer.device), []).append(buffer)
        with torch.no_grad():
            for buffers in alike.values():  # one message for all of a kind
                flat = torch.cat([buffer.reshape(-1) for buffer in buffers])
                distributed.broadcast(flat, src=0)
                parts = flat.split([buffer.numel() for buffer in buffers])
                found = [part.view_as(b) for part, b in zip(parts, buffers, strict=True)]
                torch._foreach_copy_(buffers, found)

    def stream(self, stream: TextIO) -> TextIO:
        """Where this process prints."""
        return stream if self.first else _Nowhere()


ALONE = Ranks()


@contextmanager
def joined() -> Generator[Ranks]:
    """This process among those it was started with; the group is closed at the end.

    A group that is there already is used, and left as it is.
    """
    if distributed.is_available() and distributed.is_initialized():
        yield Ranks(distributed.get_rank(), distributed.get_world_size())
        return
    if any(name not in os.environ for name in _VARIABLES):
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    store, rank, size = _met()
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    ranks = Ranks(distributed.get_rank(), distributed.get_world_size())
    try:
        yield ranks
    except Interrupted:
        _leave(ranks)
        raise
    _leave(ranks)  # not after an error: the others may be anywhere


def _met() -> tuple[distributed.Store, int, int]:
    """Where the processes find one another.

    After a restart torchrun gives out the store of the former life, with the dead worker's address
    in it. On one machine all know which life it is; on several TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
    in torchrun's environment makes it a new store (torch 2.15, dynamic_rendezvous.py).
    """
    store, rank, size = next(rendezvous("env://"))
    here = os.environ
    if here.get("LOCAL_WORLD_SIZE") == here["WORLD_SIZE"]:
        store = distributed.PrefixStore(here.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    return store, rank, size


def _leave(ranks: Ranks) -> None:
    ranks.gather(None)  # the first one may hold what the others' connections hang on
    distributed.destroy_process_group()


class _Nowhere(StringIO):
    def write(self, s: str, /) -> int:
        return len(s)
