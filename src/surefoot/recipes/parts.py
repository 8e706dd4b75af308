"""What a training program is put together from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from surefoot.recipes.hardware import Amp
from surefoot.recipes.ranks import ALONE, Ranks

__all__ = ["Measured", "Place"]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What validation gives."""

    metric: float
    """The larger the better."""
    weights: str
    """Which of the learner's weights it was measured on: ``model`` or ``ema``."""
    fields: Mapping[str, Any]
    """For the journal."""
    lines: tuple[str, ...]
    """For a person."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where it computes."""

    device: torch.device
    amp: Amp
    why: str
    """Why in this precision."""
    check: bool
    """Whether the precision is tried on the first batch."""
    cache: float = 0.0
    """Bytes of host memory that caches may still fill."""
    ranks: Ranks = ALONE
    """The processes that train together."""
    divided: bool = False
    """Whether each of them keeps a part of the weights alone (``--fsdp``)."""
