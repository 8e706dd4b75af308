"""What changes while a run learns, tied together by the guard; every recipe has one of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from surefoot.checkpoint.pieces import cut_optimizer, cut_weights, whole
from surefoot.errors import CheckpointError, ConfigError
from surefoot.guard import Guard, Policy
from surefoot.guard.halved_step import step_in_halves
from surefoot.guard.halved_together import StepsTogether
from surefoot.guard.halves import Halves
from surefoot.guard.precision import PrecisionCheck, check_precision
from surefoot.recipes.averages import average_of
from surefoot.recipes.hardware import Amp
from surefoot.recipes.ranks import ALONE, Ranks
from surefoot.recipes.shards import Whole, divide, divide_like, take_over
from surefoot.records import StepRecord
from surefoot.shapes import LossTerms

__all__ = ["Learner", "Steps"]

Batch = TypeVar("Batch")
Model = TypeVar("Model", bound=nn.Module)
Factor = Callable[[int], float]


@dataclass(frozen=True, kw_only=True)
class Steps:
    """How steps are taken."""

    clip: float | None
    """Largest global L2 norm of the true gradient; None = no clipping."""
    accumulate: int
    """Micro-batches of an optimizer step."""
    ema_decay: float
    """Of the moving average; 0 = none."""
    ema_warmup: bool = True


class Learner(ABC, Generic[Model, Batch]):
    """Model, optimizer, schedule, average and guard.

    Args:
        model: what learns, on its device.
        criterion: a module of the loss that has state of its own, or None.
        optimizer: over the model's parameters; its groups have names.
        factor: of every group's peak rate, at an optimizer step.
        steps: how they are taken.
        amp: half precision of the forward pass.
        ranks: the processes that train together.
    """

    described_by: ClassVar[str] = "settings of the model"
    """What has to be the same for weights to fit."""

    def __init__(
        self,
        model: Model,
        criterion: nn.Module | None,
        *,
        optimizer: torch.optim.Optimizer,
        factor: Factor,
        steps: Steps,
        amp: Amp,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self._criterion, self._factor, self._steps = criterion, factor, steps
        self.group_names = [str(group["name"]) for group in optimizer.param_groups]
        # The criterion may have buffers of its own (WIoU's mean): a refused step undoes them.
        parts: dict[str, nn.Module] = {"model": model}
        parts |= {"criterion": criterion} if criterion else {}
        self.guarded = _Guarded(parts, self._terms)
        learns = (p for group in optimizer.param_groups for p in group["params"])
        self._ranks, self._replicated = ranks, ranks.replicated(self.guarded, learns)
        self._wholes: dict[str, Whole[nn.Module]] = {}
        self.guard = self._make_guard(amp)
        self.schedule = LambdaLR(optimizer, factor)
        self.guard.schedule(self.schedule)
        self.averaged: AveragedModel | None = None
        if steps.ema_decay:
            averaged = average_of(model, steps.ema_decay, warmup=steps.ema_warmup)
            self.averaged = self.guard.average(averaged)

    @abstractmethod
    def terms(self, batch: Batch) -> LossTerms:
        """The loss of a micro-batch."""

    def _terms(self, batch: Batch) -> LossTerms:
        return self.terms(batch)  # looked up at every call

    def loss(self, batch: Batch) -> LossTerms:
        """The loss of a micro-batch, whose gradient is exchanged where there are others."""
        if self._wholes and not self.guard._window.micro_batches:
            self._ranks.agree([self.guarded])  # as DistributedDataParallel does by itself
        return self._replicated(batch) if self._ranks.several else self.terms(batch)

    def agree(self) -> None:
        """Give every process the weights as the first one has them, to be measured by all."""
        self._ranks.agree(self._learnt.values())
        self.gather()

    def gather(self) -> None:
        """Have the weights of :attr:`candidates` here, where they are divided."""
        for name, one in self._wholes.items():
            if not one.filled:
                one.fill(self._learnt[name])

    def begin(self) -> None:
        """Training goes on: memory that measuring took is free again."""
        self.model.train()
        for one in self._wholes.values():
            one.let_go()

    def steps_with(self, halves: Halves) -> Callable[..., StepRecord]:
        """What takes a step on a micro-batch, in pieces that ``halves`` cuts where it has to."""
        if self._ranks.several:
            return StepsTogether(self.guard, halves, self.loss).step
        return partial(step_in_halves, self.guard, halves, self.loss)

    @property
    def together(self) -> str:
        """How many processes, for a person."""
        divided = ", each with a part of the weights" if self._wholes else ""
        return f"{self._ranks.size} processes{divided}"

    def divide(self) -> None:
        """Leave every process a part of weights, gradients, moments and average from here on; what
        they are is not changed. Before the first step, and once.

        Raises:
            ConfigError: there is only this process.
        """
        device = next(self.model.parameters()).device
        mesh, state = self._ranks.mesh(device), self.guard.state_dict()
        self.guard.detach()
        self._replicated = self.guarded
        before = dict(self.guarded.named_parameters())
        self._wholes = {name: Whole(module) for name, module in self._learnt.items()}
        divide(self.guarded, mesh)
        take_over(self.optimizer, before, self.guarded)
        if self.averaged is not None:
            divide_like(self.averaged.module, self.model)
        self._renew_guard(self._amp, state)

    def _make_guard(self, amp: Amp) -> Guard:
        self._amp: Amp = amp
        return Guard(
            self._replicated,
            self.optimizer,
            clip=self._steps.clip or None,
            accumulate=self._steps.accumulate,
            amp=amp,
            policy=Policy.conservative() if amp == "fp16" else None,
        )

    def check_precision(self, batch: Batch, amp: Amp) -> PrecisionCheck:
        """Try ``amp`` on a batch and go on in the precision that it is good enough for."""
        compute = partial(self.loss, batch)
        check = check_precision(self._replicated, compute, amp, policy=Policy.conservative())
        if check.amp != amp:
            state = self.guard.state_dict()
            self.guard.detach()
            self._renew_guard(check.amp, state)
        return check

    def _renew_guard(self, amp: Amp, state: dict[str, Any]) -> None:
        self.guard = self._make_guard(amp)
        self.guard.load_state_dict(state)
        self.guard.schedule(self.schedule)
        if self.averaged is not None:
            self.guard.average(self.averaged)

    # -- weights -----------------------------------------------------------------------------------

    @property
    def candidates(self) -> dict[str, nn.Module]:
        """What can be measured, by the name of its weights in a checkpoint: ``model``, ``ema``. Of
        what is divided they are the whole, as :meth:`agree` has gathered it.
        """
        return {name: one.module for name, one in self._wholes.items()} or self._learnt

    @property
    def _learnt(self) -> dict[str, nn.Module]:
        ema: dict[str, nn.Module] = {}
        if self.averaged is not None:
            ema["ema"] = self.averaged.module
        return {"model": self.model, **ema}

    def load_weights(self, weights: Mapping[str, Tensor], *, name: str = "model") -> None:
        """Take weights over, into the average too; nothing else.

        Raises:
            CheckpointError: they are another network's.
        """
        cut = cut_weights(weights, self.model.state_dict())
        problem = self.model.load_state_dict(cut, strict=False)
        if problem.missing_keys or problem.unexpected_keys:
            raise CheckpointError(
                f"loading the weights {name!r}: {len(problem.missing_keys)} of the model's tensors "
                f"are missing ({_some(problem.missing_keys)}), {len(problem.unexpected_keys)} are "
                f"unknown to it ({_some(problem.unexpected_keys)}). Use the {self.described_by} "
                "that they were trained with."
            )
        self.load_average(weights)

    def load_average(self, weights: Mapping[str, Tensor]) -> None:
        """Take weights over into the average, where there is one."""
        if self.averaged is not None:
            module = self.averaged.module
            module.load_state_dict(cut_weights(weights, module.state_dict()))

    def start_from(self, weights: Mapping[str, Tensor], *, name: str = "model") -> list[str]:
        """Take an earlier run's weights over; gives lines on what they were.

        Raises:
            CheckpointError: they are another network's.
        """
        self.load_weights(weights, name=name)
        return []

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Weights by name: the raw ones and, where there is one, their average."""
        states = {name: dict(module.state_dict()) for name, module in self._learnt.items()}
        return self._gathered(states)

    def _gathered(self, state: Any) -> Any:
        """The same in whole tensors, in the first process; the others have what they have."""
        if not self._wholes:
            return state
        return whole(state, keep=self._ranks.first, on_host=True)

    # -- everything else ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights."""
        return {
            "optimizer": self._gathered(self.optimizer.state_dict()),
            "schedule": self.schedule.state_dict(),
            "guard": self.guard.state_dict(),
            "criterion": {} if self._criterion is None else self._criterion.state_dict(),
            "averaged": None if self.averaged is None else int(self.averaged.n_averaged),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; rates and decays stay those of the settings.

        Raises:
            ConfigError: the state is that of other groups of parameters.
        """
        groups = self.optimizer.param_groups
        peaks = [group["initial_lr"] for group in groups]
        decays = [group["weight_decay"] for group in groups]
        try:
            self.optimizer.load_state_dict(cut_optimizer(state["optimizer"], self.optimizer))
        except ValueError as other:
            raise ConfigError(
                f"--resume: the optimizer's state does not fit ({other}). Settings that change "
                "which weights learn cannot change here; start anew with --checkpoint."
            ) from other
        self.schedule.load_state_dict(state["schedule"])
        self.schedule.base_lrs = peaks
        factor = self._factor(self.schedule.last_epoch)
        for group, peak, decay in zip(self.optimizer.param_groups, peaks, decays, strict=True):
            group.update(initial_lr=peak, lr=peak * factor, weight_decay=decay)
        self.guard.load_state_dict(state["guard"])
        if self._criterion is not None:
            self._criterion.load_state_dict(state["criterion"])
        if self.averaged is not None and state["averaged"] is not None:
            self.averaged.n_averaged.fill_(state["averaged"])


class _Guarded(nn.ModuleDict):
    """All that changes, as a module whose forward pass is the loss."""

    def __init__(self, parts: dict[str, nn.Module], compute: Callable[[Any], LossTerms]) -> None:
        super().__init__(parts)
        self._compute = compute

    def forward(self, batch: Any) -> LossTerms:
        return self._compute(batch)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "") if names else "none"
