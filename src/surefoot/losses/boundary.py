"""Where a mask changes: weights of pixels near its boundary, and the outline itself."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from surefoot.errors import UsageError
from surefoot.losses.numerics import fp32_island

__all__ = ["boundary_weights", "outline"]

# F3Net's window reaches this far, in images of this side.
_REACH, _SIDE = 15, 352


@fp32_island
def boundary_weights(mask: Tensor, *, strength: float = 5.0) -> Tensor:
    """1 + 5 |mean of the window around a pixel - the pixel|: up to 6 at a boundary, 1 far from it.

    Wei et al. 2020 (F3Net), arXiv:1911.11445. The window is 31 pixels at 352 and grows
    with the shorter side; at the frame it holds the pixels that exist, so that the frame is no
    boundary. One pass along each axis: 2 x 31 additions per pixel in the place of 961.

    Args:
        mask: B 1 H W, in [0, 1] or bool. Detached.
        strength: the 5; at least 0.

    Returns:
        B 1 H W, float32, in [1, 1 + strength].

    Raises:
        UsageError: another number of axes.

    >>> import torch
    >>> mask = torch.zeros(1, 1, 1, 40)
    >>> mask[..., 20:] = 1
    >>> boundary_weights(mask)[0, 0, 0, 17:23]
    tensor([1.0000, 1.0000, 2.6667, 2.6667, 1.0000, 1.0000])
    """
    if mask.ndim != 4:
        raise UsageError(
            f"boundary_weights: a mask of shape {tuple(mask.shape)}; expected B 1 H W."
        )
    g = mask.detach().float()
    reach = max(1, round(_REACH * min(g.shape[-2:]) / _SIDE))
    mean = _mean_along(_mean_along(g, reach, 3), reach, 2)
    return 1 + strength * (mean - g).abs()


def _mean_along(x: Tensor, reach: int, axis: int) -> Tensor:
    """The mean of 2 reach + 1 neighbours along one axis, of those that exist at its ends."""
    reaches = tuple(reach if a == axis else 0 for a in (2, 3))
    window = tuple(2 * r + 1 for r in reaches)
    return F.avg_pool2d(x, window, stride=1, padding=reaches, count_include_pad=False)


@fp32_island
def outline(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Which cells of a grid the boundary of a mask runs through.

    The pixels with a different one among their eight neighbours: one row of them on either side of
    the boundary. The frame of the image is none. A cell is 1 if such a pixel lies in it.

    Args:
        mask: B 1 H W, in {0, 1} or bool. Detached.
        size: h w of the grid, at most H W.

    Returns:
        B 1 h w, float32, in {0, 1}.

    Raises:
        UsageError: the grid is finer than the mask.

    >>> import torch
    >>> mask = torch.zeros(1, 1, 4, 8)
    >>> mask[..., 3:] = 1
    >>> outline(mask, (4, 8))[0, 0, 0]
    tensor([0., 0., 1., 1., 0., 0., 0., 0.])
    >>> outline(mask, (2, 4))[0, 0, 0]
    tensor([0., 1., 0., 0.])
    """
    if mask.ndim != 4 or size[0] > mask.shape[-2] or size[1] > mask.shape[-1]:
        raise UsageError(
            f"outline: a mask of shape {tuple(mask.shape)} and a grid of {size}; expected B 1 H W "
            "and a grid that is no finer."
        )
    g = mask.detach().float()
    largest, smallest = (sign * F.max_pool2d(sign * g, 3, 1, 1) for sign in (1, -1))
    band = largest - smallest
    return band if tuple(band.shape[-2:]) == size else F.adaptive_max_pool2d(band, size)
