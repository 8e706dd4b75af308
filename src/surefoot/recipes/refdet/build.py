"""From settings to the parts of a run: model, criterion, optimizer, schedule."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn

from surefoot.models import DinoSupport, DinoSupportConfig, RefDet, RefDetConfig
from surefoot.recipes.hardware import choose_amp, choose_device
from surefoot.recipes.length import Length
from surefoot.recipes.parts import Place
from surefoot.recipes.ranks import Ranks
from surefoot.recipes.refdet.config import TrainConfig
from surefoot.recipes.refdet.criterion import RefDetCriterion, RefDetLossConfig
from surefoot.recipes.refdet.options import LossOptions, ModelOptions, OptimizerOptions

__all__ = [
    "IMAGE_SIZES",
    "Plan",
    "build_criterion",
    "build_model",
    "parameter_groups",
    "place_of",
    "warmup_cosine",
]

IMAGE_SIZES = {"nano": (640, 256), "pocket": (128, 64)}
"""Sides of a frame and of a reference photo, by preset, in pixels."""

_FLOOR = 0.01


def build_model(options: ModelOptions, *, labelled: bool = False) -> RefDet:
    """The network of ``--preset``, with random weights but for a pretrained support encoder.

    Args:
        options: its settings.
        labelled: whether it learns the classes of labelled images: it is the scene's network under
            a standard head then, and nothing looks at references.
    """
    mode = "standard" if labelled else options.head
    shape = {"mode": mode, "classes": 0 if mode == "prototype" else options.classes}
    if options.preset == "pocket":
        return RefDet(replace(RefDetConfig.pocket(), fusion=options.fusion, **shape))
    named = {} if options.support_encoder is None else {"model": options.support_encoder}
    support = DinoSupportConfig(
        frozen_blocks=options.freeze_support_layers,
        pretrained=options.pretrained,
        weights=options.support_weights,
        **named,
    )
    return RefDet(replace(RefDetConfig.nano(support), fusion=options.fusion, **shape))


def build_criterion(options: LossOptions) -> RefDetCriterion:
    """The loss, with the weights of its terms."""
    return RefDetCriterion(_loss_config(options))


def parameter_groups(model: RefDet, options: OptimizerOptions) -> list[dict[str, object]]:
    """AdamW's groups: a trained support encoder learns slower, 1-d parameters do not decay.

    Each group has a ``name``: ``support`` or ``rest``, with ``.1d`` for what does not decay. Frozen
    parameters are in none.
    """
    support = getattr(model, "support", None)  # what learns classes alone has none
    slow = set(map(id, support.encoder.parameters() if isinstance(support, DinoSupport) else ()))
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


def place_of(config: TrainConfig, ranks: Ranks) -> Place:
    """Where a run computes, and how precisely.

    Raises:
        ConfigError: a device or a precision that is not there.
    """
    hardware = config.hardware
    device = ranks.device(choose_device(hardware.device))
    amp, why = choose_amp(hardware.precision if hardware.mixed_precision else "fp32", device)
    return Place(
        device=device,
        amp=amp,
        why=why,
        check=hardware.check_precision,
        cache=config.data.cache_mb * 2.0**20,
        ranks=ranks,
        divided=hardware.fsdp,
    )


@dataclass(frozen=True)
class Plan(Length):
    """How long a run is, and how long it warms up."""

    warmup_steps: int

    @classmethod
    def of(cls, config: TrainConfig, episodes: int) -> Plan:
        """The plan for epochs of ``episodes`` micro-batches."""
        per_epoch = math.ceil(episodes / config.optimizer.gradient_accumulation)
        total = config.run.max_steps or per_epoch * config.run.epochs
        warmup = round(config.optimizer.warmup_epochs * per_epoch)
        return cls(per_epoch, total, min(warmup, total // 2))


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


def _loss_config(options: LossOptions) -> RefDetLossConfig:
    return RefDetLossConfig(
        bbox_weight=options.bbox_weight,
        cls_weight=options.cls_weight,
        dfl_weight=options.dfl_weight,
        supcon_weight=options.supcon_weight,
        obj_weight=options.obj_weight,
        absence_weight=options.absence_weight,
        bbox_loss=options.bbox_loss,
    )
