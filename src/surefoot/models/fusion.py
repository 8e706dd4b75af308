"""How the references condition the scene: every cell meets every object's tokens.

For all B x N pairs at once and exactly, yet nothing of size B A N D is ever made. The embedding e
of a cell (unit length) becomes, for object n, a conditioned one c; its score is ``c . p``, with p
the object's prototype. Whatever c adds to e is linear in something that the object alone decides,
so that the product with p can be taken on the object's side: one number per token, or one vector
per object. The conditioned embedding itself is made for chosen pairs only (:meth:`Fusion.paired`).

Here: what every fusion is, and the one by attention over a few pooled tokens, where
``c = e + sum_t w_t v_nt``, w being the cell's attention over the object's tokens and v their
values: ``c . p = e . p + sum_t w_t (v_nt . p_n)``.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

from surefoot.errors import UsageError
from surefoot.models.support import References

__all__ = ["Fusion", "Levels", "TokenConditioning", "by_level", "full", "level_of", "shortened"]

Levels: TypeAlias = tuple[tuple[int, int, int], ...]
"""Height and width in cells and stride in pixels of every level, finest first."""


class Fusion(nn.Module):
    """What turns embeddings and references into likenesses, and into conditioned embeddings.

    Three methods, of which ``paired`` is the plain meaning and ``forward`` the quick way to its
    product with the prototypes: for every b, a and n the two agree,
    ``forward(...)[b, a, n] == paired(...)[i, a] . p_n``, where row i pairs image b with object n.
    """

    def look(self, embeddings: Tensor, levels: Levels) -> Tensor | None:
        """B A D embeddings -> B A S, float32, what is read off the scene before any object is
        known; None where the embeddings are all that is needed.
        """
        return None

    def forward(
        self,
        embeddings: Tensor,
        references: References,
        scene: Tensor | None = None,
        levels: Levels = (),
    ) -> Tensor:
        """Likeness of the conditioned embeddings to the prototypes.

        Args:
            embeddings: B A D, unit length.
            references: N objects.
            scene: what :meth:`look` gave.
            levels: where the cells lie, A in all.

        Returns:
            B A N, float32.
        """
        raise NotImplementedError

    def paired(
        self,
        embeddings: Tensor,
        references: References,
        scene: Tensor | None = None,
        levels: Levels = (),
    ) -> Tensor:
        """Conditioned embeddings of P pairs: row i of the scenes with object i.

        Args:
            embeddings: P A D, unit length.
            references: P objects.
            scene: P A S, those rows of what :meth:`look` gave.
            levels: where the cells lie, A in all; levels may be left out.

        Returns:
            P A D, float32, no longer than 1.5.
        """
        raise NotImplementedError


class TokenConditioning(Fusion):
    """Attention over an object's pooled tokens, the same on every level.

    The value projection starts at zero: at first the result is the plain cosine of the embedding
    with the prototype. A value is shorter than ``reach`` (smoothly: ``reach u / sqrt(1 + |u|^2)``),
    so the result lies in -1 - reach .. 1 + reach.

    Args:
        dim: D.
        reach: longest value.
        value_std: standard deviation of the value projection's weights at first.

    >>> one = torch.nn.functional.normalize(torch.randn(4, 8), dim=-1)
    >>> references = References(prototypes=one, shots=one[:, None], tokens=one[:, None])
    >>> torch.allclose(TokenConditioning(8)(one[None], references), one @ one.mT, atol=1e-6)
    True
    """

    def __init__(self, dim: int, *, reach: float = 0.5, value_std: float = 0.0) -> None:
        super().__init__()
        self.reach = reach
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)
        if value_std:
            nn.init.normal_(self.value.weight, std=value_std)

    def forward(
        self,
        embeddings: Tensor,
        references: References,
        scene: Tensor | None = None,
        levels: Levels = (),
    ) -> Tensor:
        """Embeddings B A D (unit length) and references of N objects -> B A N, float32."""
        with torch.autocast(embeddings.device.type, enabled=False):
            e, p = full(embeddings), full(references.prototypes)
            keys, v = self._tokens(references)
            t, n, d = keys.shape
            w = (e @ keys.reshape(t * n, d).mT).unflatten(-1, (t, n)).softmax(-2)
            return e @ p.mT + (w * (v * p).sum(-1)).sum(-2)

    def paired(
        self,
        embeddings: Tensor,
        references: References,
        scene: Tensor | None = None,
        levels: Levels = (),
    ) -> Tensor:
        """Embeddings P A D (unit length) and references of P objects -> P A D, float32."""
        with torch.autocast(embeddings.device.type, enabled=False):
            e = full(embeddings)
            keys, v = self._tokens(references)
            return e + (e @ keys.permute(1, 2, 0)).softmax(-1) @ v.transpose(0, 1)

    def _tokens(self, references: References) -> tuple[Tensor, Tensor]:
        """Keys and values T N D: tokens before objects, so that sums over t run over whole rows.

        The query map is applied to the few keys instead of the many cells; e has unit length, so
        sqrt(D) e has components of about 1 and D cancels out of the usual scaling.
        """
        tokens = self.norm(full(references.tokens)).transpose(0, 1)
        return self.key(tokens) @ self.query.weight, shortened(self.value(tokens), self.reach)


def shortened(u: Tensor, reach: float) -> Tensor:
    """... D -> ... D of the same direction, smoothly shorter than ``reach``.

    >>> shortened(torch.tensor([[0.0, 3.0], [0.0, 3e4]]), 0.5).norm(dim=-1)
    tensor([0.4743, 0.5000])
    """
    return reach * u * torch.rsqrt(1 + u.square().sum(-1, keepdim=True))


def by_level(cells: Tensor, levels: Levels) -> list[Tensor]:
    """B A S -> B (h w) S of each level.

    Raises:
        UsageError: the levels have another number of cells.

    >>> [part.shape[1] for part in by_level(torch.zeros(1, 10, 4), ((2, 4, 8), (1, 2, 16)))]
    [8, 2]
    """
    counts = [height * width for height, width, _ in levels]
    if sum(counts) != cells.shape[1]:
        raise UsageError(
            f"fusion: {cells.shape[1]} cells, but the levels {levels} (height, width, stride) have "
            f"{sum(counts)}; give the levels of just these cells."
        )
    return list(cells.split(counts, dim=1))


def level_of(levels: Levels, stride: int) -> tuple[Levels, slice]:
    """The one level of this stride, and where its cells are.

    Raises:
        UsageError: there is none.

    >>> level_of(((2, 4, 8), (1, 2, 16)), 16)
    (((1, 2, 16),), slice(8, 10, None))
    """
    start = 0
    for height, width, own in levels:
        if own == stride:
            return ((height, width, own),), slice(start, start + height * width)
        start += height * width
    raise UsageError(
        f"fusion: no level of stride {stride}; there are {[own for _, _, own in levels]}."
    )


def full(x: Tensor) -> Tensor:
    """At least float32: products with prototypes are not for half precision."""
    return x if x.dtype == torch.float64 else x.float()
