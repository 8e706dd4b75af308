"""What the reference photos of an object become: a few tokens, and one prototype.

An encoder turns every photo into dense tokens (B = N K photos of all objects, T places). A learnt
attention then pools them: the first of its queries gives the photo's own embedding (a *shot*; the
prototype is their mean), the others give tokens that the scene's features are conditioned with.
Everything here that is not frozen on purpose receives gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import normalize

from surefoot.errors import ConfigError, UsageError
from surefoot.models.blocks import ConvBnAct
from surefoot.models.yolov8 import YoloV8
from surefoot.shapes import DetectionPrediction

__all__ = [
    "BackboneSupport",
    "BackboneSupportConfig",
    "References",
    "SupportPlaces",
    "SupportPool",
]


@dataclass(frozen=True, kw_only=True)
class References:
    """N objects, as their reference photos describe them: computed once, used for every frame."""

    prototypes: Tensor
    """N D, L2-normalised."""
    shots: Tensor
    """N K D, L2-normalised: every photo by itself."""
    tokens: Tensor
    """N T D: what conditions the features of a scene."""
    places: Tensor | None = None
    """N K G D: every photo place by place, for a fusion that reads it so."""

    @classmethod
    def of(cls, prediction: DetectionPrediction) -> References:
        """Those that a prediction was made with.

        Raises:
            UsageError: it does not hold them.
        """
        if prediction.tokens is None:
            raise UsageError(
                "References.of: the prediction has no tokens; one of RefDet.detect has them."
            )
        return cls(
            prototypes=prediction.prototypes,
            shots=prediction.shots,
            tokens=prediction.tokens,
            places=prediction.places,
        )

    def take(self, objects: Tensor) -> References:
        """The objects of P indices, one a row, as often as they are named."""
        return replace(
            self,
            prototypes=self.prototypes[objects],
            shots=self.shots[objects],
            tokens=self.tokens[objects],
            places=None if self.places is None else self.places[objects],
        )


@dataclass(frozen=True, kw_only=True)
class BackboneSupportConfig:
    """The scene's own backbone encodes the photos: no second network."""

    stride: int = 8
    """Which of its levels is read."""


class BackboneSupport(nn.Module):
    """The scene's backbone and one more convolution.

    The backbone stays the property of the caller, so that its weights exist once. Its batch
    statistics are not shared: photos show one large object each, scenes many small ones, and
    running statistics that mix the two fit neither (measured on procedural scenes after 300 steps:
    in evaluation mode 48 % of the positive points name the right one of 16 objects with shared
    statistics, 69 % with separate ones). The photos' running statistics are buffers of this module.
    """

    def __init__(self, config: BackboneSupportConfig, backbone: YoloV8) -> None:
        super().__init__()
        given = backbone.config
        if config.stride not in given.strides:
            raise ConfigError(
                f"BackboneSupport: stride {config.stride} is read, but the backbone gives "
                f"{given.strides}."
            )
        self.config = config
        self.cell = config.stride
        self.channels = given.channels_at(config.stride)
        self.mix = ConvBnAct(self.channels, self.channels, 3)
        self.twins = {name.replace(".", "_"): name for name, _ in backbone.named_buffers()}
        for own, name in self.twins.items():
            self.register_buffer(own, backbone.get_buffer(name).clone())

    def forward(self, photos: Tensor, backbone: YoloV8) -> Tensor:
        """P 3 h w -> P T C: the cells of one level, row by row."""
        statistics = {name: self.get_buffer(own) for own, name in self.twins.items()}
        maps = functional_call(backbone, statistics, (photos,))
        return self.mix(maps[self.config.stride]).flatten(2).transpose(1, 2)


class SupportPool(nn.Module):
    """Attention pooling with learnt queries: N K T C dense tokens -> :class:`References`.

    Query 0 gives each photo's shot; the prototype is the L2-normalised mean of an object's shots.
    The K x (1 + parts) pooled tokens of an object condition the scene.
    """

    def __init__(self, channels: int, dim: int, *, parts: int = 1) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.value = nn.Linear(channels, dim)
        self.attention = nn.Linear(channels, 1 + parts)

    def forward(self, tokens: Tensor) -> References:
        """N K T C -> prototypes N D, shots N K D, tokens N K(1+parts) D; float32."""
        tokens = self.norm(tokens)
        share = self.attention(tokens).float().softmax(dim=2).transpose(2, 3)
        values = self.value(tokens).float()
        with torch.autocast(tokens.device.type, enabled=False):
            pooled = share @ values  # N K (1+parts) D
            shots = normalize(pooled[:, :, 0], dim=-1)
            prototypes = normalize(shots.mean(1), dim=-1)
        return References(prototypes=prototypes, shots=shots, tokens=pooled.flatten(1, 2))


class SupportPlaces(nn.Module):
    """What each photo shows, and where: N K T C dense tokens -> N K G D places.

    Without ``grids`` every token is a place. With them the tokens that lie in the image are pooled
    over grids of so many cells a side, weighed within a cell by a learnt attention (equal at
    first), so that ground can count less than the object. Where the grid does not divide the image,
    a token counts for the share of it that lies in the cell. Tokens that lie nowhere (the class
    token) come first and stay as they are.

    >>> SupportPlaces(12, 8, grids=(1, 2))(torch.zeros(2, 3, 1 + 15, 12), (3, 5)).shape
    torch.Size([2, 3, 6, 8])
    """

    def __init__(self, channels: int, dim: int, *, grids: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.grids = grids
        self.norm = nn.LayerNorm(channels)
        self.value = nn.Linear(channels, dim)
        self.attention = nn.Linear(channels, 1, bias=False) if grids else None
        if self.attention is not None:
            nn.init.zeros_(self.attention.weight)

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """N K T C, of which the last h w lie in the image row by row -> N K G D, float32."""
        tokens = self.norm(tokens)
        values = self.value(tokens).float()
        if self.attention is None:
            return values
        loose = tokens.shape[2] - size[0] * size[1]
        logits = self.attention(tokens[:, :, loose:]).float().transpose(2, 3)  # N K 1 T
        with torch.autocast(tokens.device.type, enabled=False):
            areas = torch.cat([_areas(size, side, tokens.device) for side in self.grids])
            share = (logits + areas.log()).softmax(-1)
            return torch.cat((values[:, :, :loose], share @ values[:, :, loose:]), dim=2)


def _areas(size: tuple[int, int], side: int, device: torch.device) -> Tensor:
    """Share of every token in each of side x side cells: side^2 (h w), in tokens.

    >>> _areas((1, 3), 2, torch.device("cpu")).tolist()
    [[0.5, 0.25, 0.0], [0.0, 0.25, 0.5], [0.5, 0.25, 0.0], [0.0, 0.25, 0.5]]
    """
    rows, columns = (_overlaps(length, side, device) for length in size)
    return (rows[:, None, :, None] * columns[None, :, None, :]).flatten(2).flatten(0, 1)


def _overlaps(length: int, side: int, device: torch.device) -> Tensor:
    """side x length: what of each of ``length`` unit intervals lies in each of ``side`` parts."""
    low = torch.arange(length, device=device, dtype=torch.float32)
    start = torch.arange(side, device=device, dtype=torch.float32)[:, None] * length / side
    end = start + length / side
    return (torch.minimum(low + 1, end) - torch.maximum(low, start)).clamp(min=0)
