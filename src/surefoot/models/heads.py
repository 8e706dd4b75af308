"""What is read off every anchor point: a box and a score, of fixed classes or of references."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from surefoot.errors import ConfigError
from surefoot.models.blocks import ConvBnAct

__all__ = ["DetectionHead", "PrototypeScore", "StandardHead"]

_PRIOR = 0.01
"""Share of anchor points that are taken to show an object before anything is learnt."""


_PRIOR_POINTS = 5.0
"""Positive points per level of a 640-pixel image, before anything is learnt."""


class StandardHead(nn.Module):
    """YOLOv8's own head, for classes that are known beforehand: a tower for boxes, one for classes.

    Each is two 3x3 convolutions and a 1x1, of its own on every level. Initialisation: distributions
    uniform up to their weights' small noise (distribution focal loss about ln R); a class at the
    prior that makes five points of a 640-pixel image positive on every level.

    Args:
        channels: channels of each level's map, finest first.
        strides: pixels, of the same levels.
        classes: N, at least 1.
        reg_max: R, bins of a side's distribution.

    Raises:
        ConfigError: no classes, or fewer than two bins.

    >>> head = StandardHead((8, 16), (8, 16), classes=3)
    >>> [tuple(out.shape) for out in head([torch.zeros(1, 8, 4, 6), torch.zeros(1, 16, 2, 3)])]
    [(1, 30, 4, 16), (1, 30, 3)]
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        *,
        classes: int,
        reg_max: int = 16,
    ) -> None:
        super().__init__()
        if classes < 1 or reg_max < 2:
            raise ConfigError(
                f"StandardHead: classes {classes}, reg_max {reg_max}; at least 1 and 2."
            )
        self.classes, self.reg_max = classes, reg_max
        box = max(16, channels[0] // 4, 4 * reg_max)
        label = max(channels[0], min(classes, 100))
        self.box = nn.ModuleList(_tower(c, box, 4 * reg_max, 2) for c in channels)
        self.label = nn.ModuleList(_tower(c, label, classes, 2) for c in channels)
        for tower, stride in zip(self.label, strides, strict=True):
            share = _PRIOR_POINTS / (classes * (640 / stride) ** 2)
            nn.init.constant_(tower.get_parameter("2.bias"), math.log(share))
        for tower in self.box:
            nn.init.zeros_(tower.get_parameter("2.bias"))

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Maps B C h w of the levels -> distribution B A 4 R and logits B A N, levels one after the
        other, in the precision of the maps. Both are views of tensors that lie channel by channel.
        """
        distribution, logits = (
            torch.cat([tower(m).flatten(2) for tower, m in zip(t, maps, strict=True)], dim=2)
            for t in (self.box, self.label)
        )
        distribution = distribution.unflatten(1, (4, self.reg_max)).permute(0, 3, 1, 2)
        return distribution, logits.transpose(1, 2)


class DetectionHead(nn.Module):
    """Two towers per level: embedding; box distribution with objectness.

    Initialisation: the distribution starts uniform up to its weights' small noise (expected
    distance (R - 1) / 2 strides, distribution focal loss about ln R), and objectness at the prior
    probability 0.01 (Lin et al. 2017, "Focal Loss", arXiv:1708.02002, section 4.1).

    Args:
        channels: channels of each level's map.
        dim: D, width of an embedding.
        reg_max: R, bins of a side's distribution.
        depth: 3x3 convolutions of a tower.
    """

    def __init__(
        self, channels: tuple[int, ...], *, dim: int, reg_max: int = 16, depth: int = 1
    ) -> None:
        super().__init__()
        self.reg_max = reg_max
        box = max(64, 4 * reg_max)
        self.embed = nn.ModuleList(_tower(c, max(c, dim), dim, depth) for c in channels)
        self.box = nn.ModuleList(_tower(c, box, 4 * reg_max + 1, depth) for c in channels)
        prior = torch.zeros(4 * reg_max + 1)
        prior[-1] = -math.log((1 - _PRIOR) / _PRIOR)
        for tower in self.box:
            tower.get_parameter(f"{depth}.bias").data.copy_(prior)

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Maps B C h w of the levels -> embeddings B A D (unit length), distribution B A 4 R,
        objectness B A; float32, levels one after the other.
        """
        e = torch.cat([_rows(tower(m)) for tower, m in zip(self.embed, maps, strict=True)], dim=1)
        b = torch.cat([_rows(tower(m)) for tower, m in zip(self.box, maps, strict=True)], dim=1)
        distribution, objectness = b.split((4 * self.reg_max, 1), dim=-1)
        return (
            normalize(e, dim=-1),
            distribution.unflatten(-1, (4, self.reg_max)),
            objectness.squeeze(-1),
        )


def _tower(in_channels: int, width: int, out_channels: int, depth: int) -> nn.Sequential:
    widths = (in_channels, *(width,) * depth)
    layers = [ConvBnAct(a, b, 3) for a, b in pairwise(widths)]
    return nn.Sequential(*layers, nn.Conv2d(widths[-1], out_channels, 1))


def _rows(m: Tensor) -> Tensor:
    """B C h w -> B (h w) C, float32."""
    return m.flatten(2).transpose(1, 2).float()


class PrototypeScore(nn.Module):
    """Logit that an object is at an anchor point: ``scale cos + bias + 3 tanh(objectness / 6)``.

    ``scale`` is learnt between 0 and ``most`` (a sigmoid, so that it has gradient everywhere; it
    starts at 10), ``bias`` starts at -7: at the prior that hardly any (point, object) pair is
    positive. Objectness adds at most 3 either way, so that it can silence a cell but never outvote
    the reference.
    """

    def __init__(self, *, scale: float = 10.0, most: float = 40.0, bias: float = -7.0) -> None:
        super().__init__()
        self.most = most
        self.raw_scale = nn.Parameter(torch.tensor(math.log(scale / (most - scale))))
        self.bias = nn.Parameter(torch.tensor(bias))

    @property
    def scale(self) -> Tensor:
        """Factor of the cosine, 0-d, between 0 and ``most``."""
        return self.most * self.raw_scale.sigmoid()

    def forward(self, cosine: Tensor, objectness: Tensor) -> Tensor:
        """Cosine B A N and objectness logits B A -> logits B A N."""
        return self.scale * cosine + self.bias + 3 * torch.tanh(objectness / 6)[..., None]
