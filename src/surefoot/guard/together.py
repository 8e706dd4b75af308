"""Whether other ranks train the same model, so that all have to come to one verdict."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from surefoot.errors import ConfigError, UsageError

__all__ = ["replicated_parts", "several_ranks", "trains_together", "want_the_wrapper"]


def replicated_parts(model: nn.Module) -> list[DistributedDataParallel]:
    """Every ``DistributedDataParallel`` in it: itself, inside a compiled module, in a container."""
    return [m for m in model.modules() if isinstance(m, DistributedDataParallel)]


def trains_together(model: nn.Module) -> bool:
    """Whether the model's gradients are exchanged between ranks.

    Raises:
        ConfigError: in a way whose norms nobody could add up.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # a quarter of a second for nothing, elsewhere
    if fsdp and any(isinstance(m, fsdp.FullyShardedDataParallel) for m in model.modules()):
        raise ConfigError(
            "The model is wrapped in FullyShardedDataParallel, whose shards do not say what they "
            "are part of, so that no global gradient norm can be told. Use fully_shard(model) of "
            "torch.distributed.fsdp (FSDP2), or DistributedDataParallel."
        )
    sharded = any(isinstance(p, DTensor) for p in model.parameters())
    return sharded or bool(replicated_parts(model))


def several_ranks() -> bool:
    """Whether this process is one of several. In somebody else's loop nothing but this tells that
    ranks share their gradients.
    """
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return ready and torch.distributed.get_world_size() > 1


def want_the_wrapper(model: nn.Module) -> RemovableHandle:
    """Have the model's next forward pass fail where it runs inside ``DistributedDataParallel``.

    Whoever was given the module inside would take this rank's loss for the only one, and hold back
    gradients that the others wait for.
    """

    def look(module: nn.Module, _: Any) -> None:
        if DistributedDataParallel._get_active_ddp_module() is not None:
            raise UsageError(
                "Guard was given a module that is trained inside DistributedDataParallel, so it "
                "does not know of the other ranks. Give it the wrapper: "
                "Guard(DistributedDataParallel(model), optimizer, ...)."
            )

    return model.register_forward_pre_hook(look)
