"""A mixture of experts per level: every image is refined by the two that its router picks.

After the sparsely gated layers of Shazeer et al. 2017 (arXiv:1701.06538) and the balance term of
Fedus et al. 2021 (Switch, arXiv:2101.03961, equations 4-6).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, gelu, one_hot

from surefoot.errors import ConfigError

__all__ = ["Experts"]

_SIDE = 5
_USAGE_MOMENTUM = 0.1


class Experts(nn.Module):
    """Residual refinement by the two experts of each image with the highest probability.

    An expert is a 5x5 convolution per channel, GELU, and a 1x1 convolution. The first ones start as
    different operators (texture, frequency, edges, contrast, context), and all of them learn. The
    weights of the chosen experts are gathered per image and applied in one grouped convolution and
    one batched product: no loop over images or experts, nothing read from the device, and every
    parameter is part of every backward pass.

    The two probabilities, rescaled to sum 1, weigh the two results, so the router learns from the
    loss of the task. Beside it stands a balance term, n sum_i f_i P_i: f_i the share of choices
    that fell on expert i, as a running mean over batches, since a batch of two images cannot show
    balance, and P_i the batch's mean probability, which carries the gradient. It is 1 where either
    is uniform.

    Args:
        channels: C.
        experts: n, at least 2.

    Raises:
        ConfigError: fewer experts than an image is given.

    >>> refined, balance = Experts(16, 6)(torch.rand(2, 16, 8, 8))
    >>> refined.shape, balance.ndim
    (torch.Size([2, 16, 8, 8]), 0)
    """

    usage: Tensor

    def __init__(self, channels: int, experts: int, *, chosen: int = 2) -> None:
        super().__init__()
        if not 1 <= chosen <= experts:
            raise ConfigError(
                f"CamouflageNet: {experts} experts, of which an image is given {chosen}; expected "
                f"at least {chosen}, or 0 for no experts."
            )
        self.chosen = chosen
        self.norm = nn.LayerNorm(2 * channels)
        self.router = nn.Linear(2 * channels, experts)
        nn.init.normal_(self.router.weight, std=0.02)
        nn.init.zeros_(self.router.bias)
        self.spatial = nn.Parameter(_operators(experts, channels))
        self.mix = nn.Parameter(torch.randn(experts, channels, channels) * 0.1 / channels**0.5)
        self.register_buffer("usage", torch.full((experts,), 1 / experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """B C h w -> refined B C h w, and the balance term, a scalar."""
        probability = self.probability(x)
        share, index = probability.topk(self.chosen, dim=1)
        share = share / share.sum(1, keepdim=True)
        return x + self._refinement(x, share, index), self._balance(probability, index)

    def probability(self, x: Tensor) -> Tensor:
        """B C h w -> B n: the router's softmax, float32."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            spread = (x.var((2, 3), correction=0) + 1e-6).sqrt()
            described = torch.cat((x.mean((2, 3)), spread), dim=1)
            return self.router(self.norm(described)).softmax(1)

    def _refinement(self, x: Tensor, share: Tensor, index: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        rows = batch * self.chosen * channels
        copies = x[:, None].expand(-1, self.chosen, -1, -1, -1).reshape(1, rows, height, width)
        kernels = self.spatial[index].reshape(rows, 1, _SIDE, _SIDE)
        y = gelu(conv2d(copies, kernels, padding=_SIDE // 2, groups=rows))
        y = y.view(batch, self.chosen * channels, height * width)
        # B k C C -> B C (k C): the product sums over the chosen experts as well.
        mix = (self.mix[index] * share[:, :, None, None]).transpose(1, 2).flatten(2)
        return torch.bmm(mix.to(y.dtype), y).view_as(x).to(x.dtype)

    def _balance(self, probability: Tensor, index: Tensor) -> Tensor:
        experts = probability.shape[1]
        used = self.usage
        if self.training:
            now = one_hot(index, experts).float().mean((0, 1))
            used = torch.lerp(self.usage, now, _USAGE_MOMENTUM)
            self.usage.copy_(used)
        return experts * (used * probability.mean(0)).sum()


def _operators(experts: int, channels: int) -> Tensor:
    """n C 1 5 5: each expert's start, of a random sign and size in every channel."""
    starts = torch.stack([_starts()[i % len(_starts())] for i in range(experts)])
    size = torch.randn(experts, channels, 1, 1, 1)
    noise = 0.1 * torch.randn(experts, channels, 1, _SIDE, _SIDE) / _SIDE
    return starts[:, None, None] * size + noise


def _starts() -> tuple[Tensor, ...]:
    """Operators of norm 1: what the experts of the original are named after."""
    far = torch.arange(_SIDE) - _SIDE // 2
    reach = torch.maximum(far.abs()[:, None], far.abs()[None, :])
    box3, box5 = (reach <= 1).float() / 9, torch.full((_SIDE, _SIDE), 1 / 25)
    centre = (reach == 0).float()
    smooth = torch.tensor([0.0, 1.0, 2.0, 1.0, 0.0])
    slope = torch.tensor([0.0, -1.0, 0.0, 1.0, 0.0])
    dilated = ((far[:, None] % 2 == 0) & (far[None, :] % 2 == 0)).float()
    operators = (
        dilated / 9 - centre,  # texture
        box3 - box5,  # frequency
        torch.outer(smooth, slope),  # edges, upright
        torch.outer(slope, smooth),  # edges, level
        centre - box3,  # contrast
        box5,  # context
        centre,  # itself
    )
    return tuple(o / o.norm() for o in operators)
