"""Losses of independent yes-or-no questions, from logits."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from surefoot.errors import ConfigError, UsageError
from surefoot.losses.numerics import fp32_island

__all__ = ["binary_cross_entropy", "focal_loss"]

_LEAST_SHARE = 1e-20


@fp32_island
def binary_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-(t ln sigmoid(x) + (1 - t) ln sigmoid(-x)), in log space, so that no logit is too large.

    At random initialisation, logits near 0, it is ln 2 = 0.693.

    Args:
        logits: any shape.
        targets: the same shape, probabilities in [0, 1] or bool. Detached.

    Returns:
        The same shape, float32, in [0, inf).

    Raises:
        UsageError: the shapes differ.

    >>> binary_cross_entropy(torch.tensor([0.0, -1e4]), torch.tensor([1.0, 1.0]))
    tensor([6.9315e-01, 1.0000e+04])
    """
    _same_shape("binary_cross_entropy", logits, targets)
    return F.binary_cross_entropy_with_logits(logits, targets.detach().float(), reduction="none")


@fp32_island
def focal_loss(
    logits: Tensor, targets: Tensor, *, gamma: float = 2.0, alpha: float | None = 0.25
) -> Tensor:
    """Binary cross-entropy that counts less where the answer is already right.

    alpha_t (1 - p_t)^gamma BCE, with p_t = p t + (1 - p)(1 - t) and alpha_t = alpha t +
    (1 - alpha)(1 - t); 1 - p_t is taken in log space, so that its power has a finite gradient for
    every gamma. Lin et al. 2017, arXiv:1708.02002, equation 5.

    At random initialisation with logits near 0: 0.25 ln 2 alpha_t for gamma 2 (0.043 where t = 1,
    0.130 where t = 0). With the paper's prior, a bias of -ln 99: 1.13 where t = 1 and 7.5e-7 where
    t = 0. Sum it and divide by the number of positives; a mean over all anchor points is next to 0.

    Args:
        logits: any shape.
        targets: the same shape, probabilities in [0, 1] or bool. Detached.
        gamma: at least 0; with 0 and alpha None this is :func:`binary_cross_entropy`.
        alpha: weight of t = 1 in [0, 1], that of t = 0 being 1 - alpha; None weighs nothing.

    Returns:
        The same shape, float32, in [0, inf).

    Raises:
        UsageError: the shapes differ.
        ConfigError: ``gamma`` or ``alpha`` is outside its range.

    >>> focal_loss(torch.zeros(2), torch.tensor([1.0, 0.0]))
    tensor([0.0433, 0.1300])
    """
    _same_shape("focal_loss", logits, targets)
    if not 0 <= gamma < math.inf:
        raise ConfigError(f"focal_loss: gamma {gamma}; expected a finite number, at least 0.")
    if alpha is not None and not 0 <= alpha <= 1:
        raise ConfigError(f"focal_loss: alpha {alpha}; expected a number in [0, 1], or None.")
    targets = targets.detach().float()
    loss = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    if gamma > 0:
        # 1 - p_t = (1 - t) p + t (1 - p); A share of 0 is read as 1e-20: log(0) is slow.
        no, yes = (share.clamp(min=_LEAST_SHARE).log() for share in (1 - targets, targets))
        log_wrong = torch.logaddexp(no + F.logsigmoid(logits), yes + F.logsigmoid(-logits))
        loss = torch.exp(gamma * log_wrong) * loss
    if alpha is not None:
        loss = loss * (alpha * targets + (1 - alpha) * (1 - targets))
    return loss


def _same_shape(name: str, logits: Tensor, targets: Tensor) -> None:
    if logits.shape != targets.shape:
        raise UsageError(
            f"{name}: logits of shape {tuple(logits.shape)} and targets of shape "
            f"{tuple(targets.shape)}; expected the same shape, one target per logit."
        )
