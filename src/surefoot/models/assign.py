"""Which anchor points answer for which box: all images, levels and boxes at once.

The rule is a centre region (Tian et al. 2019, "FCOS", arXiv:1904.01355): on the level that fits the
box's size, the points near its centre are positive. A ring around them is left out: whether a point
half-way to the rim shows the object is nobody's business.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from surefoot.errors import ConfigError
from surefoot.shapes import Episode

__all__ = ["AssignConfig", "Assignment", "assign"]


@dataclass(frozen=True, kw_only=True)
class AssignConfig:
    """Size of the centre region."""

    radius: float = 0.22
    """Half-width of the region of positive points, as a share of the box's width (and height)."""
    least_cells: float = 0.71
    """Least half-width in strides: sqrt(1/2), so that a box has at least one point, mostly two."""
    ring: float = 2.0
    """Half-width of the region within which nothing is a negative, as a multiple of the other."""
    reach: float = 8.0
    """A level takes boxes of sqrt(area) up to this many strides; the coarsest one, the rest."""

    def __post_init__(self) -> None:
        if not (self.radius > 0 and self.least_cells >= 0.5 and self.ring >= 1 and self.reach > 0):
            raise ConfigError(
                f"AssignConfig: {self}; radius and reach have to be above 0, ring at least 1, and "
                "least_cells at least 0.5, or a box may have no anchor point at all."
            )


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What every anchor point of every image is told."""

    box: Tensor
    """B A, int64: row of ``episode.boxes`` that the point answers for; -1 for none."""
    positive: Tensor
    """B A N, bool: the point shows this object. At most one object per point."""
    ignored: Tensor
    """B A N, bool: neither positive nor negative for this object."""
    object_positive: Tensor
    """B A, bool: the point shows some object, asked for or not."""
    object_ignored: Tensor
    """B A, bool: neither positive nor negative for "some object is here"."""


def assign(
    episode: Episode, anchor_points: Tensor, strides: Tensor, config: AssignConfig | None = None
) -> Assignment:
    """Assigns boxes to anchor points; no gradient, no host read, any number of boxes, none too.

    - Positive: within ``max(radius x side, least_cells x stride)`` of the centre along both axes,
      on the box's own level. Where two boxes claim a point, the smaller one has it.
    - Ignored for an object: the rest of the ring of its boxes, points that went to a smaller box
      included; and for every object, on every level, the ring of a box of which too little shows
      (``episode.ignore``).
    - All else is background: for the other objects, this one's positive points as well.

    Args:
        episode: B images, N objects, M boxes.
        anchor_points: A 2, x y in pixels.
        strides: A, pixels.
        config: size of the region.
    """
    config = config or AssignConfig()
    regions = _regions(episode.boxes, anchor_points, strides, config)
    images, objects = episode.images.shape[0], episode.supports.shape[0]
    shown = ~episode.ignore[:, None]
    box = _smallest(episode, regions.centre & shown, images)
    asked = torch.arange(objects, device=box.device)
    owner = torch.cat((episode.box_object, episode.box_object.new_full((1,), -1)))[box]
    positive = owner[..., None] == asked
    near = regions.ring & shown
    unsure = _any_by(episode.box_image, regions.ring_all_levels & ~shown, images)
    pair = torch.where(
        episode.box_object >= 0, episode.box_image * objects + episode.box_object, images * objects
    )
    own_ring = _any_by(pair, near, images * objects + 1)[:-1]
    own_ring = own_ring.view(images, objects, -1).transpose(1, 2)
    object_positive = box >= 0
    object_near = _any_by(episode.box_image, near, images) | unsure
    return Assignment(
        box=box,
        positive=positive,
        ignored=(own_ring | unsure[..., None]) & ~positive,
        object_positive=object_positive,
        object_ignored=object_near & ~object_positive,
    )


@dataclass(frozen=True)
class _Regions:
    centre: Tensor
    ring: Tensor
    ring_all_levels: Tensor


def _regions(boxes: Tensor, points: Tensor, strides: Tensor, config: AssignConfig) -> _Regions:
    """M A masks: the centre of each box, and the ring around it (which includes the centre)."""
    boxes = boxes.float()
    sides = boxes[:, 2:] - boxes[:, :2]
    offset = (points - (boxes[:, None, :2] + boxes[:, None, 2:]) / 2).abs()
    radius = (config.radius * sides)[:, None].maximum(config.least_cells * strides[:, None])
    centre = (offset <= radius).all(-1)
    ring = (offset <= config.ring * radius).all(-1)
    level = _level(sides, strides, config.reach)
    return _Regions(centre=centre & level, ring=ring & level, ring_all_levels=ring)


def _level(sides: Tensor, strides: Tensor, reach: float) -> Tensor:
    """M A: the point is on the finest level that the box fits, or on the coarsest."""
    size = sides.prod(-1).sqrt()[:, None]
    fits = size <= reach * strides
    fits |= strides == strides.amax()
    finest = torch.where(fits, strides, torch.inf).amin(1, keepdim=True)
    return strides == finest


def _smallest(episode: Episode, claims: Tensor, images: int) -> Tensor:
    """B A: the smallest of the boxes (M A) that claim a point; -1 where none does."""
    count = claims.shape[0]
    area = (episode.boxes[:, 2:] - episode.boxes[:, :2]).prod(-1)
    order = area.argsort(stable=True)
    rank = order.argsort()
    claimed = torch.where(claims, rank[:, None], count)
    winner = claimed.new_full((images, claims.shape[1]), count)
    at = episode.box_image[:, None].expand_as(claimed)
    winner = winner.scatter_reduce(0, at, claimed, "amin")
    return torch.cat((order, order.new_full((1,), -1)))[winner]


def _any_by(group: Tensor, masks: Tensor, count: int) -> Tensor:
    """count A: whether any of the masks (M A) of a group has the point."""
    found = torch.zeros(count, masks.shape[1], dtype=torch.int32, device=masks.device)
    return found.index_add_(0, group, masks.int()) > 0
