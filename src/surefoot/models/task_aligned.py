"""Which anchor points learn which box, by how well they say it already: task-aligned assignment.

Feng et al. 2021, "TOOD: Task-aligned One-stage Object Detection", arXiv:2108.07755, section 3.2, in
the form that YOLOv8 trains with. The alignment of a box and a point is t = s^alpha u^beta, with s
the score of the box's class at the point and u the overlap (CIoU, Zheng et al. 2020,
arXiv:1911.08287) of the box that the point says. Of the points inside a box the k best aligned are
positive; what one is to score is t, scaled so that the box's best has its best overlap.

All images, levels and boxes at once. Work and memory go with the pairs of a box and a point inside
it, not with boxes x points, and no image is padded to the boxes of the fullest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from surefoot.errors import ConfigError, UsageError
from surefoot.models.decode import BoxesAndScores, decode_boxes, encode_boxes

__all__ = [
    "LabelledBoxes",
    "PositivePoints",
    "TaskAligned",
    "TaskAlignedConfig",
    "positive_points",
    "task_aligned",
]

_TINY = 1e-7


class LabelledBoxes(Protocol):
    """The true boxes of a batch."""

    @property
    def boxes(self) -> Tensor:
        """M 4, x1 y1 x2 y2 in pixels."""
        ...

    @property
    def box_image(self) -> Tensor:
        """M, int64: which image a box is in."""
        ...

    @property
    def box_class(self) -> Tensor:
        """M, int64: which of the N classes it shows."""
        ...


@dataclass(frozen=True, kw_only=True)
class TaskAlignedConfig:
    """What makes a point positive; the defaults are those that YOLOv8 trains with."""

    topk: int = 10
    """Points of a box, at most."""
    alpha: float = 0.5
    """Power of the score."""
    beta: float = 6.0
    """Power of the overlap."""
    eps: float = 1e-9
    """Alignment at which the targets of a box whose best point hardly meets it begin to fade."""

    def __post_init__(self) -> None:
        least = min(self.alpha, self.beta)
        if self.topk < 1 or not least >= 0 or not math.isfinite(self.alpha + self.beta):
            raise ConfigError(
                f"TaskAlignedConfig: {self}; topk is at least 1, alpha and beta at least 0."
            )
        if not 0 < self.eps < math.inf:
            raise ConfigError(f"TaskAlignedConfig: eps {self.eps}; expected a number above 0.")


@dataclass(frozen=True, kw_only=True)
class TaskAligned:
    """What every anchor point of every image is told; no gradient."""

    box: Tensor
    """B A, int64: which of the M boxes the point answers for; -1 for none."""
    score: Tensor
    """B A, float32 in [0, 1]: what the point is to score for that box's class; 0 for none."""


@dataclass(frozen=True, kw_only=True)
class PositivePoints:
    """The P points that answer for a box, as rows: what they say, with gradient, and should say."""

    image: Tensor
    """P, int64."""
    point: Tensor
    """P, int64: which of the A anchor points."""
    label: Tensor
    """P, int64: the class of its box."""
    score: Tensor
    """P, float32 in [0, 1]: what to score for the class."""
    boxes: Tensor
    """P 4, x1 y1 x2 y2 in pixels: what the point says; carries gradient."""
    truth: Tensor
    """P 4, x1 y1 x2 y2 in pixels: the box it answers for."""
    distribution: Tensor
    """P 4 R, float32 logits; carries gradient."""
    distances: Tensor
    """P 4, in strides: the truth as :func:`surefoot.models.encode_boxes` gives it."""


@torch.no_grad()
def task_aligned(
    prediction: BoxesAndScores, truth: LabelledBoxes, config: TaskAlignedConfig | None = None
) -> TaskAligned:
    """Assigns true boxes to anchor points.

    - Candidates of a box are the points inside it. A side shorter than two of the finest strides
      is read as two of them here, so that no box falls between all points.
    - A point that is among the best of several boxes goes to the one it overlaps with most, of all
      that it is inside of. A point that does not overlap with a box (CIoU <= 0) never is.
    - The target of a point is its t / (best t + eps) x best u, of the points that the box got.

    Two numbers are read back to the host: how many pairs there are, and the most of one box.

    Args:
        prediction: of B images over A points and N classes.
        truth: M boxes, none too; each within the images and classes of ``prediction``.
        config: the powers and counts.

    Raises:
        UsageError: boxes, images and classes are not M 4, M and M.
    """
    config = config or TaskAlignedConfig()
    _check(truth)
    images, points = prediction.logits.shape[:2]
    with torch.autocast(prediction.logits.device.type, enabled=False):
        box, point = _inside(truth, prediction).nonzero(as_tuple=True)
        image = truth.box_image[box]
        u = _overlap(prediction, image, point, truth.boxes.float()[box])
        s = prediction.logits[image, point, truth.box_class[box]].float().sigmoid()
        t = s.pow(config.alpha) * u.pow(config.beta)
        pairs = _Pairs(box=box, row=image * points + point, u=u, t=t)
        owner = _owners(pairs, _best(pairs, len(truth.boxes), config.topk), images * points)
        score = _targets(pairs, owner, len(truth.boxes), config.eps)
    return TaskAligned(box=owner.view(images, points), score=score.view(images, points))


def positive_points(
    prediction: BoxesAndScores, truth: LabelledBoxes, aligned: TaskAligned
) -> PositivePoints:
    """The points that answer for a box, and what they say of it.

    Args:
        prediction: what ``aligned`` was made of.
        truth: the same.
        aligned: from :func:`task_aligned`.
    """
    image, point = (aligned.box >= 0).nonzero(as_tuple=True)
    box = aligned.box[image, point]
    boxes = truth.boxes.float()[box]
    distribution = prediction.distribution[image, point].float()
    anchors, strides = prediction.anchor_points[point], prediction.strides[point]
    return PositivePoints(
        image=image,
        point=point,
        label=truth.box_class[box],
        score=aligned.score[image, point],
        boxes=decode_boxes(distribution, anchors, strides),
        truth=boxes,
        distribution=distribution,
        distances=encode_boxes(boxes, anchors, strides, distribution.shape[-1]),
    )


def _check(truth: LabelledBoxes) -> None:
    count = len(truth.boxes)
    shapes = [tuple(t.shape) for t in (truth.boxes, truth.box_image, truth.box_class)]
    if shapes != [(count, 4), (count,), (count,)]:
        raise UsageError(
            f"task_aligned: boxes, box_image and box_class have shapes {shapes}; expected M 4, "
            "M and M."
        )


@dataclass(frozen=True)
class _Pairs:
    """Boxes and the points inside them, a row each, box after box."""

    box: Tensor
    row: Tensor
    """Image and point as one number."""
    u: Tensor
    t: Tensor


def _inside(truth: LabelledBoxes, prediction: BoxesAndScores) -> Tensor:
    """M A: the point is a candidate of the box."""
    low, high = truth.boxes.float().split(2, dim=1)
    finest = prediction.strides.amin()
    half = ((high - low) / 2).maximum(finest)[..., None]
    centre = ((low + high) / 2)[..., None]
    x, y = prediction.anchor_points.T
    return ((x - centre[:, 0]).abs() < half[:, 0]) & ((y - centre[:, 1]).abs() < half[:, 1])


def _overlap(prediction: BoxesAndScores, image: Tensor, point: Tensor, truth: Tensor) -> Tensor:
    """CIoU of each pair, at least 0; a point inside several boxes is decoded once."""
    images, points = prediction.logits.shape[:2]
    row = image * points + point
    wanted = torch.zeros(images * points, dtype=torch.bool, device=row.device)
    wanted[row] = True
    (rows,) = wanted.nonzero(as_tuple=True)
    slot = wanted.cumsum(0) - 1
    at = rows % points
    said = decode_boxes(
        prediction.distribution[rows // points, at],
        prediction.anchor_points[at],
        prediction.strides[at],
    )
    return _ciou(said[slot[row]], truth).clamp(min=0)


def _ciou(a: Tensor, b: Tensor) -> Tensor:
    """1 - the CIoU loss of each row; values alone, for it is used without gradient."""
    (a_low, a_high), (b_low, b_high) = a.split(2, dim=1), b.split(2, dim=1)
    common = (torch.minimum(a_high, b_high) - torch.maximum(a_low, b_low)).clamp(min=0)
    a_sides, b_sides = a_high - a_low, b_high - b_low
    both = common.prod(1)
    iou = both / (a_sides.prod(1) + b_sides.prod(1) - both + _TINY)
    reach = (torch.maximum(a_high, b_high) - torch.minimum(a_low, b_low)).square().sum(1)
    apart = ((a_low + a_high - b_low - b_high) / 2).square().sum(1)
    turn = torch.atan2(a_sides[:, 0], a_sides[:, 1]) - torch.atan2(b_sides[:, 0], b_sides[:, 1])
    v = turn.square() * (4 / math.pi**2)
    return iou - apart / (reach + _TINY) - v * v / (1 - iou + v + _TINY)


def _best(pairs: _Pairs, boxes: int, topk: int) -> Tensor:
    """P, bool: the pair is among the ``topk`` best of its box, and overlaps at all."""
    if not len(pairs.box):
        return torch.zeros_like(pairs.box, dtype=torch.bool)
    count = torch.bincount(pairs.box, minlength=boxes)
    place = torch.arange(len(pairs.box), device=count.device)
    place = place - (count.cumsum(0) - count)[pairs.box]
    most = int(count.max())
    t = pairs.t.new_zeros(boxes, most)
    t[pairs.box, place] = pairs.t
    value, at = t.topk(min(topk, most), dim=1)
    chosen = torch.zeros_like(t, dtype=torch.bool).scatter_(1, at, value > 0)
    return chosen[pairs.box, place]


def _owners(pairs: _Pairs, claims: Tensor, rows: int) -> Tensor:
    """B A in a row: the box that each point answers for; -1 for none."""
    none = len(pairs.box)
    claimed = torch.zeros_like(pairs.box).new_zeros(rows).index_add_(0, pairs.row, claims.long())
    most = pairs.u.new_zeros(rows).scatter_reduce_(0, pairs.row, pairs.u, "amax")
    wins = torch.where(claimed[pairs.row] > 1, pairs.u == most[pairs.row], claims)
    boxes = torch.where(wins, pairs.box, none)
    owner = boxes.new_full((rows,), none).scatter_reduce_(0, pairs.row, boxes, "amin")
    return torch.where((owner < none) & (claimed > 0), owner, -1)


def _targets(pairs: _Pairs, owner: Tensor, boxes: int, eps: float) -> Tensor:
    """B A in a row: what each point is to score."""
    own = owner[pairs.row] == pairs.box
    t, u = (torch.where(own, x, 0.0) for x in (pairs.t, pairs.u))
    best_t, best_u = (x.new_zeros(boxes).scatter_reduce_(0, pairs.box, x, "amax") for x in (t, u))
    target = t * best_u[pairs.box] / (best_t[pairs.box] + eps)
    return t.new_zeros(len(owner)).scatter_reduce_(0, pairs.row, target, "amax")
