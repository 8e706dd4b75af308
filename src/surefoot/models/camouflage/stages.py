"""What two stages of training need of the model: a backbone that holds still, and its own rate."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from surefoot.errors import ConfigError
from surefoot.models.camouflage.net import CamouflageNet

__all__ = ["freeze_backbone", "parameter_groups", "unfreeze_backbone"]


def freeze_backbone(model: CamouflageNet) -> None:
    """Nothing of the backbone changes from here on: no weight, no batch statistics.

    It stays in evaluation mode through every later ``model.train()``, so that its dropout and
    stochastic depth are off as well. Gradients left on it are dropped.

    >>> model = CamouflageNet("tiny", channels=16)
    >>> freeze_backbone(model)
    >>> model.train().backbone.training
    False
    """
    model.backbone_frozen = True
    model.backbone.requires_grad_(False)
    for parameter in model.backbone.parameters():
        parameter.grad = None
    model.backbone.eval()


def unfreeze_backbone(model: CamouflageNet) -> None:
    """The inverse of :func:`freeze_backbone`."""
    model.backbone_frozen = False
    model.backbone.requires_grad_(True)
    model.backbone.train(model.training)


def parameter_groups(
    model: CamouflageNet, lr: float, backbone_factor: float, *, weight_decay: float = 1e-4
) -> list[dict[str, Any]]:
    """Groups for an optimizer of torch: the backbone learns slower, 1-d parameters do not decay.

    Every parameter is in one of them, frozen or not, so that the groups are the same in every
    stage. Each group has a ``name``: ``decoder`` or ``backbone``, with ``.1d`` for what does not
    decay; torch keeps the parameters' names beside them as ``param_names``.

    Args:
        model: whose parameters.
        lr: of the decoder.
        backbone_factor: the backbone's rate as a share of it.
        weight_decay: of what has two axes or more.

    Raises:
        ConfigError: a number outside its range.

    >>> groups = parameter_groups(CamouflageNet("tiny", channels=16), 1e-3, 0.1)
    >>> [(group["name"], group["lr"], group["weight_decay"]) for group in groups]
    [('decoder', 0.001, 0.0001), ('decoder.1d', 0.001, 0.0), ('backbone', 0.0001, 0.0001),
     ('backbone.1d', 0.0001, 0.0)]
    """
    for name, value in (("lr", lr), ("backbone_factor", backbone_factor)):
        if not 0 < value < math.inf:
            raise ConfigError(f"parameter_groups: {name} {value}; expected a number above 0.")
    if not 0 <= weight_decay < math.inf:
        raise ConfigError(f"parameter_groups: weight_decay {weight_decay}; expected 0 or more.")
    named: dict[str, list[tuple[str, nn.Parameter]]] = {
        name: [] for name in ("decoder", "decoder.1d", "backbone", "backbone.1d")
    }
    for name, parameter in model.named_parameters():
        part = "backbone" if name.startswith("backbone.") else "decoder"
        named[part + (".1d" if parameter.ndim <= 1 else "")].append((name, parameter))
    return [
        {
            "params": parameters,
            "name": name,
            "lr": lr * backbone_factor if name.startswith("backbone") else lr,
            "weight_decay": 0.0 if name.endswith(".1d") else weight_decay,
        }
        for name, parameters in named.items()
        if parameters
    ]
