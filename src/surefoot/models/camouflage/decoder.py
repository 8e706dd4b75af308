"""From four maps to a mask: context at the top, then a step down per level, each gated by the mask
so far.

After the published decoders that refine a coarse map: PraNet's reverse attention (Fan et al. 2020,
arXiv:2006.11392), the foreground and background branches of CamoFormer (Yin et al. 2022,
arXiv:2212.06570) and deep supervision (Lee et al. 2015, arXiv:1409.5185). Nothing is convolved at
the size of the image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from surefoot.models.camouflage.encoder import conv_bn_relu

__all__ = ["Context", "Finish", "GatedStep", "LogitHead", "resized"]


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """B C h w -> B C H W, bilinear."""
    if tuple(x.shape[-2:]) == size:
        return x
    return interpolate(x, size=size, mode="bilinear", align_corners=False)


class LogitHead(nn.Module):
    """3x3 convolution to half of the channels, then one logit a place, float32.

    B C h w -> B 1 h w.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = conv_bn_relu(channels, channels // 2, 3)
        self.out = nn.Conv2d(channels // 2, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """B C h w -> B 1 h w."""
        return self.out(self.mix(x)).float()


class Context(nn.Module):
    """What is around a place: a 1x1 and two dilated 3x3 convolutions, and the mean of all places.

    A small form of ASPP (Chen et al. 2017, arXiv:1706.05587). B C h w -> B C h w.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.near = conv_bn_relu(channels, channels, 1)
        self.around = conv_bn_relu(channels, channels, 3, dilation=2)
        self.far = conv_bn_relu(channels, channels, 3, dilation=4)
        # No batch normalisation: one value per image and channel, and a batch may hold one image.
        self.everywhere = nn.Conv2d(channels, channels, 1)
        self.mix = conv_bn_relu(4 * channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """B C h w -> B C h w."""
        whole = torch.relu(self.everywhere(x.mean((2, 3), keepdim=True)))
        parts = (self.near(x), self.around(x), self.far(x), whole.expand_as(x))
        return self.mix(torch.cat(parts, dim=1))


class GatedStep(nn.Module):
    """One level down: features of the level above joined with the encoder's, seen as what the mask
    so far calls object, background and border, and a correction of that mask.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fuse = conv_bn_relu(channels, channels, 3)
        self.choose = conv_bn_relu(3 * channels, channels, 1)
        self.refine = conv_bn_relu(channels, channels, 3)
        self.correct = nn.Conv2d(channels, 1, 1)

    def forward(self, above: Tensor, level: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """B C h w, B C 2h 2w and logits B 1 h w -> features and logits of 2h 2w."""
        size = (level.shape[-2], level.shape[-1])
        x = self.fuse(resized(above, size) + level)
        before = resized(mask, size)
        inside = before.sigmoid().to(x.dtype)
        border = 4 * inside * (1 - inside)
        seen = torch.cat((x * inside, x * (1 - inside), x * border), dim=1)
        x = x + self.refine(self.choose(seen))
        return x, before + self.correct(x).float()


class Finish(nn.Module):
    """The last correction of the mask, at stride 2 with half of the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.narrow = conv_bn_relu(channels, half, 1)
        self.refine = conv_bn_relu(half, half, 3)
        self.correct = nn.Conv2d(half, 1, 1)

    def forward(self, x: Tensor, mask: Tensor, size: tuple[int, int]) -> Tensor:
        """B C h w and logits B 1 h w -> logits B 1 of ``size``."""
        x = self.refine(resized(self.narrow(x), size))
        return resized(mask, size) + self.correct(x).float()
