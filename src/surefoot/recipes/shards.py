"""Weights, gradients and moments in shards: each process keeps a part (FSDP2)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer

from surefoot.checkpoint.pieces import cut_like, whole

__all__ = ["LEAST", "Whole", "blocks", "divide", "divide_like", "take_over"]

M = TypeVar("M", bound=nn.Module)

LEAST = 1_000_000
"""Parameters from which a part of a network is gathered by itself, when its turn comes; what is
smaller is gathered with the root. A message to the others costs as much as so many are worth."""
_HOLDERS = (nn.Module.forward, nn.Sequential.forward)
"""Of a ModuleList or a ModuleDict, and of a Sequential."""


def blocks(root: nn.Module, least: int = LEAST) -> list[nn.Module]:
    """The larger blocks of a network, inner ones first: what a ModuleList, a ModuleDict or a
    Sequential holds, for those are called one by one, as a whole; of other modules nobody knows
    whether they are called, or only looked into (timm's ``forward_features``).

    Args:
        root: a network.
        least: parameters that a block has, beside those of blocks inside it; at least 1.

    >>> net = nn.Sequential(nn.Linear(9, 9), nn.ReLU(), nn.Sequential(nn.Linear(9, 9)))
    >>> [type(block).__name__ for block in blocks(net, 50)]
    ['Linear', 'Linear']
    """
    found = list[nn.Module]()

    def look(module: nn.Module, *, called: bool) -> int:
        held = type(module).forward in _HOLDERS
        count = sum(p.numel() for p in module.parameters(recurse=False))
        count += sum(look(child, called=held) for child in module.children())
        if called and count >= least and type(module).forward is not nn.Module.forward:
            found.append(module)
            return 0
        return count

    look(root, called=False)
    return found


def divide(root: nn.Module, mesh: DeviceMesh, *, least: int | None = None) -> None:
    """Leave each process its part of every parameter; its blocks are gathered when they are called,
    and the rest when the root is.

    What a batch does not reach has a gradient of 0, or the processes would wait for one another.
    Single numbers (0-d) cannot be divided: each process has them, and their gradients are averaged
    by :class:`~surefoot.guard.halved_together.StepsTogether`.

    Args:
        root: its forward pass is what is trained.
        mesh: the processes, in one row.
        least: see :func:`blocks`; :data:`LEAST` where it is not given.
    """
    numbers = {parameter for parameter in root.parameters() if not parameter.ndim}
    for block in blocks(root, LEAST if least is None else least):
        fully_shard(block, mesh=mesh, ignored_params=numbers)
    fully_shard(root, mesh=mesh, ignored_params=numbers).set_reduce_scatter_unused_params(True)


def divide_like(module: nn.Module, model: nn.Module) -> None:
    """Leave of every parameter what is left of the one of the same name in ``model``."""
    theirs = dict(model.named_parameters())
    for owner, name, place in _places(module):
        mine = owner._parameters[name]
        assert mine is not None
        cut = cut_like(mine.detach(), theirs[place])
        owner._parameters[name] = nn.Parameter(cut, requires_grad=mine.requires_grad)


def take_over(optimizer: Optimizer, before: dict[str, nn.Parameter], root: nn.Module) -> None:
    """Point the optimizer, its state included, to the parameters that have come in the place of
    those it was built with.

    Args:
        optimizer: its groups keep their settings.
        before: the root's parameters as they were, by name.
        root: it has been divided.
    """
    now = dict(root.named_parameters())
    new = {id(parameter): now[name] for name, parameter in before.items()}
    for group in optimizer.param_groups:
        group["params"] = [new[id(parameter)] for parameter in group["params"]]
    if optimizer.state:
        kept = {new[id(parameter)]: state for parameter, state in optimizer.state.items()}
        optimizer.state.clear()
        optimizer.state.update(
            {p: {k: cut_like(v, p) for k, v in state.items()} for p, state in kept.items()}
        )


class Whole(Generic[M]):
    """A plain copy of a network that is about to be divided, to be measured by each process alone.

    It has no weights until they are asked for, and lets go of them again.

    Args:
        module: not divided yet.
    """

    def __init__(self, module: M) -> None:
        self.module: M = copy.deepcopy(module)
        self.filled = False
        self.let_go()

    def fill(self, divided: nn.Module) -> None:
        """Gather the weights; all processes ask for it."""
        self.module.load_state_dict(whole(dict(divided.state_dict())), assign=True)
        self.filled = True

    @torch.no_grad()
    def let_go(self) -> None:
        """Of the weights, not of the buffers."""
        for owner, name, _ in _places(self.module):
            mine = owner._parameters[name]
            assert mine is not None
            owner._parameters[name] = nn.Parameter(mine.to("meta"), mine.requires_grad)
        self.filled = False


def _places(module: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Of every parameter: its owner, its name there, and its name in the module."""
    for path, owner in module.named_modules():
        for name, parameter in list(owner._parameters.items()):
            if parameter is not None:
                yield owner, name, f"{path}.{name}" if path else name
