"""The moving average of weights that is measured in place of the last ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from surefoot.guard.measure import local

__all__ = ["average_of"]


def average_of(model: nn.Module, decay: float, *, warmup: bool = True) -> AveragedModel:
    """A moving average of weights and buffers, evaluated in place of the last weights.

    With ``warmup`` the decay rises as (1 + n) / (10 + n), so that the first steps do not weigh on a
    short run. What is in shards is averaged there.

    >>> model = nn.Linear(1, 1)
    >>> average_of(model, 0.999).module is model
    False
    """

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        n = int(count)
        share = 1 - (min(decay, (1 + n) / (10 + n)) if warmup else decay)
        kept, now = [local(t) for t in averaged], [local(t) for t in current]
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(kept, now, share)
        else:  # counters are copied: half a batch has no meaning
            torch._foreach_copy_(kept, now)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)
