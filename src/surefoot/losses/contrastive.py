"""Contrastive losses: what is the same should look the same, by the cosine of embeddings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from surefoot.errors import ConfigError, UsageError
from surefoot.losses.numerics import fp32_island, safe_divide, unit_vectors

__all__ = ["prototype_contrastive", "supervised_contrastive"]


@fp32_island
def supervised_contrastive(
    embeddings: Tensor, labels: Tensor, *, temperature: float | Tensor = 0.1
) -> Tensor:
    """Every embedding tells those of its own label from all others.

    The mean over the rows i of -1/|P(i)| sum over p in P(i) of
    ln(exp(z_i z_p / t) / sum over a != i of exp(z_i z_a / t)), with P(i) the other rows of the
    same label. Khosla et al. 2020, arXiv:2004.11362, equation 2 (L_out). A row without another of
    its label has no positives: it gives 0 and does not count in the mean, but is still a negative
    of the others.

    At random initialisation, where no embedding is nearer than another, it is ln(M - 1). It is 0,
    with graph, when no label occurs twice.

    Args:
        embeddings: M D; normalised here, so their length has no effect.
        labels: M, integers.
        temperature: above 0; a tensor without axes may be learnt.

    Returns:
        A scalar, float32, at least 0.

    Raises:
        UsageError: the shapes do not fit.
        ConfigError: ``temperature`` is not above 0 (a tensor is not looked at).

    >>> supervised_contrastive(torch.ones(5, 8), torch.tensor([0, 0, 1, 1, 2]))  # ln 4
    tensor(1.3863)
    """
    name = "supervised_contrastive"
    _check(name, embeddings, labels, temperature)
    z = unit_vectors(embeddings)
    rows = torch.arange(z.shape[0], device=z.device)
    itself = rows[:, None] == rows
    positive = (labels[:, None] == labels) & ~itself
    logits = z @ z.T / temperature
    # The lowest number and not -inf: the row of a single embedding would have nothing left to sum.
    logits = logits.masked_fill(itself, torch.finfo(logits.dtype).min)
    log_p = torch.where(positive, torch.log_softmax(logits, dim=1), 0.0)
    count = positive.sum(1)
    loss = -safe_divide(log_p.sum(1), count)
    return safe_divide(loss.sum(), (count > 0).sum())


@fp32_island
def prototype_contrastive(
    embeddings: Tensor,
    prototypes: Tensor,
    labels: Tensor,
    *,
    temperature: float | Tensor = 0.1,
) -> Tensor:
    """Cross-entropy of which prototype an embedding resembles: softmax over cosine / temperature.

    Snell et al. 2017, arXiv:1703.05175, equation 2, with the cosine in the place of the negative
    squared distance (of unit vectors they are the same but for a factor of 2 and a constant).

    At random initialisation, where no prototype is nearer than another, it is ln N.

    Args:
        embeddings: M D; normalised here, so their length has no effect.
        prototypes: N D; the same.
        labels: M, int64 in 0 .. N-1: whose embedding it is.
        temperature: above 0; a tensor without axes may be learnt.

    Returns:
        M, float32, at least 0.

    Raises:
        UsageError: the shapes do not fit.
        ConfigError: ``temperature`` is not above 0 (a tensor is not looked at).

    >>> objects = torch.eye(3)
    >>> prototype_contrastive(torch.ones(1, 3), objects, torch.tensor([2]))  # ln 3
    tensor([1.0986])
    """
    name = "prototype_contrastive"
    _check(name, embeddings, labels, temperature)
    if prototypes.ndim != 2 or not len(prototypes) or prototypes.shape[1] != embeddings.shape[1]:
        raise UsageError(
            f"{name}: prototypes of shape {tuple(prototypes.shape)} and embeddings of shape "
            f"{tuple(embeddings.shape)}; expected N D and M D, with N at least 1."
        )
    logits = unit_vectors(embeddings) @ unit_vectors(prototypes).T / temperature
    return F.cross_entropy(logits, labels, reduction="none")


def _check(name: str, embeddings: Tensor, labels: Tensor, temperature: float | Tensor) -> None:
    if embeddings.ndim != 2 or labels.shape != embeddings.shape[:1]:
        raise UsageError(
            f"{name}: embeddings of shape {tuple(embeddings.shape)} and labels of shape "
            f"{tuple(labels.shape)}; expected M D and M."
        )
    if isinstance(temperature, Tensor):
        if temperature.ndim != 0:
            raise UsageError(
                f"{name}: temperature of shape {tuple(temperature.shape)}; expected a number or a "
                "tensor without axes."
            )
    elif not 0 < temperature < math.inf:
        raise ConfigError(f"{name}: temperature {temperature}; expected a finite number above 0.")
