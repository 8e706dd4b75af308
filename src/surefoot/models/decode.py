"""Boxes to what a head predicts, and back: the one decode of training, evaluation and export.

A box is four distances (left, top, right, bottom) from an anchor point to its sides, in strides,
each a distribution over 0 .. R-1 (Li et al. 2020, "Generalized Focal Loss", arXiv:2006.04388,
equations 4 and 5). Distances are never negative, so a decoded box is never inverted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from surefoot.errors import UsageError

__all__ = [
    "BoxesAndScores",
    "Detections",
    "anchor_points",
    "best_boxes",
    "decode_boxes",
    "detections",
    "encode_boxes",
]


class BoxesAndScores(Protocol):
    """What every head says, whatever its scores are of: references, or classes."""

    @property
    def logits(self) -> Tensor:
        """B A N."""
        ...

    @property
    def distribution(self) -> Tensor:
        """B A 4 R: logits over the distance of each side, in strides."""
        ...

    @property
    def anchor_points(self) -> Tensor:
        """A 2, x y in pixels."""
        ...

    @property
    def strides(self) -> Tensor:
        """A, pixels."""
        ...


@dataclass(frozen=True, kw_only=True)
class Detections:
    """What was found in one image, best first."""

    boxes: Tensor
    """M 4, x1 y1 x2 y2 in pixels."""
    scores: Tensor
    """M, probabilities."""
    objects: Tensor
    """M, int64: which of the N objects or classes."""


def anchor_points(
    sizes: dict[int, tuple[int, int]], device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Centres of the cells of every level, row by row, finest level first.

    Args:
        sizes: height and width of each level's map, by its stride in pixels.
        device: where the result lies.

    Returns:
        A 2 points (x y, pixels) and A strides (pixels), float32.

    >>> points, strides = anchor_points({8: (1, 2)})
    >>> points.tolist(), strides.tolist()
    ([[4.0, 4.0], [12.0, 4.0]], [8.0, 8.0])
    """
    points: list[Tensor] = []
    strides: list[Tensor] = []
    for stride, (height, width) in sizes.items():
        y = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) * stride
        x = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) * stride
        grid = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1)
        points.append(grid.reshape(-1, 2))
        strides.append(torch.full((height * width,), float(stride), device=device))
    return torch.cat(points), torch.cat(strides)


def decode_boxes(distribution: Tensor, anchor_points: Tensor, strides: Tensor) -> Tensor:
    """Boxes in pixels from the logits over each side's distance; float32 whatever comes in.

    The distance is the expectation of its distribution. At random initialisation, logits near 0, it
    is (R - 1) / 2 strides.

    Args:
        distribution: ... 4 R, logits.
        anchor_points: ... 2, x y in pixels; broadcasts against ``distribution`` (A 2 for B A 4 R).
        strides: ..., pixels; the same.

    Returns:
        ... 4, x1 y1 x2 y2 in pixels.

    >>> points, strides = torch.tensor([[20.0, 12.0]]), torch.tensor([8.0])
    >>> decode_boxes(torch.zeros(1, 4, 3), points, strides).tolist()
    [[12.0, 4.0, 28.0, 20.0]]
    """
    with torch.autocast(distribution.device.type, enabled=False):
        bins = torch.arange(distribution.shape[-1], device=distribution.device, dtype=torch.float32)
        distances = (distribution.float().softmax(-1) * bins).sum(-1) * strides[..., None]
        return torch.cat(
            (anchor_points - distances[..., :2], anchor_points + distances[..., 2:]), dim=-1
        )


def encode_boxes(boxes: Tensor, anchor_points: Tensor, strides: Tensor, reg_max: int) -> Tensor:
    """Distances from anchor points to the sides of boxes: the inverse of :func:`decode_boxes`.

    What the distribution cannot say is moved to the nearest that it can: distances lie in
    0 .. R-1 strides. A target carries no gradient, so nothing is lost to this limit but range.

    Args:
        boxes: ... 4, x1 y1 x2 y2 in pixels.
        anchor_points: ... 2, x y in pixels.
        strides: ..., pixels.
        reg_max: R, bins of a distribution.

    Returns:
        ... 4, left top right bottom in strides, float32.

    >>> point, stride = torch.tensor([[20.0, 12.0]]), torch.tensor([8.0])
    >>> encode_boxes(torch.tensor([[12.0, 4.0, 28.0, 20.0]]), point, stride, 16).tolist()
    [[1.0, 1.0, 1.0, 1.0]]
    """
    boxes = boxes.float()
    sides = torch.cat((anchor_points - boxes[..., :2], boxes[..., 2:] - anchor_points), dim=-1)
    return (sides / strides[..., None]).clamp(0, reg_max - 1)


def best_boxes(prediction: BoxesAndScores) -> tuple[Tensor, Tensor]:
    """The likeliest place of every object in every image: no suppression is needed for one box.

    Returns:
        boxes B N 4 (x1 y1 x2 y2, pixels) and scores B N (probabilities, float32). The score says
        whether the object is there at all; the box is given in any case.
    """
    scores, at = prediction.logits.float().sigmoid().max(dim=1)
    batch = torch.arange(at.shape[0], device=at.device)[:, None]
    boxes = decode_boxes(
        prediction.distribution[batch, at], prediction.anchor_points[at], prediction.strides[at]
    )
    return boxes, scores


def detections(
    prediction: BoxesAndScores,
    *,
    threshold: float = 0.001,
    iou_threshold: float = 0.6,
    limit: int = 100,
) -> list[Detections]:
    """Everything that was found, one :class:`Detections` per image.

    Non-maximum suppression is within an object: two objects may lie on each other. Of every image
    the best 10 x ``limit`` candidates are looked at. Needs torchvision.

    Args:
        prediction: what a model said of B images.
        threshold: lowest probability that counts.
        iou_threshold: overlap above which the weaker box of an object goes.
        limit: most boxes per image.
    """
    from torchvision.ops import batched_nms

    if limit < 1:
        raise UsageError(f"detections: limit {limit}; at least one box per image has to be kept.")
    count = prediction.logits.shape[-1]
    boxes = decode_boxes(prediction.distribution, prediction.anchor_points, prediction.strides)
    scores = prediction.logits.float().sigmoid().flatten(1)
    scores, at = scores.topk(min(10 * limit, scores.shape[1]), dim=1)
    found: list[Detections] = []
    for image_boxes, image_scores, image_at in zip(boxes, scores, at, strict=True):
        above = image_scores >= threshold
        image_scores, image_at = image_scores[above], image_at[above]
        candidates, objects = image_boxes[image_at // count], image_at % count
        kept = batched_nms(candidates, image_scores, objects, iou_threshold)[:limit]
        found.append(
            Detections(boxes=candidates[kept], scores=image_scores[kept], objects=objects[kept])
        )
    return found
