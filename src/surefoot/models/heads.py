"""What is read off every anchor point: an embedding, a box, "some object is here", and a score."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from surefoot.models.blocks import ConvBnAct

__all__ = ["DetectionHead", "PrototypeScore"]

_PRIOR = 0.01
"""Share of anchor points that are taken to show an object before anything is learnt."""


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
