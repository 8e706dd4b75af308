"""Between tensors in shards (FSDP2) and whole ones, so that a checkpoint is the same in both.

torch.distributed.checkpoint.state_dict does this, too. It names the optimizer's moments after the
parameters, where an optimizer's own state has numbers, and takes a step of zeros where there are
none yet, which the run that is saved would feel; here the state stays that of the optimizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

__all__ = ["cut_like", "cut_optimizer", "cut_weights", "whole"]


def whole(value: Any, *, keep: bool = True, on_host: bool = False) -> Any:
    """A nested state with every sharded tensor in one piece; all processes of the shards ask alike.

    One tensor is gathered after the other, so that a device holds no more than the largest besides
    its own part.

    Args:
        value: tensors in dicts, lists and tuples.
        keep: whether this process wants them; else they are None.
        on_host: put each on the CPU before the next is gathered.

    >>> whole({"a": [torch.ones(2), 3]})
    {'a': [tensor([1., 1.]), 3]}
    """
    if isinstance(value, DTensor):
        gathered = value.full_tensor().detach()
        if not keep:
            return None
        return gathered.cpu() if on_host else gathered
    if isinstance(value, Mapping):
        items = cast(Mapping[Any, Any], value).items()
        return {key: whole(child, keep=keep, on_host=on_host) for key, child in items}
    if type(value) in (list, tuple):
        children = cast(Sequence[Any], value)
        return type(value)(whole(child, keep=keep, on_host=on_host) for child in children)
    return value


def cut_like(value: Any, like: Any) -> Any:
    """This process's part of a whole tensor, as ``like`` is cut; all else is given back.

    Every process has the whole tensor already, and nothing is sent.

    >>> cut_like(torch.ones(2), torch.zeros(2))
    tensor([1., 1.])
    """
    if not isinstance(like, DTensor) or not isinstance(value, Tensor):
        return value
    if isinstance(value, DTensor) or value.shape != like.shape or not value.ndim:
        return value
    there = value.to(like.device)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)


def cut_weights(weights: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole weights as ``own``, a state dict with the same names, is cut."""
    return {name: cut_like(tensor, own.get(name)) for name, tensor in weights.items()}


def cut_optimizer(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's whole state dict as the parameters are cut that it is to be loaded for.

    Moments of a parameter have its shape. Where the numbers do not fit the optimizer says so when
    it loads them.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    cut = {
        number: {key: cut_like(value, parameters[number]) for key, value in kept.items()}
        if number < len(parameters)
        else kept
        for number, kept in state["state"].items()
    }
    return {**state, "state": cut}
