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

from surefoot.errors import CheckpointError, ConfigError
from surefoot.guard import Guard, Policy
from surefoot.guard.precision import PrecisionCheck, check_precision
from surefoot.recipes.averages import average_of
from surefoot.recipes.hardware import Amp
from surefoot.recipes.ranks import ALONE, Ranks
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
        return self._replicated(batch) if self._ranks.several else self.terms(batch)

    def agree(self) -> None:
        """Give every process the weights as the first one has them, to be measured by all."""
        self._ranks.agree(self.candidates.values())

    def _make_guard(self, amp: Amp) -> Guard:
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
            self.guard = self._make_guard(check.amp)
            self.guard.load_state_dict(state)
            self.guard.schedule(self.schedule)
            if self.averaged is not None:
                self.guard.average(self.averaged)
        return check

    # -- weights -----------------------------------------------------------------------------------

    @property
    def candidates(self) -> dict[str, nn.Module]:
        """What can be measured, by the name of its weights in a checkpoint: ``model``, ``ema``."""
        ema: dict[str, nn.Module] = {}
        if self.averaged is not None:
            ema["ema"] = self.averaged.module
        return {"model": self.model, **ema}

    def load_weights(self, weights: Mapping[str, Tensor], *, name: str = "model") -> None:
        """Take weights over, into the average too; nothing else.

        Raises:
            CheckpointError: they are another network's.
        """
        problem = self.model.load_state_dict(weights, strict=False)
        if problem.missing_keys or problem.unexpected_keys:
            raise CheckpointError(
                f"loading the weights {name!r}: {len(problem.missing_keys)} of the model's tensors "
                f"are missing ({_some(problem.missing_keys)}), {len(problem.unexpected_keys)} are "
                f"unknown to it ({_some(problem.unexpected_keys)}). Use the {self.described_by} "
                "that they were trained with."
            )
        if self.averaged is not None:
            self.averaged.module.load_state_dict(weights)

    def start_from(self, weights: Mapping[str, Tensor], *, name: str = "model") -> list[str]:
        """Take an earlier run's weights over; gives lines on what they were.

        Raises:
            CheckpointError: they are another network's.
        """
        self.load_weights(weights, name=name)
        return []

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Weights by name: the raw ones and, where there is one, their average."""
        return {name: dict(module.state_dict()) for name, module in self.candidates.items()}

    # -- everything else ---------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights."""
        return {
            "optimizer": self.optimizer.state_dict(),
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
            self.optimizer.load_state_dict(state["optimizer"])
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
