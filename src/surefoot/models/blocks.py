"""The blocks that YOLOv8 is made of: Conv-BN-SiLU, C2f and SPPF.

Written from the published description of the architecture (G. Jocher et al., 2023; the C2f block
follows CSPNet, Wang et al. 2020, arXiv:1911.11929, and SPPF follows He et al. 2015,
arXiv:1406.4729).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["C2f", "ConvBnAct", "Sppf"]

# YOLOv8's own: statistics over about 33 batches, and an eps that half precision can hold.
_BN_MOMENTUM = 0.03
_BN_EPS = 1e-3


class ConvBnAct(nn.Module):
    """Convolution without bias, batch normalisation, SiLU.

    B C_in H W -> B C_out ceil(H / stride) ceil(W / stride).

    >>> ConvBnAct(3, 8, kernel=3, stride=2)(torch.zeros(1, 3, 9, 8)).shape
    torch.Size([1, 8, 5, 4])
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 1, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False
        )
        self.bn = nn.BatchNorm2d(out_channels, eps=_BN_EPS, momentum=_BN_MOMENTUM)
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """B C_in H W -> B C_out H' W'."""
        return self.act(self.bn(self.conv(x)))


class _Bottleneck(nn.Module):
    """Two 3x3 convolutions, with the input added to their result where ``shortcut`` says so."""

    def __init__(self, channels: int, *, shortcut: bool) -> None:
        super().__init__()
        self.cv1 = ConvBnAct(channels, channels, 3)
        self.cv2 = ConvBnAct(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C2f(nn.Module):
    """Cross-stage partial block: half of the channels pass through ``depth`` bottlenecks in a row,
    and every intermediate result is kept for the closing 1x1 convolution.

    B C_in H W -> B C_out H W.

    >>> C2f(16, 32, depth=2)(torch.zeros(1, 16, 4, 4)).shape
    torch.Size([1, 32, 4, 4])
    """

    def __init__(
        self, in_channels: int, out_channels: int, depth: int = 1, *, shortcut: bool = False
    ) -> None:
        super().__init__()
        half = out_channels // 2
        self.cv1 = ConvBnAct(in_channels, 2 * half)
        self.cv2 = ConvBnAct((2 + depth) * half, out_channels)
        self.m = nn.ModuleList(_Bottleneck(half, shortcut=shortcut) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """B C_in H W -> B C_out H W."""
        parts = list(self.cv1(x).chunk(2, dim=1))
        for bottleneck in self.m:
            parts.append(bottleneck(parts[-1]))
        return self.cv2(torch.cat(parts, dim=1))


class Sppf(nn.Module):
    """Fast spatial pyramid pooling: three 5x5 max-pools in a row see 5, 9 and 13 cells.

    B C_in H W -> B C_out H W.

    >>> Sppf(16, 32)(torch.zeros(1, 16, 4, 4)).shape
    torch.Size([1, 32, 4, 4])
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = in_channels // 2
        self.cv1 = ConvBnAct(in_channels, half)
        self.cv2 = ConvBnAct(4 * half, out_channels)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)

    def forward(self, x: Tensor) -> Tensor:
        """B C_in H W -> B C_out H W."""
        parts = [self.cv1(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.cv2(torch.cat(parts, dim=1))
