"""Random numbers of a sample that depend on the sample, not on who loads it and when."""

from __future__ import annotations

import operator
import random
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

__all__ = ["SeededSamples", "sample_seed"]


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """A seed of 63 bits for one sample in one epoch.

    >>> sample_seed(0, 1, 2) == sample_seed(0, 1, 2) != sample_seed(0, 2, 1)
    True
    """
    low, high = np.random.SeedSequence([seed, epoch, index]).generate_state(2)
    return int(low) | int(high >> 1) << 32


class SeededSamples(Dataset[Any]):
    """A data set whose items draw random numbers that depend on (seed, epoch, index) alone.

    While a sample is loaded, the global generators of Python, NumPy and torch's CPU stand where
    this sample has them, in whichever process. So augmentation that uses them is the same for any
    number of workers, after a resume, and when a worker was replaced. Generators of the data set's
    own are not covered. In the training process the generators are afterwards what they were; in
    a worker they stay where the sample left them, so that what ``collate_fn`` draws there depends
    on the batch alone.

    Samples are loaded one by one, though the data set may have a call for several.

    Args:
        dataset: a map-style data set with integers for indices.
        seed_and_epoch: two integers in shared memory; ``SampleOrder.seeded`` gives its own.

    >>> data = SeededSamples(torch.nn.Identity(), torch.tensor([7, 0]))
    >>> data.dataset = type("Noise", (), {"__getitem__": lambda self, i: random.random()})()
    >>> data[3] == data[3] != data[4]
    True
    """

    def __init__(self, dataset: Any, seed_and_epoch: Tensor) -> None:
        self.dataset = dataset
        self._seed_and_epoch = seed_and_epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        seed, epoch = self._seed_and_epoch.tolist()
        seed = sample_seed(seed, epoch, operator.index(index))
        if get_worker_info() is None:
            with _kept_generators():
                _start_generators(seed)
                return self.dataset[index]
        _start_generators(seed)
        return self.dataset[index]

    def __getattr__(self, name: str) -> Any:
        if name in ("dataset", "__getitems__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)


def _start_generators(seed: int) -> None:
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    torch.default_generator.manual_seed(seed)


@contextmanager
def _kept_generators() -> Generator[None]:
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
