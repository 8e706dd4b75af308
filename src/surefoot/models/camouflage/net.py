"""CamouflageNet: finds what matches its background, and says so as one mask per image."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from surefoot.errors import ConfigError, UsageError
from surefoot.models.camouflage.decoder import Context, Finish, GatedStep, LogitHead, resized
from surefoot.models.camouflage.encoder import build_encoder, conv_bn_relu
from surefoot.models.camouflage.experts import Experts
from surefoot.models.camouflage.output import CamouflageOutput

__all__ = ["CamouflageNet"]


class CamouflageNet(nn.Module):
    """Encoder, four levels of the same width, and a decoder that corrects its own mask downwards.

    The coarsest level gives a first mask; three steps and a last one at stride 2 each add a
    correction to it. The mask of every step is given out as well (deep supervision). In training
    there is an outline beside it.

    Args:
        backbone: a model of timm with maps at strides 4, 8, 16 and 32, or ``"tiny"``.
        channels: C, the width of the decoder; even.
        pretrained: True for the published weights, or a local file of them.
        experts: n of the mixture of experts that refines every level; 0 for none.

    Raises:
        ConfigError: no such backbone, or a number outside its range.
        CheckpointError: the weights cannot be had.

    >>> model = CamouflageNet("tiny", channels=16)
    >>> said = model(torch.rand(2, 3, 64, 64))
    >>> said.mask.shape, [m.shape[-1] for m in said.deep]
    (torch.Size([2, 1, 64, 64]), [4, 8, 16, 32])
    """

    def __init__(
        self,
        backbone: str = "pvt_v2_b2",
        *,
        channels: int = 64,
        pretrained: bool | Path = False,
        experts: int = 0,
    ) -> None:
        super().__init__()
        if channels < 2 or channels % 2:
            raise ConfigError(f"CamouflageNet: channels {channels}; expected an even number.")
        self.backbone = build_encoder(backbone, pretrained=pretrained)
        self.backbone_frozen = False
        self.laterals = nn.ModuleList(conv_bn_relu(c, channels) for c in self.backbone.channels)
        self.experts = nn.ModuleList(
            Experts(channels, experts) for _ in self.laterals if experts != 0
        )
        self.context = Context(channels)
        self.coarse = nn.Conv2d(channels, 1, 1)
        self.steps = nn.ModuleList(GatedStep(channels) for _ in self.laterals[1:])
        self.finish = Finish(channels)
        self.edge = LogitHead(channels)

    @property
    def deepest(self) -> int:
        """Stride of the coarsest level: images of other sizes than its multiples are resampled."""
        return self.backbone.strides[-1]

    def train(self, mode: bool = True) -> Self:
        """Training or evaluation mode; a frozen backbone stays in evaluation mode."""
        super().train(mode)
        if self.backbone_frozen:
            self.backbone.eval()
        return self

    def forward(self, images: Tensor) -> CamouflageOutput:
        """B 3 H W, RGB in [0, 1] -> a mask of H W, whatever they are.

        Where a side is no multiple of :attr:`deepest`, the images are first enlarged to the next
        one: all maps then cover the same ground. Choose such a size, and nothing is resampled.

        Raises:
            UsageError: the images are not B 3 H W.
        """
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
            raise UsageError(
                f"segmenting: images are {tuple(images.shape)}; expected B 3 H W, all above 0."
            )
        height, width = images.shape[-2:]
        fitted = tuple(-(-side // self.deepest) * self.deepest for side in (height, width))
        levels, balance = self._levels(resized(images, (fitted[0], fitted[1])))
        half = max(2, self.backbone.strides[0] // 2)
        x, deep = self._descend(levels)
        mask = self.finish(x, deep[-1], (fitted[0] // half, fitted[1] // half))
        return CamouflageOutput(
            mask=resized(mask, (height, width)),
            deep=tuple(deep),
            edge=self.edge(x) if self.training else None,
            auxiliary={"balance": balance} if balance is not None and self.training else {},
        )

    def _levels(self, images: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """The four maps at the decoder's width, finest first, and how uneven the experts are."""
        maps = self.backbone(images)
        levels = [lateral(m) for lateral, m in zip(self.laterals, maps, strict=True)]
        if not len(self.experts):
            return levels, None
        refined = [experts(x) for experts, x in zip(self.experts, levels, strict=True)]
        return [x for x, _ in refined], torch.stack([b for _, b in refined]).mean()

    def _descend(self, levels: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        x = self.context(levels[-1])
        deep = [self.coarse(x).float()]
        for step, level in zip(self.steps, reversed(levels[:-1]), strict=True):
            x, mask = step(x, level, deep[-1])
            deep.append(mask)
        return x, deep
