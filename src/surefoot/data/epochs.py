"""The number of an epoch, which every worker of a data set sees."""

from __future__ import annotations

import torch

from surefoot.errors import ConfigError

__all__ = ["Epochs"]


class Epochs:
    """What a data set is that gives out other items in every epoch.

    >>> data = Epochs()
    >>> data.set_epoch(3)
    >>> data.epoch
    3
    """

    def __init__(self) -> None:
        # Shared memory, so that workers that outlive an epoch see the next one's number.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch whose items are given out, from 0."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Give out the items of ``epoch`` from now on; call it between two passes.

        Raises:
            ConfigError: a negative one.
        """
        if epoch < 0:
            raise ConfigError(f"set_epoch({epoch}): epochs count from 0.")
        self._epoch.fill_(epoch)
