"""Contrastive proposal encoding: what lies in boxes of one object should look the same.

Three steps, each of use alone: :func:`jittered_boxes` draws proposals around true boxes,
:func:`roi_features` reads the maps inside them, :func:`contrastive_proposals` is the loss.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from surefoot.errors import ConfigError, UsageError
from surefoot.losses.boxes import box_iou_aligned
from surefoot.losses.numerics import fp32_island, safe_divide, unit_vectors

__all__ = ["Proposals", "contrastive_proposals", "jittered_boxes", "roi_features"]

Reweight = Literal["constant", "linear", "exponential"]
"""How much more a proposal counts that overlaps more: g of the paper's equation 4."""

_CELLS = 14
_POINTS_PER_BIN = 2


@fp32_island
def contrastive_proposals(
    features: Tensor,
    labels: Tensor,
    ious: Tensor,
    *,
    temperature: float | Tensor = 0.1,
    least_iou: float = 0.5,
    reweight: Reweight = "linear",
) -> Tensor:
    """Every proposal tells those of its own object from all others; good ones count more.

    The mean over the anchors i of f(u_i) L_i, with
    L_i = -1/|P(i)| sum over p in P(i) of ln(exp(z_i z_p / t) / sum over a != i of exp(z_i z_a / t))
    and P(i) the other proposals of the same label. f(u) is 0 for u < ``least_iou`` and else g(u):
    1 (constant), u (linear) or e^u - 1 (exponential). Sun et al. 2021 (FSCE), arXiv:2103.05950,
    equations 2 to 4.

    An anchor is a proposal of an object that overlaps enough and whose object has another proposal.
    The mean is over them (the paper divides by all proposals, which would make the loss smaller
    the more of them are poor). The others still stand in the sums of the anchors, background
    (a label below 0) as nothing but a negative. Without an anchor it is 0, with graph.

    At random initialisation, where no proposal is nearer than another, it is g ln(R - 1): 7.87 x
    the mean of u for 2622 proposals. One matrix of R x R, nothing read from the device.

    Args:
        features: R D; normalised here, so their length has no effect.
        labels: R, integers; below 0 is background.
        ious: R, in [0, 1]: how far each proposal overlaps with the true box that it is for;
            carries no gradient.
        temperature: above 0; a tensor without axes may be learnt.
        least_iou: in [0, 1].
        reweight: see above.

    Returns:
        A scalar, float32, at least 0.

    Raises:
        UsageError: the shapes do not fit.
        ConfigError: a setting outside its range (a tensor is not looked at).

    >>> labels, ious = torch.tensor([0, 0, 1, 1, -1]), torch.tensor([1.0, 1.0, 1.0, 0.3, 0.0])
    >>> contrastive_proposals(torch.ones(5, 8), labels, ious)  # ln 4
    tensor(1.3863)
    """
    _check_rows(features, labels, ious)
    _check_settings(temperature, least_iou, reweight)
    z, u = unit_vectors(features), ious.detach()
    rows = torch.arange(z.shape[0], device=z.device)
    itself = rows[:, None] == rows
    positive = (labels[:, None] == labels) & (labels >= 0) & ~itself
    # The lowest number, not -inf: the row of a single proposal would have nothing left to sum.
    logits = (z @ z.T / temperature).masked_fill(itself, torch.finfo(z.dtype).min)
    log_p = torch.where(positive, torch.log_softmax(logits, dim=1), 0.0)
    count = positive.sum(1)
    # Written so that a u that is NaN stays in and shows.
    anchor = (count > 0) & ~(u < least_iou)
    f = torch.where(anchor, _g(u, reweight), 0.0)
    return -safe_divide((f * safe_divide(log_p.sum(1), count)).sum(), anchor.sum())


def _g(u: Tensor, reweight: Reweight) -> Tensor:
    if reweight == "constant":
        return torch.ones_like(u)
    return u if reweight == "linear" else torch.expm1(u)


def roi_features(
    maps: Sequence[Tensor],
    boxes: Tensor,
    image: Tensor,
    *,
    strides: Sequence[int],
    output: int = 7,
) -> Tensor:
    """What the maps of a pyramid hold inside each box: one unit vector per box.

    RoIAlign (He et al. 2017, arXiv:1703.06870) of ``output`` x ``output`` bins with 2 x 2 points
    each, half a pixel corrected (``aligned=True``), and the mean over the bins. Every box is read
    from its own image, and from the level that suits its size: the coarsest on which its side,
    the root of its area, is at least 14 cells, else the finest. For strides 4, 8, 16, 32 that is
    equation 1 of Lin et al. 2017 (FPN), arXiv:1612.03144: 224 pixels belong to stride 16.

    What lies outside an image is 0. Gradients go to the maps, none to the boxes. A box that is not
    finite gives NaN; an inverted one is read as in :func:`iou_loss`: that side is a point.

    Every level is read for every box and one is chosen, so that the device is not asked how many
    boxes a level has: the work is that of ``levels`` x M boxes, (2 output)^2 points each. Only the
    mean is kept, M D floats a level, never the bins.

    Args:
        maps: one per level, B D h w; the same B and D.
        boxes: M 4, x1 y1 x2 y2 in pixels of the image that the maps are of.
        image: M, int64, in 0 .. B-1: which image a box is in.
        strides: pixels of the image in a cell of each level, ascending.
        output: bins along each side.

    Returns:
        M D, float32, L2-normalised.

    Raises:
        UsageError: the shapes do not fit.
        ConfigError: strides that do not ascend, or ``output`` below 1.
        IndexError: an image that is not there (on a GPU: an assertion on the device).

    >>> maps = [torch.stack([torch.zeros(2, 8, 8), torch.ones(2, 8, 8)])]  # the second image is 1
    >>> boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]]).repeat(2, 1)
    >>> roi_features(maps, boxes, torch.tensor([1, 0]), strides=[8])
    tensor([[0.7071, 0.7071],
            [0.0000, 0.0000]])
    """
    _check_maps(maps, boxes, image, strides, output)

    corners = boxes.detach().float()
    finite = corners.isfinite().all(1)
    corners = _in_order(torch.where(finite[:, None], corners, 0.0))
    # A wrong number must not become an address: the lookup refuses it, negative ones too.
    images = torch.arange(maps[0].shape[0], device=image.device)
    own = images.index_select(0, image.long())
    with torch.autocast(corners.device.type, enabled=False):
        features = _read(maps, torch.cat((own[:, None], corners), dim=1), strides, output)
        return unit_vectors(torch.where(finite[:, None], features, torch.nan))


def _read(maps: Sequence[Tensor], rois: Tensor, strides: Sequence[int], output: int) -> Tensor:
    """Means of the levels that suit the boxes; rois are M 5, image x1 y1 x2 y2."""
    from torchvision.ops import roi_align  # of surefoot[vision]: the losses do without it

    side = (rois[:, 3:] - rois[:, 1:3]).prod(1).sqrt()
    points = output * _POINTS_PER_BIN
    features = rois.new_zeros(())
    for values, stride in zip(maps, strides, strict=True):
        # One bin of all the points is the mean of the bins.
        read = roi_align(values.float(), rois, 1, 1 / stride, points, aligned=True).flatten(1)
        fits = (side >= _CELLS * stride)[:, None]
        features = torch.where(fits, read, features) if stride > strides[0] else read
    return features


@dataclass(frozen=True)
class Proposals:
    """Boxes around true ones, R = M x count rows."""

    boxes: Tensor
    """R 4, float32, x1 y1 x2 y2 in pixels."""
    ious: Tensor
    """R, in [0, 1]: overlap with the true box."""
    source: Tensor
    """R, int64: the row of the true box. ``labels[source]`` are the labels of the proposals."""


def jittered_boxes(
    boxes: Tensor,
    count: int,
    *,
    reach: float = 0.3,
    generator: torch.Generator | None = None,
) -> Proposals:
    """``count`` proposals around every true box, as a detector would make them.

    The centre moves by up to ``reach`` of each side, and the sides grow or shrink by up to a factor
    of 1 + ``reach``, both times a strength that is drawn anew for every proposal; so every overlap
    from the worst up to 1 comes up. With 0.3, 19 in 20 have an IoU above 0.5, and none is below
    0.3. Proposals may reach over the image's border. Nothing is read from the device.

    Args:
        boxes: M 4, x1 y1 x2 y2 in pixels.
        count: proposals of each.
        reach: above 0 and below 1.
        generator: where all draws come from, on the device of ``boxes``; torch's own where it is
            not given.

    Raises:
        UsageError: the boxes are not M 4.
        ConfigError: ``count`` below 1, or ``reach`` outside its range.

    >>> drawn = jittered_boxes(torch.tensor([[10.0, 10.0, 50.0, 40.0]]), 5)
    >>> drawn.boxes.shape, drawn.source.tolist()
    (torch.Size([5, 4]), [0, 0, 0, 0, 0])
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise UsageError(f"jittered_boxes: boxes of shape {tuple(boxes.shape)}; expected M 4.")
    if count < 1:
        raise ConfigError(f"jittered_boxes: count {count}; at least 1 proposal of each box.")
    if not 0 < reach < 1:
        raise ConfigError(f"jittered_boxes: reach {reach}; expected a number between 0 and 1.")
    rows, device = boxes.shape[0], boxes.device
    true = boxes.detach().float().repeat_interleave(count, dim=0)
    draws = torch.rand(rows * count, 5, device=device, generator=generator)
    strength, draws = reach * draws[:, :1], 2 * draws[:, 1:] - 1
    low, high = true[:, :2], true[:, 2:]
    sides = high - low
    centre = (low + high) / 2 + strength * draws[:, :2] * sides
    half = sides * torch.exp(torch.log1p(strength) * draws[:, 2:]) / 2
    drawn = torch.cat((centre - half, centre + half), dim=1)
    source = torch.arange(rows, device=device).repeat_interleave(count)
    return Proposals(drawn, box_iou_aligned(drawn, true), source)


def _in_order(boxes: Tensor) -> Tensor:
    """An inverted side becomes the point in its middle."""
    low, high = boxes[:, :2], boxes[:, 2:]
    middle = (low + high) / 2
    return torch.cat((torch.minimum(low, middle), torch.maximum(high, middle)), dim=1)


def _check_rows(features: Tensor, labels: Tensor, ious: Tensor) -> None:
    if features.ndim != 2 or not labels.shape == ious.shape == features.shape[:1]:
        raise UsageError(
            f"contrastive_proposals: features of shape {tuple(features.shape)}, labels of shape "
            f"{tuple(labels.shape)} and ious of shape {tuple(ious.shape)}; expected R D, R and R."
        )


def _check_settings(temperature: float | Tensor, least_iou: float, reweight: str) -> None:
    name = "contrastive_proposals"
    if isinstance(temperature, Tensor):
        if temperature.ndim != 0:
            raise UsageError(
                f"{name}: temperature of shape {tuple(temperature.shape)}; expected a number or a "
                "tensor without axes."
            )
    elif not 0 < temperature < math.inf:
        raise ConfigError(f"{name}: temperature {temperature}; expected a finite number above 0.")
    if not 0 <= least_iou <= 1:
        raise ConfigError(f"{name}: least_iou {least_iou}; an overlap is from 0 to 1.")
    if reweight not in get_args(Reweight):
        kinds = ", ".join(get_args(Reweight))
        raise ConfigError(f"{name}: reweight {reweight!r}; expected one of {kinds}.")


def _check_maps(
    maps: Sequence[Tensor], boxes: Tensor, image: Tensor, strides: Sequence[int], output: int
) -> None:
    shapes = [tuple(values.shape) for values in maps]
    alike = len({shape[:2] for shape in shapes}) == 1 and all(len(s) == 4 for s in shapes)
    if not alike or len(strides) != len(maps):
        raise UsageError(
            f"roi_features: maps of shapes {shapes} and strides {list(strides)}; expected B D h w "
            "per level, with one B and one D, and a stride for each."
        )
    if boxes.ndim != 2 or boxes.shape[1] != 4 or image.shape != boxes.shape[:1]:
        raise UsageError(
            f"roi_features: boxes of shape {tuple(boxes.shape)} and image of shape "
            f"{tuple(image.shape)}; expected M 4 and M."
        )
    if strides[0] <= 0 or any(a >= b for a, b in pairwise(strides)):
        raise ConfigError(
            f"roi_features: strides {list(strides)}; expected ascending ones above 0."
        )
    if output < 1:
        raise ConfigError(f"roi_features: output {output}; at least 1 bin.")
