"""One run as a column sees it, and the process around it."""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from benchmarks.chaos.catalogue import catalogue
from benchmarks.chaos.columns.base import Column
from benchmarks.chaos.fault import Plan, Setting
from benchmarks.chaos.inject import Clock, Stage
from benchmarks.chaos.task import BATCH, Digits, Net, accuracy

__all__ = ["Run", "Spec", "live"]


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a process is told to do."""

    column: Column
    setting: Setting
    plan: Plan
    fault: str | None = None
    """Its key; faults hold functions and cannot travel."""
    seed: int = 0
    life: int = 0
    """How often the run was started before."""
    folder: Path
    """Working folder; checkpoints and journals are in it."""
    results: Path
    """Where the outcome is written; not on the disk that a fault may fill."""


class Run:
    """Model, data, loss and places of one run."""

    def __init__(self, spec: Spec, rank: int) -> None:
        self.spec, self.rank = spec, rank
        self.setting = spec.setting
        self.steps = spec.plan.steps // spec.setting.accumulate
        self.batch = BATCH // spec.setting.world
        self.epoch = spec.plan.epoch
        """Batches in an epoch."""
        self.seed = spec.seed
        self.resumes = spec.life > 0
        self.checkpoints = spec.folder / "checkpoints"
        fault = None if spec.fault is None else catalogue(spec.plan)[spec.fault]
        self.checkpoint_every = 0 if fault is None else fault.checkpoint_every
        self.misuse = fault is not None and fault.misuse
        strikes = [] if fault is None or self.resumes else [*fault.strike()]
        self._clock = Clock(
            strikes, self.batch, spec.setting.accumulate, on_struck=lambda i: print("@struck", i)
        )

    def net(self) -> Net:
        """A new model; its forward pass moves the clock."""
        return Net(self._clock, batchnorm=self.setting.batchnorm)

    def optimizer(self, net: nn.Module) -> torch.optim.Optimizer:
        """AdamW as everybody uses it; the faults know it from here on."""
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, fused=True)
        self._clock.stage = Stage(net, optimizer, self.spec.folder, self.rank)
        return optimizer

    def data(self) -> Digits:
        """The samples to learn from."""
        return Digits(self._clock, self.epoch * BATCH)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy."""
        return self._clock.loss(nn.functional.cross_entropy(logits, labels))

    def batches(self, protect: Callable[[DataLoader[Any], Run], object]) -> Iterator[list[Tensor]]:
        """Batches in the order that a simple loop has; it starts anew after a restart.

        Args:
            protect: gets at the loader before its first batch.
        """
        data, world = self.data(), self.setting.world
        sampler = DistributedSampler(data, seed=self.seed) if world > 1 else None
        loader = DataLoader(
            data,
            self.batch,
            shuffle=sampler is None,
            sampler=sampler,
            num_workers=self.setting.workers,
        )
        protect(loader, self)
        for epoch in itertools.count():
            if sampler is not None:
                sampler.set_epoch(epoch)
            yield from loader

    def parallel(self, net: nn.Module) -> nn.Module:
        """The model as the ranks train it together."""
        if self.setting.world == 1:
            return net
        torch.distributed.init_process_group("gloo")
        return nn.parallel.DistributedDataParallel(net)

    def metric(self, step: int, loss: Tensor) -> None:
        """What every loop prints now and then."""
        if step % 20 == 0:
            print(f"step {step} loss {loss.item():.4f}")

    def say(self, kind: str, **values: Any) -> None:
        """Something structured that the harness reads from the log."""
        print("@entry " + json.dumps({"kind": kind, "rank": self.rank, **values}))


def live(spec: Spec, rank: int, environment: dict[str, str], out: Connection) -> None:
    """The whole life of a process: train, measure, write down what came out.

    Args:
        spec: what to do.
        rank: which of the processes this one is.
        environment: set before anything is done.
        out: everything that is printed goes here.
    """
    for descriptor in (1, 2):
        os.dup2(out.fileno(), descriptor)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.update(environment)
    # What a loader's workers start by on Linux; a child of the server would inherit the server's.
    multiprocessing.set_start_method("fork", force=True)
    os.chdir(spec.folder)
    warnings.simplefilter("default")
    torch.set_num_threads(1)
    random.seed(spec.seed)
    np.random.seed(spec.seed)
    torch.manual_seed(spec.seed)
    net = spec.column.train(Run(spec, rank))
    (spec.results / f"result-{rank}.json").write_text(json.dumps(_measured(net)))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _measured(net: nn.Module) -> dict[str, Any]:
    """Accuracy, what is not finite, hashes of everything and of the weights alone."""
    state = net.state_dict()
    bad = [name for name, tensor in state.items() if not torch.isfinite(tensor.float()).all()]
    parameters = dict(net.named_parameters())
    everything, weights = hashlib.sha256(), hashlib.sha256()
    for name in sorted(state):
        data = state[name].detach().contiguous().numpy().tobytes()
        everything.update(data)
        if name in parameters:
            weights.update(data)
    return {
        "accuracy": accuracy(net),
        "bad_weights": [name for name in bad if name in parameters],
        "bad_buffers": [name for name in bad if name not in parameters],
        "hash": everything.hexdigest()[:16],
        "weights_hash": weights.hexdigest()[:16],
    }
