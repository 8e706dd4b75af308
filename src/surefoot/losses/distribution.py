"""Distribution focal loss: the side of a box as a distribution over distances."""

from __future__ import annotations

import torch
from torch import Tensor

from surefoot.errors import UsageError
from surefoot.losses.numerics import fp32_island

__all__ = ["distribution_focal_loss"]


@fp32_island
def distribution_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy against the two bins around each distance, averaged over the four sides.

    With the target y between the bins i and i + 1: -((i + 1 - y) ln p_i + (y - i) ln p_(i+1)).
    Li et al. 2020, "Generalized Focal Loss", arXiv:2006.04388, equation 6.

    At random initialisation, logits near 0, it is ln R (2.77 for 16 bins); a run that stays there
    has not learnt its box sides. It is a mean over the sides: code that sums them shows 4 ln R. The
    least it can be is the entropy of the two weights: 0 on a bin, ln 2 half-way between two.

    A distance outside [0, R-1] cannot be said; the nearest one that can is learnt instead. Only the
    target is limited, which carries no gradient. What is cut off is missing from the decoded box
    as well: learn such a box on a coarser stride.

    Args:
        logits: M 4 R, unnormalised, over distances 0 .. R-1.
        target: M 4, distances from the anchor point to the left, top, right and bottom side, in
            strides, not in pixels. Detached.

    Returns:
        M, float32, in [0, inf).

    Raises:
        UsageError: ``target`` is not shaped as ``logits`` without its bins, or R is below 2.

    >>> distance = torch.tensor([[0.0, 1.5, 2.0, 9.0]])  # 9 is read as 2, the last of 3 bins
    >>> distribution_focal_loss(torch.zeros(1, 4, 3), distance)
    tensor([1.0986])
    """
    if logits.shape[:-1] != target.shape or target.ndim == 0:
        raise UsageError(
            f"distribution_focal_loss: logits of shape {tuple(logits.shape)} and target of shape "
            f"{tuple(target.shape)}; expected M 4 R and M 4."
        )
    bins = logits.shape[-1]
    if bins < 2:
        raise UsageError(
            f"distribution_focal_loss: logits of shape {tuple(logits.shape)} end in {bins} bins; a "
            "distance lies between two of them, so there are at least 2."
        )
    target = target.detach().float().clamp(0, bins - 1)
    # The integer is limited once more: NaN has no integer, and must not index out of bounds.
    lower = target.long().clamp(0, bins - 2)
    upper_weight = target - lower
    log_p = torch.log_softmax(logits, dim=-1)
    log_lower, log_upper = log_p.gather(-1, torch.stack((lower, lower + 1), dim=-1)).unbind(-1)
    return -torch.lerp(log_lower, log_upper, upper_weight).mean(-1)
