"""From settings to the parts of a run: model, criterion, optimizer, schedule, average, guard."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from surefoot.errors import CheckpointError, ConfigError
from surefoot.guard import Guard, Policy
from surefoot.guard.precision import PrecisionCheck, check_precision
from surefoot.models import DinoSupport, DinoSupportConfig, RefDet, RefDetConfig
from surefoot.recipes.hardware import Amp
from surefoot.recipes.refdet.config import TrainConfig
from surefoot.recipes.refdet.criterion import RefDetCriterion, RefDetLossConfig
from surefoot.recipes.refdet.options import LossOptions, ModelOptions, OptimizerOptions
from surefoot.shapes import Episode, LossTerms

__all__ = [
    "IMAGE_SIZES",
    "Learner",
    "Plan",
    "average_of",
    "build_criterion",
    "build_model",
    "parameter_groups",
    "warmup_cosine",
]

IMAGE_SIZES = {"nano": (640, 256), "pocket": (128, 64)}
"""Sides of a frame and of a reference photo, by preset, in pixels."""

_FLOOR = 0.01


def build_model(options: ModelOptions) -> RefDet:
    """The network of ``--preset``, with random weights but for a pretrained support encoder."""
    if options.preset == "pocket":
        return RefDet(RefDetConfig.pocket())
    named = {} if options.support_encoder is None else {"model": options.support_encoder}
    support = DinoSupportConfig(
        frozen_blocks=options.freeze_support_layers,
        pretrained=options.pretrained,
        weights=options.support_weights,
        **named,
    )
    return RefDet(RefDetConfig.nano(support))


def build_criterion(options: LossOptions) -> RefDetCriterion:
    """The loss, with the weights of its terms."""
    return RefDetCriterion(_loss_config(options))


def parameter_groups(model: RefDet, options: OptimizerOptions) -> list[dict[str, object]]:
    """AdamW's groups: a trained support encoder learns slower, 1-d parameters do not decay.

    Each group has a ``name``: ``support`` or ``rest``, with ``.1d`` for what does not decay. Frozen
    parameters are in none.
    """
    slow = {
        id(p)
        for p in (
            model.support.encoder.parameters() if isinstance(model.support, DinoSupport) else ()
        )
    }
    groups: dict[str, list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            name = "support" if id(parameter) in slow else "rest"
            groups.setdefault(name + (".1d" if parameter.ndim < 2 else ""), []).append(parameter)
    return [
        {
            "name": name,
            "params": parameters,
            "lr": options.lr * (options.support_lr_scale if name.startswith("support") else 1.0),
            "weight_decay": 0.0 if name.endswith(".1d") else options.weight_decay,
        }
        for name, parameters in groups.items()
    ]


@dataclass(frozen=True)
class Plan:
    """How long a run is, in optimizer steps."""

    steps_per_epoch: int
    total_steps: int
    warmup_steps: int

    @classmethod
    def of(cls, config: TrainConfig, episodes: int) -> Plan:
        """The plan for epochs of ``episodes`` micro-batches."""
        per_epoch = math.ceil(episodes / config.optimizer.gradient_accumulation)
        total = config.run.max_steps or per_epoch * config.run.epochs
        warmup = round(config.optimizer.warmup_epochs * per_epoch)
        return cls(per_epoch, total, min(warmup, total // 2))

    @property
    def epochs(self) -> int:
        """Epochs, the last of which may be cut short."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    def steps_in(self, epoch: int) -> int:
        """Optimizer steps of epoch ``epoch``, from 0."""
        return min(self.steps_per_epoch, self.total_steps - epoch * self.steps_per_epoch)


def warmup_cosine(plan: Plan) -> Callable[[int], float]:
    """Factor of the learning rate at an optimizer step: up in a line, down in a cosine to 1 %.

    >>> factor = warmup_cosine(Plan(10, 100, 10))
    >>> factor(0), factor(9), factor(10), round(factor(55), 3), round(factor(100), 3)
    (0.1, 1.0, 1.0, 0.505, 0.01)
    """

    def factor(step: int) -> float:
        if step < plan.warmup_steps:
            return (step + 1) / plan.warmup_steps
        share = (step - plan.warmup_steps) / max(plan.total_steps - plan.warmup_steps, 1)
        return _FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))

    return factor


def average_of(model: nn.Module, decay: float, *, warmup: bool = True) -> AveragedModel:
    """A moving average of weights and buffers, evaluated in place of the last weights.

    With ``warmup`` the decay rises as (1 + n) / (10 + n), so that the first steps do not weigh on a
    short run.
    """

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
        n = int(count)
        share = 1 - (min(decay, (1 + n) / (10 + n)) if warmup else decay)
        if averaged[0].is_floating_point():
            torch._foreach_lerp_(list(averaged), list(current), share)
        else:  # counters are copied: half a batch has no meaning
            torch._foreach_copy_(list(averaged), list(current))

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


class Learner:
    """Everything that changes while a run learns, tied together by the guard."""

    def __init__(self, config: TrainConfig, plan: Plan, device: torch.device, amp: Amp) -> None:
        self.plan = plan
        self.model = build_model(config.model).to(device)
        self.criterion = build_criterion(config.loss).to(device)
        options = config.optimizer
        self.optimizer = torch.optim.AdamW(
            parameter_groups(self.model, options), betas=(0.9, options.beta2), fused=True
        )
        self.group_names = [str(group["name"]) for group in self.optimizer.param_groups]
        # The criterion may have buffers of its own (WIoU's mean): a refused step undoes them.
        self.guarded = nn.ModuleDict({"model": self.model, "criterion": self.criterion})
        self.guard = self._make_guard(options, amp)
        self.schedule = LambdaLR(self.optimizer, warmup_cosine(plan))
        self.guard.schedule(self.schedule)
        self.averaged: AveragedModel | None = None
        if options.ema_decay:
            averaged = average_of(self.model, options.ema_decay, warmup=options.ema_warmup)
            self.averaged = self.guard.average(averaged)

    def terms(self, episode: Episode) -> LossTerms:
        """The loss of an episode."""
        return self.criterion(self.model(episode.images, episode.supports), episode)

    def _make_guard(self, options: OptimizerOptions, amp: Amp) -> Guard:
        return Guard(
            self.guarded,
            self.optimizer,
            clip=options.gradient_clip_norm or None,
            accumulate=options.gradient_accumulation,
            amp=amp,
            policy=Policy.conservative() if amp == "fp16" else None,
        )

    def check_precision(
        self, episode: Episode, options: OptimizerOptions, amp: Amp
    ) -> PrecisionCheck:
        """Try ``amp`` on an episode and go on in the precision that it is good enough for."""
        compute = partial(self.terms, episode)
        check = check_precision(self.guarded, compute, amp, policy=Policy.conservative())
        if check.amp != amp:
            state = self.guard.state_dict()
            self.guard.detach()
            self.guard = self._make_guard(options, check.amp)
            self.guard.load_state_dict(state)
            self.guard.schedule(self.schedule)
            if self.averaged is not None:
                self.guard.average(self.averaged)
        return check

    @property
    def evaluated(self) -> tuple[str, RefDet]:
        """What is measured, by the name its weights have in a checkpoint: ``ema`` or ``model``."""
        if self.averaged is None:
            return "model", self.model
        return "ema", cast(RefDet, self.averaged.module)

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
                f"unknown to it ({_some(problem.unexpected_keys)}). Use the --preset and "
                "--support-encoder that they were trained with."
            )
        if self.averaged is not None:
            self.averaged.module.load_state_dict(weights)

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """Weights by name: the raw ones and, where there is one, their average."""
        named = {"model": self.model.state_dict()}
        if self.averaged is not None:
            named["ema"] = self.averaged.module.state_dict()
        return named

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights."""
        count = None if self.averaged is None else int(self.averaged.n_averaged)
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "guard": self.guard.state_dict(),
            "criterion": self.criterion.state_dict(),
            "averaged": count,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The inverse of :meth:`state_dict`; rates and decays stay those of the settings.

        Raises:
            ConfigError: the state is that of other groups of parameters.
        """
        peaks = [group["initial_lr"] for group in self.optimizer.param_groups]
        decays = [group["weight_decay"] for group in self.optimizer.param_groups]
        try:
            self.optimizer.load_state_dict(state["optimizer"])
        except ValueError as other:
            raise ConfigError(
                f"--resume: the optimizer's state does not fit ({other}). Settings that change "
                "which weights learn cannot change here; start anew with --checkpoint."
            ) from other
        self.schedule.load_state_dict(state["schedule"])
        self.schedule.base_lrs = peaks
        factor = warmup_cosine(self.plan)(self.schedule.last_epoch)
        for group, peak, decay in zip(self.optimizer.param_groups, peaks, decays, strict=True):
            group.update(initial_lr=peak, lr=peak * factor, weight_decay=decay)
        self.guard.load_state_dict(state["guard"])
        self.criterion.load_state_dict(state["criterion"])
        if self.averaged is not None and state["averaged"] is not None:
            self.averaged.n_averaged.fill_(state["averaged"])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "") if names else "none"


def _loss_config(options: LossOptions) -> RefDetLossConfig:
    return RefDetLossConfig(
        bbox_weight=options.bbox_weight,
        cls_weight=options.cls_weight,
        dfl_weight=options.dfl_weight,
        supcon_weight=options.supcon_weight,
        obj_weight=options.obj_weight,
        bbox_loss=options.bbox_loss,
    )
