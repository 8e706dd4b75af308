"""The gradient that each term of a loss makes on its own, and how it lies to the total one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from surefoot.guard.measure import tensor_norms
from surefoot.records import TermRecord
from surefoot.shapes import LossTerms

__all__ = ["finite_alone", "term_gradients", "terms_of", "with_gradients"]


def terms_of(loss: Tensor | LossTerms) -> LossTerms:
    """Named terms of whatever a loss function returned."""
    return loss if isinstance(loss, LossTerms) else LossTerms({"loss": loss.reshape(())}, {})


def term_gradients(terms: LossTerms, parameters: Sequence[Tensor], scale: float | Tensor) -> Tensor:
    """Norm of each weighted term's gradient, and its cosine with that of their sum.

    One backward pass more than there are terms; the graph stays alive, no ``.grad`` is touched, and
    nothing is read.

    Args:
        terms: T terms with graph.
        parameters: those that learn.
        scale: loss scale; gradients are taken at it, as in training, and norms are true.

    Returns:
        T 2, float32: the norm, infinite where the gradient is not finite; and the cosine, NaN where
        there is none.

    >>> x = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    >>> terms = LossTerms({"a": 3 * x[0], "b": 4 * x[1]}, {"b": 0.5})
    >>> term_gradients(terms, [x], 1.0)
    tensor([[3.0000, 0.8321],
            [2.0000, 0.5547]])
    """
    weighted = {
        name: value * terms.weight(name) if terms.weight(name) != 1.0 else value
        for name, value in terms.values.items()
        if terms.weight(name) != 0.0 and value.requires_grad
    }
    learning = [p for p in parameters if p.requires_grad]
    home = terms.values[terms.names[0]].device
    zero, none = torch.zeros((), device=home), torch.full((), math.nan, device=home)
    rows = {name: torch.stack([zero, none]) for name in terms.names}
    if weighted and learning:
        whole = _gradient(torch.stack(list(weighted.values())).sum(), learning, scale)
        for name, value in weighted.items():
            if alone := _gradient(value, learning, scale):
                rows[name] = _compare(alone, whole, scale).to(home)
    return torch.stack(list(rows.values()))


def finite_alone(
    terms: LossTerms, parameters: Sequence[Tensor], scale: float
) -> list[tuple[float, float]]:
    """The same on a bad step: read, and cosines are with the sum of the terms that are finite."""
    good = [n for n, v in terms.values.items() if math.isfinite(float(v.detach()))]
    found = dict.fromkeys(terms.names, (math.inf, math.nan))
    while good:
        some = LossTerms(
            {n: terms.values[n] for n in good},
            {n: w for n, w in terms.weights.items() if n in good},
        )
        rows = term_gradients(some, parameters, scale).tolist()
        found |= {name: (norm, cosine) for name, (norm, cosine) in zip(good, rows, strict=True)}
        bad = {name for name in good if math.isinf(found[name][0])}
        if not bad:
            break
        good = [name for name in good if name not in bad]
    return [found[name] for name in terms.names]


def with_gradients(
    records: Sequence[TermRecord], found: Sequence[tuple[float, float]]
) -> tuple[TermRecord, ...]:
    """The records with norm and cosine in them."""
    return tuple(
        replace(record, grad_norm=norm, cosine=cosine)
        for record, (norm, cosine) in zip(records, found, strict=True)
    )


def _gradient(
    value: Tensor, parameters: Sequence[Tensor], scale: float | Tensor
) -> dict[int, Tensor]:
    scaled = value if isinstance(scale, float) and scale == 1.0 else value * scale
    gradients = torch.autograd.grad(scaled, parameters, retain_graph=True, allow_unused=True)
    return {
        i: g.to_dense() if g.is_sparse else g
        for i, g in enumerate(cast("Sequence[Tensor | None]", gradients))
        if g is not None
    }


def _compare(alone: dict[int, Tensor], whole: dict[int, Tensor], scale: float | Tensor) -> Tensor:
    size = torch.linalg.vector_norm(tensor_norms(list(alone.values()))).float()
    total = torch.linalg.vector_norm(tensor_norms(list(whole.values()))).float()
    dots = [torch.sum(g.float() * whole[i].float()).to(size.device) for i, g in alone.items()]
    cosine = (torch.stack(dots).sum() / size / total).clamp(-1.0, 1.0)
    norm = torch.where(torch.isfinite(size), size / scale, math.inf)
    return torch.stack([norm, cosine])
