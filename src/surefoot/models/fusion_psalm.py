"""PSALM, pyramid support attention: every level looks at the photos at several scales.

The photos' dense tokens are pooled over grids of 1, 2 and 4 cells a side (a spatial pyramid:
Lazebnik et al. 2006; He et al. 2015, arXiv:1406.4729), so that an object is known as a whole and by
its parts. On every level of the scene, attention of its own goes from each cell to these tokens,
and a gate that the prototype sets weighs the embedding's channels. With ``h_n`` in -gate .. gate
(D numbers of object n) and the attention w and values v of the cell's level:

    c = e + e * h_n + sum_t w_t v_nt
    c . p = e . (p_n + h_n * p_n) + sum_t w_t (v_nt . p_n)

The gate costs nothing per pair: it is moved over to the prototype.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from surefoot.errors import UsageError
from surefoot.models.fusion import Fusion, Levels, TokenConditioning, by_level, full
from surefoot.models.support import References

__all__ = ["PSALM_GRIDS", "PyramidAttention"]

PSALM_GRIDS = (1, 2, 4)
"""Cells along a side of the photo at each scale of its pyramid, coarsest first."""


class _Level(NamedTuple):
    """One level's cells B A D, and what it has of its own: gates N D, tokens N T D."""

    cells: Tensor
    attention: TokenConditioning
    gate: Tensor
    references: References


class PyramidAttention(Fusion):
    """Attention to the pyramid of the photos, and a gate of the channels, on each level its own.

    The finest of several levels has three quarters of all cells, and objects on it are small: it
    leaves out the finest grid. Values are shorter than ``reach`` and a gate is within ``gate``, so
    the likeness lies in -1.5 .. 1.5 as it comes. At first both are small but not zero.

    Args:
        dim: D.
        strides: of the levels, pixels, finest first.
        reach: longest value.
        gate: most that a channel is weakened or strengthened by.

    >>> from torch.nn.functional import normalize
    >>> photos = torch.randn(3, 2, 21, 8)  # 3 objects, 2 photos, 1 + 4 + 16 cells
    >>> shots = normalize(photos[:, :, 0], dim=-1)
    >>> references = References(
    ...     prototypes=normalize(shots.mean(1), dim=-1), shots=shots, tokens=shots, places=photos
    ... )
    >>> e = normalize(torch.randn(1, 6, 8), dim=-1)
    >>> PyramidAttention(8, (16,))(e, references, levels=((2, 3, 16),)).shape
    torch.Size([1, 6, 3])
    """

    def __init__(
        self, dim: int, strides: tuple[int, ...], *, reach: float = 0.3, gate: float = 0.2
    ) -> None:
        super().__init__()
        self.bound = gate
        self.attention = nn.ModuleDict(
            # |u| of a token, whose LayerNorm has length sqrt(D), is then about 1
            {str(s): TokenConditioning(dim, reach=reach, value_std=1 / dim) for s in strides}
        )
        self.gate = nn.ModuleDict({str(s): nn.Linear(dim, dim) for s in strides})
        for name in self.gate:
            # a prototype has unit length: tanh of about 0.5
            nn.init.normal_(self.gate.get_parameter(f"{name}.weight"), std=0.5)
            nn.init.zeros_(self.gate.get_parameter(f"{name}.bias"))
        self._left_out = {str(strides[0]): PSALM_GRIDS[-1] ** 2} if len(strides) > 1 else {}

    def forward(
        self,
        embeddings: Tensor,
        references: References,
        scene: Tensor | None = None,
        levels: Levels = (),
    ) -> Tensor:
        """Embeddings B A D (unit length) and references of N objects -> B A N, float32."""
        with torch.autocast(embeddings.device.type, enabled=False):
            found = [
                level.attention(level.cells, level.references)
                + level.cells @ (level.gate * level.references.prototypes).mT
                for level in self._each(embeddings, references, levels)
            ]
            return torch.cat(found, dim=1)

    def paired(
        self,
        embeddings: Tensor,
        references: References,
        scene: Tensor | None = None,
        levels: Levels = (),
    ) -> Tensor:
        """Embeddings P A D (unit length) and references of P objects -> P A D, float32."""
        with torch.autocast(embeddings.device.type, enabled=False):
            found = [
                level.attention.paired(level.cells, level.references)
                + level.cells * level.gate[:, None]
                for level in self._each(embeddings, references, levels)
            ]
            return torch.cat(found, dim=1)

    def _each(self, embeddings: Tensor, references: References, levels: Levels) -> list[_Level]:
        if references.places is None:
            raise UsageError(
                "psalm: the references have no places, so they are of a model with another fusion; "
                "encode the photos with this one."
            )
        p = full(references.prototypes)
        parts: list[_Level] = []
        for cells, (_, _, stride) in zip(by_level(embeddings, levels), levels, strict=True):
            name = str(stride)
            if name not in self.attention:
                raise UsageError(
                    f"psalm: a level of stride {stride}; this model's are {[*self.attention]}."
                )
            shown = references.places.shape[2] - self._left_out.get(name, 0)
            tokens = references.places[:, :, :shown].flatten(1, 2)
            parts.append(
                _Level(
                    cells=full(cells),
                    attention=cast(TokenConditioning, self.attention[name]),
                    gate=self.bound * torch.tanh(self.gate[name](p)),
                    references=replace(references, prototypes=p, tokens=tokens),
                )
            )
        return parts
