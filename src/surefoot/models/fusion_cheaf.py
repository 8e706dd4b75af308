"""CHEAF, cross-scale hybrid efficient attention: dense tokens at the price of one vector an object.

Efficient attention (Shen et al. 2021, arXiv:1812.01243) takes its softmax over the channels of a
query and over the places of a key, one by itself each, so that keys and values can be summed up
before any query is known. On each level, with ``x`` the cells' embeddings mixed with those of the
neighbouring levels, the photos' places ``y_t`` (every dense token of all K of them), and heads h of
d channels:

    ctx_nh = sum_t softmax_t(key(y_t))_h  value(y_t)_h^T          d d, of the object alone
    phi_h  = softmax over d of query(x)_h                         of the scene alone
    local  = out(silu(short(x) + long(x)))                        of the scene alone
    c      = e + [phi_h ctx_nh]_h + g_n * local
    c . p  = e . p + sum_h phi_h . (ctx_nh p_h) + local . (g_n * p)

short is a 3x3 depth-wise convolution, long a 1x11 after an 11x1 one (strip convolutions as in
SegNeXt, Guo et al. 2022, arXiv:2209.08575). They see no reference, so the gate g_n, in
0 .. 1 and set by the prototype, says which of their channels count for this object: both halves of
the hybrid are conditioned. All that a level knows of an object is the 2 D numbers
``[ctx_nh p_h]_h`` and ``g_n * p``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, silu

from surefoot.errors import UsageError
from surefoot.models.fusion import Fusion, Levels, by_level, full, shortened
from surefoot.models.support import References

__all__ = ["CrossScaleAttention"]

_HEAD = 16
_LONG = 11


class _Read(NamedTuple):
    """What a level has of N objects."""

    keys: Tensor
    """N T H d, a softmax over T."""
    values: Tensor
    """N T H d."""
    gate: Tensor
    """N D, 0 .. 1."""


class _Level(nn.Module):
    """One level: what it makes of its mixed map, and of the objects."""

    def __init__(self, dim: int, *, heads: int, reach: float, local_reach: float) -> None:
        super().__init__()
        self.heads, self.reach, self.local_reach = heads, reach, local_reach
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim, bias=False)
        self.short = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        tall, wide = ((_LONG, 1), (_LONG // 2, 0)), ((1, _LONG), (0, _LONG // 2))
        self.tall = nn.Conv2d(dim, dim, tall[0], padding=tall[1], groups=dim, bias=False)
        self.wide = nn.Conv2d(dim, dim, wide[0], padding=wide[1], groups=dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.gate = nn.Linear(dim, dim)
        # |u| of a head, whose sqrt(D) long input has d = D / heads rows, is then about 1
        nn.init.normal_(self.value.weight, std=(heads / dim / dim) ** 0.5)
        nn.init.zeros_(self.value.bias)

    def look(self, mixed: Tensor) -> Tensor:
        """B D h w -> B (h w) 2D, float32: phi of all heads, then local."""
        height, width = mixed.shape[2:]
        x = self.norm(mixed.flatten(2).transpose(1, 2))
        phi = full(self.query(x)).unflatten(-1, (self.heads, -1)).softmax(-1).flatten(2)
        m = x.transpose(1, 2).unflatten(2, (height, width))
        near = silu(self.short(m) + self.wide(self.tall(m))).flatten(2).transpose(1, 2)
        return torch.cat((phi, shortened(full(self.out(near)), self.local_reach)), dim=-1)

    def read(self, places: Tensor, prototypes: Tensor) -> _Read:
        """N T D places, already normalised, and N D prototypes."""
        values = self.value(places).unflatten(-1, (self.heads, -1))
        return _Read(
            keys=self.key(places).softmax(1).unflatten(-1, (self.heads, -1)),
            values=shortened(values, self.reach / self.heads**0.5),
            gate=self.gate(prototypes).sigmoid(),
        )


class CrossScaleAttention(Fusion):
    """Efficient attention from cross-scale queries to every dense token, beside a local branch.

    A level's map takes its neighbours' in, the coarser one enlarged and the finer one averaged,
    each channel with a learnt share (a quarter at first); a single level has none. Rows of a
    context are means of values, and a value of all heads together is shorter than ``reach``, so
    what attention adds is; the local branch adds less than ``local_reach``. At first both are small
    but not zero.

    Args:
        dim: D.
        strides: of the levels, pixels, finest first.
        reach: most that attention adds.
        local_reach: most that the local branch adds.

    >>> from torch.nn.functional import normalize
    >>> photos = torch.randn(3, 2, 64, 8)  # 3 objects, 2 photos of 8 x 8 tokens
    >>> shots = normalize(photos[:, :, 0], dim=-1)
    >>> references = References(
    ...     prototypes=normalize(shots.mean(1), dim=-1), shots=shots, tokens=shots, places=photos
    ... )
    >>> e, levels = normalize(torch.randn(1, 10, 8), dim=-1), ((2, 4, 8), (1, 2, 16))
    >>> fusion = CrossScaleAttention(8, (8, 16))
    >>> fusion(e, references, fusion.look(e, levels), levels).shape
    torch.Size([1, 10, 3])
    """

    def __init__(
        self, dim: int, strides: tuple[int, ...], *, reach: float = 0.3, local_reach: float = 0.2
    ) -> None:
        super().__init__()
        heads = next(h for h in range(max(1, dim // _HEAD), 0, -1) if dim % h == 0)
        self.norm = nn.LayerNorm(dim)
        self.levels = nn.ModuleDict(
            {
                str(s): _Level(dim, heads=heads, reach=reach, local_reach=local_reach)
                for s in strides
            }
        )
        self.finer = nn.ParameterDict({str(s): torch.full((dim,), 0.25) for s in strides[1:]})
        self.coarser = nn.ParameterDict({str(s): torch.full((dim,), 0.25) for s in strides[:-1]})

    def look(self, embeddings: Tensor, levels: Levels) -> Tensor:
        """B A D embeddings -> B A 2D, float32: queries of all heads, then the local branch."""
        maps = [
            cells.transpose(1, 2).unflatten(2, (height, width))
            for cells, (height, width, _) in zip(by_level(embeddings, levels), levels, strict=True)
        ]
        found: list[Tensor] = []
        for i, (height, width, stride) in enumerate(levels):
            mixed, name = maps[i], str(stride)
            if i > 0:
                times = stride // levels[i - 1][2]
                mixed = mixed + _by_channel(avg_pool2d(maps[i - 1], times), self.finer[name])
            if i + 1 < len(levels):
                enlarged = interpolate(maps[i + 1], size=(height, width), mode="nearest")
                mixed = mixed + _by_channel(enlarged, self.coarser[name])
            found.append(self._level(stride).look(mixed))
        return torch.cat(found, dim=1)

    def forward(
        self,
        embeddings: Tensor,
        references: References,
        scene: Tensor | None = None,
        levels: Levels = (),
    ) -> Tensor:
        """Embeddings B A D (unit length) and references of N objects -> B A N, float32."""
        with torch.autocast(embeddings.device.type, enabled=False):
            places, p = self._places(references), full(references.prototypes)
            found: list[Tensor] = []
            for e, seen, level in self._each(embeddings, scene, levels):
                read = level.read(places, p)
                along = (read.values * p.unflatten(-1, (level.heads, -1))[:, None]).sum(-1)  # N T H
                context = (read.keys * along[..., None]).sum(1).flatten(1)
                object_side = torch.cat((p, context, read.gate * p), dim=-1)
                found.append(torch.cat((e, seen), dim=-1) @ object_side.mT)
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
            places, p = self._places(references), full(references.prototypes)
            found: list[Tensor] = []
            for e, seen, level in self._each(embeddings, scene, levels):
                read = level.read(places, p)
                phi, local = seen.chunk(2, dim=-1)
                context = torch.einsum("pthi,pthj->phij", read.keys, read.values)
                phi = phi.unflatten(-1, (level.heads, -1))
                attended = torch.einsum("pahi,phij->pahj", phi, context).flatten(2)
                found.append(e + attended + read.gate[:, None] * local)
            return torch.cat(found, dim=1)

    def _places(self, references: References) -> Tensor:
        """N (K G) D, normalised."""
        if references.places is None:
            raise UsageError(
                "cheaf: the references have no places, so they are of a model with another fusion; "
                "encode the photos with this one."
            )
        return self.norm(full(references.places).flatten(1, 2))

    def _each(
        self, embeddings: Tensor, scene: Tensor | None, levels: Levels
    ) -> list[tuple[Tensor, Tensor, _Level]]:
        """Of every level: embeddings B A D, what was read off the scene B A 2D, and its weights."""
        if scene is None:
            raise UsageError(
                "cheaf: what is read off the scene is missing; give look(embeddings, levels)."
            )
        cells, seen = by_level(full(embeddings), levels), by_level(scene, levels)
        own = [self._level(stride) for _, _, stride in levels]
        return list(zip(cells, seen, own, strict=True))

    def _level(self, stride: int) -> _Level:
        if str(stride) not in self.levels:
            raise UsageError(
                f"cheaf: a level of stride {stride}; this model's are {[*self.levels]}."
            )
        level = self.levels[str(stride)]
        assert isinstance(level, _Level)
        return level


def _by_channel(m: Tensor, share: Tensor) -> Tensor:
    """B D h w, each channel times its share."""
    return m * share[:, None, None]
