"""A copy of everything an optimizer step moves, and the look that tells if it is fit to keep."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from surefoot.guard.buffers import BufferKeeper
from surefoot.guard.measure import ParameterTable, local, tensor_norms
from surefoot.records import Culprit

__all__ = ["Replica", "Snapshot", "TrainingState"]

_ABSURD_GROWTH = 1e4
_ABSURD_FLOOR = 1e3
"""A weight is absurd when its norm is above both: this, and 10,000 times its norm when it was kept.
One that a flipped bit sends to 1e30 is far beyond; no learning rate that trains comes near. Moments
and buffers have no such bound: they follow the gradients and the inputs."""


class Replica(NamedTuple):
    """A weight that lies whole on this rank, and what the optimizer keeps of it, by name."""

    name: str
    weight: Tensor
    kept: dict[str, Tensor]


_SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum of ")
"""Adam and its kin, AMSGrad, RMSprop and Adadelta, Adagrad."""


class TrainingState:
    """Names and tensors of weights, buffers, averages and optimizer state, as they are now."""

    def __init__(
        self,
        model: nn.Module,
        table: ParameterTable,
        averages: list[torch.optim.swa_utils.AveragedModel],
        buffers: BufferKeeper,
    ) -> None:
        self._model, self._table = model, table
        self._averages, self._buffers = averages, buffers
        self.forward_ahead = False
        """The next forward pass has moved the buffers already; their copy is the state."""

    def weights(self) -> set[str]:
        """Names of the parameters: the model's, and the optimizer's that it does not hold."""
        return {name for name, _ in self._parameters()}

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name; what the optimizer keeps is called ``exp_avg of layer.weight``."""
        return dict(self._walk())

    def replicas(self) -> Iterator[Replica]:
        """The weights that are not in shards; other ranks may hold copies of them."""
        for name, parameter in self._parameters():
            if not isinstance(parameter, DTensor):
                kept: dict[str, Any] = self._table.optimizer.state.get(parameter, {})
                tensors = {f"{k} of {name}": kept[k] for k in sorted(kept)}
                whole = {k: v for k, v in tensors.items() if type(v) is Tensor}
                yield Replica(name, parameter, whole)

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter | Tensor]]:
        held: set[int] = set()
        for name, parameter in self._model.named_parameters():
            held.add(id(parameter))
            yield name, parameter
        for name, parameter in self._table.named():
            if id(parameter) not in held:
                yield name, parameter

    def _walk(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self._parameters():
            yield name, parameter.detach()
        for name, buffer in self._buffers.named(before_forward=self.forward_ahead).items():
            yield name, buffer.detach()
        for i, averaged in enumerate(self._averages):
            for name, tensor in averaged.state_dict(keep_vars=True).items():
                yield f"average {i} of {name}", tensor.detach()
        for owner, parameter in self._table.named():
            for key, value in self._table.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    yield f"{key} of {owner}", value.detach()

    def forget_optimizer_state(self) -> None:
        """As before the first step; the optimizer makes its state anew."""
        self._table.optimizer.state.clear()


class Snapshot:
    """One copy on the host, and the norms it had. Memory is taken once and used again."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self.norms: dict[str, float] = {}

    def take(self, state: TrainingState, norms: dict[str, float] | None = None) -> None:
        """Copy the state as it is; its ``norms`` where they are known already."""
        now = {name: local(tensor) for name, tensor in state.tensors().items()}
        for name, tensor in now.items():
            kept = self._kept.get(name)
            if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
                pinned = tensor.device.type == "cuda"
                self._kept[name] = torch.empty_like(tensor, device="cpu", pin_memory=pinned)
        self._kept = {name: self._kept[name] for name in now}
        if now:
            torch._foreach_copy_(list(self._kept.values()), list(now.values()))
        self.norms = norms_of(now) if norms is None else norms

    def kept(self, name: str) -> Tensor | None:
        """This copy of one tensor."""
        return self._kept.get(name)

    def restore(self, state: TrainingState) -> None:
        """Put the copy back."""
        now = {name: local(tensor) for name, tensor in state.tensors().items()}
        if any(" of " in name and name not in self._kept for name in now):
            state.forget_optimizer_state()
        names = [name for name in self._kept if name in now]
        with torch.no_grad():
            torch._foreach_copy_([now[n] for n in names], [self._kept[n] for n in names])

    def faults(self, state: TrainingState) -> tuple[tuple[Culprit, ...], dict[str, float]]:
        """What in the state is not finite, or absurdly larger than in this copy; and the norms.

        What was not finite in the copy either is no fault: an attention mask holds -inf by design,
        and going back would not mend it.
        """
        weights, found = state.weights(), list[Culprit]()
        tensors = state.tensors()
        found.extend(Culprit(f"{name} (negative)", value) for name, value in _negative(tensors))
        norms = norms_of(tensors)
        for name, norm in norms.items():
            then = self.norms.get(name, 0.0)
            absurd = name in weights and norm > max(_ABSURD_FLOOR, _ABSURD_GROWTH * then)
            if math.isfinite(then) and (absurd or not math.isfinite(norm)):
                found.append(Culprit(name, norm))
        return tuple(found[:16]), norms


def _negative(tensors: dict[str, Tensor]) -> list[tuple[str, float]]:
    """What is a mean of squares and has gone below 0: its root is NaN at the next step."""
    squares = {n: local(t) for n, t in tensors.items() if _is_mean_of_squares(n)}
    squares = {n: t for n, t in squares.items() if t.numel() and t.is_floating_point()}
    if not squares:
        return []
    least = torch.stack([t.min().to("cpu", torch.float64) for t in squares.values()]).tolist()
    return [(name, value) for name, value in zip(squares, least, strict=True) if value < 0.0]


def _is_mean_of_squares(name: str) -> bool:
    return name.startswith(_SQUARES) or name.endswith("running_var")


def norms_of(tensors: dict[str, Tensor]) -> dict[str, float]:
    """L2 norm of every floating tensor; one read pass and one read."""
    floating = {n: local(t) for n, t in tensors.items() if t.is_floating_point()}
    if not floating:
        return {}
    return dict(zip(floating, tensor_norms(list(floating.values())).tolist(), strict=True))
