"""Several processes that train together, started once and given one scenario after another."""

from __future__ import annotations

import faulthandler
import hashlib
import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from surefoot.testing import State

_PATIENCE = 120.0
"""Seconds until a scenario counts as hanging."""


class World:
    """So many gloo processes; :meth:`run` gives every rank the same call."""

    def __init__(self, size: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._folder = Path(tempfile.mkdtemp())
        self._pipes, self._processes = [], []
        for rank in range(size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(theirs, rank, size, self._folder), daemon=True
            )
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, scenario: Callable[..., Any], **settings: Any) -> list[Any]:
        """What ``scenario(rank, **settings)`` returned, by rank."""
        for pipe in self._pipes:
            pipe.send((scenario, settings))
        results: dict[int, Any] = {}
        while len(results) < len(self._pipes):
            ready = wait([p for i, p in enumerate(self._pipes) if i not in results], _PATIENCE)
            if not ready:
                stacks = "".join(p.read_text() for p in self._folder.glob("stacks-*"))
                came = f"of {scenario.__name__} ranks {sorted(results)} alone came back"
                self._end(f"{came}\n{stacks}")
            for pipe in ready:
                rank = self._pipes.index(pipe)
                fine, results[rank] = pipe.recv()
                if not fine:
                    self._end(f"rank {rank}:\n{results[rank]}")
        return [results[rank] for rank in range(len(self._pipes))]

    def _end(self, reason: str) -> None:
        """One rank has failed; the others may wait for it for ever."""
        world.cache_clear()
        for process in self._processes:
            process.kill()
        raise AssertionError(reason)


@cache
def world(size: int) -> World:
    """The one world of this size; it ends with this process."""
    return World(size)


def _serve(pipe: Any, rank: int, size: int, folder: Path) -> None:
    stacks = (folder / f"stacks-{rank}").open("w")
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=2 * _PATIENCE),
    )
    while True:
        try:
            scenario, settings = pipe.recv()
        except EOFError:
            return
        faulthandler.dump_traceback_later(0.8 * _PATIENCE, file=stacks)
        try:
            pipe.send((True, scenario(rank, **settings)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
            raise
        faulthandler.cancel_dump_traceback_later()


def mesh() -> DeviceMesh:
    """All ranks in one row."""
    return init_device_mesh("cpu", (torch.distributed.get_world_size(),))


def spread(model: nn.Module, kind: str, **settings: Any) -> nn.Module:
    """The model as its ranks hold it: ``ddp`` replicated, ``fsdp`` in shards."""
    if kind == "fsdp":
        return fully_shard(model, mesh=mesh(), **settings)
    return nn.parallel.DistributedDataParallel(model, **settings)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor in one piece."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def fingerprints(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """Of the bits of every weight and of everything the optimizer keeps; buffers are each rank's.

    Sharded tensors count as a whole, so every rank has to ask.
    """
    weights = nn.ParameterDict()
    found = {name: whole(p) for name, p in model.named_parameters()}
    state = State.of(weights, optimizer).tensors
    found |= {name: whole(t) for name, t in state.items()}
    return {name: hashlib.sha1(bytes_of(t)).hexdigest() for name, t in found.items()}


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
