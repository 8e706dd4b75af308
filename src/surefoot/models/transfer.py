"""From one stage of training to the next: what fits is taken over, and the rest is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from surefoot.errors import ConfigError
from surefoot.models.refdet import RefDet
from surefoot.models.support import BackboneSupport

__all__ = ["Transferred", "transfer"]

_BACKBONE, _SUPPORT = "backbone.", "support."


@dataclass(frozen=True)
class Transferred:
    """What became of every tensor, by name, in the order of its state dict."""

    loaded: tuple[str, ...]
    """The model's, that have values of the weights."""
    left_out: tuple[str, ...]
    """Of the weights, under the names they came with: no place, or one of another shape."""
    fresh: tuple[str, ...]
    """The model's, that stay as they were."""


def transfer(model: RefDet, weights: Mapping[str, Tensor]) -> Transferred:
    """Loads every tensor whose name and shape fit; the backbone has to fit whole.

    Args:
        model: of any mode.
        weights: ``state_dict()`` of a :class:`RefDet` of any mode, or of a
            :class:`~surefoot.models.yolov8.YoloV8Detector`, whose head becomes the standard head.

    Where the weights hold no statistics of reference photos and the model's backbone encodes them,
    those of the scenes are taken: batch statistics that fit the weights, until better are learnt.

    Raises:
        ConfigError: a tensor of the backbone is missing or of another shape. Nothing is loaded.

    >>> from surefoot.models.refdet import RefDetConfig
    >>> first = RefDet(RefDetConfig.pocket(mode="standard", classes=5))
    >>> second = RefDet(RefDetConfig.pocket())
    >>> told = transfer(second, first.state_dict())
    >>> told.left_out[0], told.fresh[0]
    ('standard.box.0.0.conv.weight', 'support.mix.conv.weight')
    """
    own = model.state_dict()
    from_detector = any(name.startswith("head.label.") for name in weights)
    came_as = {_renamed(name) if from_detector else name: name for name in weights}
    _check_backbone(own, {name: weights[came] for name, came in came_as.items()})
    fits = {
        name: weights[came]
        for name, came in came_as.items()
        if name in own and own[name].shape == weights[came].shape
    }
    left_out = tuple(came for name, came in came_as.items() if name not in fits)
    fits |= {
        name: fits[source]
        for name, source in _photo_statistics(model).items()
        if name not in fits and source in fits
    }
    with torch.no_grad():
        for name, value in fits.items():
            own[name].copy_(value)
    return Transferred(
        loaded=tuple(name for name in own if name in fits),
        left_out=left_out,
        fresh=tuple(name for name in own if name not in fits),
    )


def _renamed(name: str) -> str:
    return f"standard.{name.removeprefix('head.')}" if name.startswith("head.") else name


def _photo_statistics(model: RefDet) -> dict[str, str]:
    """The backbone's buffer that each buffer for photos is the twin of."""
    support = getattr(model, "support", None)
    if not isinstance(support, BackboneSupport):
        return {}
    return {_SUPPORT + own: _BACKBONE + name for own, name in support.twins.items()}


def _check_backbone(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    for name, value in own.items():
        if not name.startswith(_BACKBONE):
            continue
        if name not in weights:
            raise ConfigError(
                f"transferring weights: {name} is not among the {len(weights)} tensors; they are "
                "of another backbone. Build the model with the backbone that was trained."
            )
        if weights[name].shape != value.shape:
            raise ConfigError(
                f"transferring weights: {name} is {tuple(weights[name].shape)} in the weights and "
                f"{tuple(value.shape)} in the model; build it with the backbone that was trained."
            )
