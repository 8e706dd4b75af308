"""What is around every run: the processes it has, the signals it heeds, the errors it names."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch

from surefoot.checkpoint.signals import Interruption
from surefoot.recipes.ranks import Ranks, joined
from surefoot.recipes.run_options import RunOptions

__all__ = ["running"]


@contextmanager
def running(run: RunOptions) -> Generator[tuple[Ranks, Interruption]]:
    """The processes that train together, and what asks them to stop."""
    anomalies = torch.autograd.set_detect_anomaly(run.debug_mode)
    with joined() as ranks, Interruption() as stop, anomalies:
        yield ranks, stop
