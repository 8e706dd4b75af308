"""One read pass over the gradients: the norm of every tensor, and of all of them.

A non-finite element makes its tensor's norm non-finite, so the same pass is the finiteness test
and the blame vector. Norms are L2 and are taken in float32 at least: the norm of a half-precision
gradient overflows and is rounded to three digits otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from surefoot.errors import UsageError

__all__ = ["Measured", "ParameterTable", "local", "tensor_norms"]

_SILENT_AFTER = 50
_HALF = (torch.float16, torch.bfloat16)
_LARGE = 2**15
"""Elements from which one tensor is worth all threads."""


class Measured(NamedTuple):
    """The gradients of one step and what the read pass found."""

    indices: list[int]
    """Places in the table of the parameters that have a gradient."""
    gradients: list[Tensor]
    norms: Tensor
    """P: L2 norm of each gradient, of the numbers as they lie in memory (scaled)."""
    total: Tensor
    """0-d: L2 norm of all of them together."""


class ParameterTable:
    """The optimizer's parameters in the model's order, and their names."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._model, self.optimizer = model, optimizer
        self._build()

    def _build(self) -> None:
        place = {id(p): (i, name) for i, (name, p) in enumerate(self._model.named_parameters())}
        found: list[tuple[int, str, Tensor, int]] = []
        for g, group in enumerate(self.optimizer.param_groups):
            for i, parameter in enumerate(group["params"]):
                unknown = (len(place) + len(found), f"group{g}.param{i}")
                found.append((*place.get(id(parameter), unknown), parameter, g))
        found.sort(key=lambda entry: entry[0])
        self.names = tuple(name for _, name, _, _ in found)
        self.parameters = tuple(parameter for _, _, parameter, _ in found)
        self.groups = tuple(group for *_, group in found)
        self._shape = self._count()
        self._seen: set[int] = set()
        self._present: list[int] = []
        self._alike = 0
        self._told: set[str] = set()

    @property
    def silent(self) -> tuple[str, ...]:
        """Names of the parameters that no measured step had a gradient for."""
        return tuple(name for i, name in enumerate(self.names) if i not in self._seen)

    @property
    def untouched(self) -> bool:
        """Whether no parameter has a gradient."""
        return all(parameter.grad is None for parameter in self.parameters)

    def fell_silent(self) -> tuple[str, ...]:
        """Names of those that have just gone without gradient for 50 steps while others had one;
        each is named once. Experts that take turns are not meant, for the set has to be the same,
        nor what was frozen before the first step.
        """
        if self._alike != _SILENT_AFTER or len(self._present) == len(self.names):
            return ()
        silent = set(range(len(self.names))).difference(self._present)
        meant = {i for i in silent - self._seen if not self.parameters[i].requires_grad}
        found = [self.names[i] for i in sorted(silent - meant) if self.names[i] not in self._told]
        self._told.update(found)
        return tuple(found)

    def _count(self) -> tuple[int, ...]:
        return tuple(len(group["params"]) for group in self.optimizer.param_groups)

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Names and parameters of the optimizer, as its groups are now."""
        if self._count() != self._shape:
            self._build()  # a group was added, as when a backbone is unfrozen
        return zip(self.names, self.parameters, strict=True)

    @property
    def device(self) -> torch.device:
        """Where the first parameter is."""
        return self.parameters[0].device

    def measure(self) -> Measured:
        """Read every gradient once.

        Raises:
            UsageError: no parameter has a gradient.
        """
        gradients = [_summed_up(p) for _, p in self.named()]
        indices = [i for i, g in enumerate(gradients) if g is not None]
        present = [g for g in gradients if g is not None]
        if not present:
            raise UsageError(
                f"guard.step: none of the optimizer's {len(self.parameters)} parameters received a "
                "gradient from this loss. Either the loss does not depend on them (a constant, a "
                "detached tensor, torch.no_grad) or they are frozen; the optimizer was given "
                f"{self.names[0]!r} and others."
            )
        if len(self._seen) < len(gradients):
            self._seen.update(indices)
        self._alike = self._alike + 1 if indices == self._present else 1
        self._present = indices
        norms = tensor_norms(present)
        return Measured(indices, present, norms, torch.linalg.vector_norm(norms))


def _summed_up(parameter: Tensor) -> Tensor | None:
    """The gradient. Under tensor parallelism that of a replicated weight may still be a sum whose
    parts lie on several ranks; the optimizer's own operations would add them up again and again.
    """
    gradient = parameter.grad
    if isinstance(gradient, DTensor) and any(p.is_partial() for p in gradient.placements):
        placements = parameter.placements if isinstance(parameter, DTensor) else None
        parameter.grad = gradient = gradient.redistribute(placements=placements)
    return gradient


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that lies in shards, in the same memory; others as they are.

    >>> local(torch.ones(2))
    tensor([1., 1.])
    """
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def tensor_norms(gradients: Sequence[Tensor]) -> Tensor:
    """L2 norm of each tensor, one pass.

    Args:
        gradients: P tensors of any float or complex dtype, strided, sparse or sharded, on any
            devices.

    Returns:
        P norms on the first tensor's device, float32 (float64 when a gradient is).

    >>> tensor_norms([torch.tensor([3.0, 4.0]), torch.tensor([5.0])])
    tensor([5., 5.])
    """
    kinds = {(g.dtype, g.device, g.layout, isinstance(g, DTensor)) for g in gradients}
    if len(kinds) == 1:
        dtype, _, layout, sharded = next(iter(kinds))
        if not sharded and dtype in (torch.float32, torch.float64) and layout == torch.strided:
            return torch.stack(_dense_norms(gradients))
    if any(sharded for *_, sharded in kinds):
        return _sharded_norms(gradients)
    home = gradients[0].device
    wide = torch.float64 if any(dtype == torch.float64 for dtype, *_ in kinds) else torch.float32
    norms: list[Tensor] = [torch.empty(0)] * len(gradients)
    for key in kinds:
        places = [i for i, g in enumerate(gradients) if (g.dtype, g.device, g.layout, False) == key]
        found = _dense_norms([_dense(gradients[i]) for i in places])
        for i, norm in zip(places, found, strict=True):
            norms[i] = norm.to(home, wide)
    return torch.stack(norms)


def _dense_norms(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Of strided, real tensors of one dtype and device.

    On the CPU ``_foreach_norm`` uses one thread and adds up in float32 (0.1 % off for 20 million
    elements); BLAS uses all of them and is exact to 5 digits. Half precision is widened one tensor
    at a time, while it lies in the cache.
    """
    half = gradients[0].dtype in _HALF
    if gradients[0].device.type != "cpu":
        return list(torch._foreach_norm(list(gradients), 2.0, torch.float32 if half else None))
    large = torch.get_num_threads() > 1
    norms: list[Tensor] = []
    small, squares = list[int](), list[Tensor]()
    for i, gradient in enumerate(gradients):
        if half or (large and gradient.numel() >= _LARGE and gradient.is_contiguous()):
            flat = gradient.reshape(-1).float() if half else gradient.view(-1)
            squares.append(torch.dot(flat, flat))
            norms.append(squares[-1])
        else:
            small.append(i)
            norms.append(gradient)
    if squares:
        torch._foreach_sqrt_(squares)
    if small:
        for i, norm in zip(small, torch._foreach_norm([gradients[i] for i in small]), strict=True):
            norms[i] = norm
    return norms


def _sharded_norms(gradients: Sequence[Tensor]) -> Tensor:
    """Norms of whole tensors that lie in shards on several ranks; one reduction per mesh axis.

    torch's own reduction of ``found_inf`` looks at the first gradient's placements alone, and its
    total norm fails on mixed meshes (pytorch#180346); here every tensor goes by its own.
    """
    norms = tensor_norms([local(g) for g in gradients])
    axes: dict[torch.distributed.ProcessGroup, list[int]] = {}
    for i, gradient in enumerate(gradients):
        if not isinstance(gradient, DTensor):
            continue
        for axis, placement in enumerate(gradient.placements):
            if placement.is_partial():
                raise UsageError(
                    "guard.step: a gradient is a partial sum over ranks; reduce it before the step "
                    "(FSDP2 and tensor parallel layers do so at the end of backward)."
                )
            if not placement.is_replicate():
                axes.setdefault(gradient.device_mesh.get_group(axis), []).append(i)
    for group, places in axes.items():
        squares = norms[places].square()
        torch.distributed.all_reduce(squares, group=group)
        norms = norms.index_put((torch.tensor(places, device=norms.device),), squares.sqrt())
    return norms


def _dense(gradient: Tensor) -> Tensor:
    """Strided and real."""
    if gradient.layout != torch.strided:
        gradient = gradient.coalesce().values()
    return torch.view_as_real(gradient) if gradient.is_complex() else gradient
