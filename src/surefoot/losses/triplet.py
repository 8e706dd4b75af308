"""Triplet loss over the hardest pairs of a batch."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from surefoot.errors import ConfigError, UsageError
from surefoot.losses.numerics import fp32_island, safe_divide, safe_norm, unit_vectors

__all__ = ["batch_hard_triplet"]

Distance = Literal["cosine", "euclidean"]
"""How far apart two embeddings are: 1 - cosine, in [0, 2], or the length of their difference."""


@fp32_island
def batch_hard_triplet(
    embeddings: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.3,
    distance: Distance = "cosine",
    soft: bool = False,
) -> Tensor:
    """The farthest embedding of the same label is to be nearer than the nearest of another.

    The mean over the anchors a of max(0, margin + max over p of d(a, p) - min over n of d(a, n)),
    with p the other rows of a's label and n the rows of any other. Hermans et al. 2017,
    arXiv:1703.07737, equation 5; with ``soft`` ln(1 + exp(.)) of the difference, without margin,
    as in its section 2 ("soft-margin").

    A row of a label below 0 is background: a negative for all others, and no anchor itself. A row
    without a positive, or without a negative, is no anchor either. It is 0, with graph, where there
    is none.

    Where all embeddings are the same it is the margin (soft: ln 2 = 0.69), and so it is in a
    collapse: a loss that stays there has drawn everything into one point. For random embeddings of
    many dimensions the cosine distances are all near 1, and the loss is near the margin too.

    The hardest pairs are looked for without a graph, and the gradient passes through them alone:
    memory is R x R for the search and R D for the way back. The euclidean distance has gradient 0
    where two embeddings coincide.

    Args:
        embeddings: R D; ``cosine`` normalises them here, ``euclidean`` takes them as they are.
        labels: R, integers; below 0 is background.
        margin: at least 0; unused with ``soft``.
        distance: see above.
        soft: whether pairs beyond the margin still count a little.

    Returns:
        A scalar, float32, at least 0.

    Raises:
        UsageError: the shapes do not fit.
        ConfigError: a setting outside its range.

    >>> x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    >>> batch_hard_triplet(x, torch.tensor([0, 0, -1]))  # mean of 0.3 + 1 - 2, cut off, and 0.3
    tensor(0.1500)
    """
    _check(embeddings, labels, margin, distance)
    if not len(embeddings):
        return embeddings.sum()
    x = unit_vectors(embeddings) if distance == "cosine" else embeddings
    same = (labels[:, None] == labels) & (labels >= 0)
    rows = torch.arange(len(x), device=x.device)
    positive, negative = same & (rows[:, None] != rows), ~same
    apart = _search(x.detach(), distance)
    nearest = apart.masked_fill(~negative, math.inf).argmin(1)
    farthest = apart.masked_fill(~positive, -math.inf).argmax(1)
    behind = _between(x, x[farthest], distance) - _between(x, x[nearest], distance)
    loss = F.softplus(behind) if soft else F.relu(margin + behind)
    anchor = (labels >= 0) & positive.any(1) & negative.any(1)
    return safe_divide(torch.where(anchor, loss, 0.0).sum(), anchor.sum())


def _search(x: Tensor, distance: Distance) -> Tensor:
    """R R numbers in the order of the distances; NaN in the rows and columns that hold it."""
    if distance == "cosine":
        return -(x @ x.T)
    # Around their middle and of size 1: no square overflows, and little is lost by subtraction.
    finite = torch.where(x.isfinite(), x, 0.0)
    scale = finite.abs().amax()
    x = x / torch.where(scale > 0, scale, 1.0)
    x = x - torch.where(x.isfinite(), x, 0.0).mean(0)
    squares = x.square().sum(1)
    return squares[:, None] + squares - 2 * (x @ x.T)


def _between(a: Tensor, b: Tensor, distance: Distance) -> Tensor:
    return 1 - (a * b).sum(1) if distance == "cosine" else safe_norm(a - b)


def _check(embeddings: Tensor, labels: Tensor, margin: float, distance: str) -> None:
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise UsageError(
            f"batch_hard_triplet: embeddings of shape {tuple(embeddings.shape)} and labels of "
            f"shape {tuple(labels.shape)}; expected R D and R."
        )
    if not 0 <= margin < math.inf:
        raise ConfigError(
            f"batch_hard_triplet: margin {margin}; expected a finite number, at least 0."
        )
    if distance not in get_args(Distance):
        raise ConfigError(
            f"batch_hard_triplet: distance {distance!r}; expected one of "
            f"{', '.join(get_args(Distance))}."
        )
