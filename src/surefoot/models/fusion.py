"""How the references condition the scene: every cell attends over each object's tokens.

For all B x N pairs at once and exactly, yet nothing of size B A N D is ever made. The embedding e
of a cell (unit length) becomes, for object n, ``c = e + sum_t w_t v_nt``, where w is the cell's
attention over the object's tokens and v are their values; its score is ``c . p``, with p the
object's prototype. That product is ``e . p + sum_t w_t (v_nt . p_n)``: one number per token, not D.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from surefoot.models.support import References

__all__ = ["TokenConditioning"]


class TokenConditioning(nn.Module):
    """Likeness of conditioned embeddings to prototypes, for every cell and object.

    The value projection starts at zero: at first the result is the plain cosine of the embedding
    with the prototype. A value is shorter than ``reach`` (smoothly: ``reach u / sqrt(1 + |u|^2)``),
    so the result lies in -1 - reach .. 1 + reach.

    >>> one = torch.nn.functional.normalize(torch.randn(4, 8), dim=-1)
    >>> references = References(prototypes=one, shots=one[:, None], tokens=one[:, None])
    >>> torch.allclose(TokenConditioning(8)(one[None], references), one @ one.mT, atol=1e-6)
    True
    """

    def __init__(self, dim: int, *, reach: float = 0.5) -> None:
        super().__init__()
        self.reach = reach
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, embeddings: Tensor, references: References) -> Tensor:
        """Embeddings B A D (unit length) and references of N objects -> B A N, float32."""
        with torch.autocast(embeddings.device.type, enabled=False):
            return self._likeness(embeddings.float(), references)

    def _likeness(self, e: Tensor, references: References) -> Tensor:
        p = references.prototypes.float()
        tokens = self.norm(references.tokens.float()).transpose(0, 1)
        t, n, d = tokens.shape  # tokens before objects: sums over t then run over whole rows of n
        u = self.value(tokens)
        v = self.reach * u * torch.rsqrt(1 + u.square().sum(-1, keepdim=True))
        # The query map is applied to the few keys instead of the many cells; e has unit length, so
        # sqrt(D) e has components of about 1 and D cancels out of the usual scaling.
        keys = (self.key(tokens) @ self.query.weight).reshape(t * n, d)
        w = (e @ keys.mT).unflatten(-1, (t, n)).softmax(-2)
        return e @ p.mT + (w * (v * p).sum(-1)).sum(-2)
