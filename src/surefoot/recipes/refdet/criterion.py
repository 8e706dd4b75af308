"""What RefDet is trained on: five terms, every anchor point of every image in two of them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from surefoot.errors import ConfigError
from surefoot.losses import (
    WiseIoU,
    distribution_focal_loss,
    focal_loss,
    iou_loss,
    prototype_contrastive,
)
from surefoot.models import AssignConfig, assign, decode_boxes, encode_boxes
from surefoot.shapes import DetectionPrediction, Episode, LossTerms

__all__ = ["RefDetCriterion", "RefDetLossConfig", "absent_pairs"]

_ROWS_PER_BOX = 16


@dataclass(frozen=True, kw_only=True)
class RefDetLossConfig:
    """Weights of the terms, and what each of them is."""

    bbox_weight: float = 2.0
    """Overlap of the box with the true one, over positive points."""
    cls_weight: float = 1.0
    """Focal loss of every (anchor point, object) pair, over the number of positive ones."""
    dfl_weight: float = 0.5
    """Distribution focal loss of the box sides, over positive points."""
    supcon_weight: float = 1.0
    """Metric terms: whose prototype a positive point resembles, and whose a photo does."""
    obj_weight: float = 0.5
    """Focal loss of "some object is here", of every anchor point."""
    absence_weight: float = 0.0
    """Cross-entropy of the likeliest point of every object that is not in the image."""
    bbox_loss: Literal["iou", "giou", "diou", "ciou", "wiou"] = "diou"
    """Overlap measure of the bbox term; wiou is WIoU v3."""
    focal_gamma: float = 2.0
    """How much less an easy (point, object) pair counts."""
    focal_alpha: float = 0.75
    """Weight of a positive pair; a negative one has 1 - alpha."""
    temperature: float = 1 / 12
    """Of the metric terms: the cosine is divided by it."""
    photo_share: float = 0.5
    """Weight, within the metric terms, of telling the objects apart by their photos alone."""
    assign: AssignConfig = field(default_factory=AssignConfig)
    """Which anchor points are positive."""

    def __post_init__(self) -> None:
        for name in ("bbox", "cls", "dfl", "supcon", "obj", "absence"):
            value = getattr(self, f"{name}_weight")
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(
                    f"RefDetLossConfig: {name}_weight {value}; a weight is finite and at least 0."
                )
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"RefDetLossConfig: temperature {self.temperature} is not above 0.")


@dataclass(frozen=True)
class _Matches:
    """Positive points as P rows; where there are fewer, the rest repeats them at share 0."""

    image: Tensor
    point: Tensor
    box: Tensor
    share: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Mean of P values over the positive points; 0, with graph, where there are none."""
        return (values * self.share).sum()


class RefDetCriterion(nn.Module):
    """Loss of a :class:`DetectionPrediction` against its :class:`Episode`, in float32.

    Terms, and their values at random initialisation (N objects, R bins):

    - ``bbox``: the overlap loss; near 1 for boxes that are far too large.
    - ``cls``, ``obj``: sigmoid focal losses (Lin et al. 2017, arXiv:1708.02002) summed over all
      anchor points, images without any object included, and divided by the number of positives
      (at least 1). At the prior probability they start small.
    - ``dfl``: ln R = 2.77 for 16 bins.
    - ``absence``: -ln(1 - p) of the likeliest point of every absent object, mean over (image,
      object) pairs; near 0 at the prior, and as large as the detector is sure of what is not there.
    - ``supcon``: cross-entropy over the N prototypes of each positive point; the same against the
      prototypes that single photos give; and ``photo_share`` x that of photos against the other
      photos. Each is ln N (2.77 for 16) where all look alike, and more as long as they resemble
      each other by chance, which the temperature magnifies.

    An episode without boxes gives ``bbox`` = ``dfl`` = 0, with graph, and pushes ``cls`` and
    ``obj`` down. Nothing is read back to the host. The running mean of WIoU is a buffer: it is to
    be saved with the model.
    """

    def __init__(self, config: RefDetLossConfig | None = None) -> None:
        super().__init__()
        self.config = config or RefDetLossConfig()
        self.wise_iou = WiseIoU()

    def forward(self, prediction: DetectionPrediction, episode: Episode) -> LossTerms:
        """The terms, with the weights of the configuration."""
        config = self.config
        with torch.autocast(prediction.logits.device.type, enabled=False):
            assignment = assign(
                episode, prediction.anchor_points, prediction.strides, config.assign
            )
            matches = _matches(assignment.box, episode.boxes.shape[0])
            bbox, dfl = self._box_terms(prediction, episode, matches)
            values = {
                "bbox": bbox,
                "cls": self._focal(prediction.logits, assignment.positive, assignment.ignored),
                "dfl": dfl,
                "supcon": self._metric(prediction, episode, matches),
                "obj": self._focal(
                    prediction.objectness, assignment.object_positive, assignment.object_ignored
                ),
            }
            if config.absence_weight:
                values["absence"] = _absence(prediction.logits, episode)
        return LossTerms(values, {name: getattr(config, f"{name}_weight") for name in values})

    def _focal(self, logits: Tensor, positive: Tensor, ignored: Tensor) -> Tensor:
        targets = positive.float()
        loss = focal_loss(
            logits.float(), targets, gamma=self.config.focal_gamma, alpha=self.config.focal_alpha
        )
        return loss.masked_fill(ignored, 0).sum() / targets.sum().clamp(min=1)

    def _box_terms(
        self, prediction: DetectionPrediction, episode: Episode, matches: _Matches
    ) -> tuple[Tensor, Tensor]:
        distribution = prediction.distribution[matches.image, matches.point].float()
        points, strides = prediction.anchor_points, prediction.strides
        points, strides = points[matches.point], strides[matches.point]
        truth = episode.boxes.float()[matches.box]
        boxes = decode_boxes(distribution, points, strides)
        if self.config.bbox_loss == "wiou":
            overlap = self._wise_iou_loss(boxes, truth, matches)
        else:
            overlap = iou_loss(boxes, truth, kind=self.config.bbox_loss)
        sides = encode_boxes(truth, points, strides, distribution.shape[-1])
        return matches.mean(overlap), matches.mean(distribution_focal_loss(distribution, sides))

    def _wise_iou_loss(self, boxes: Tensor, truth: Tensor, matches: _Matches) -> Tensor:
        """WIoU v3, whose running mean is left alone by an episode without positive points."""
        before = self.wise_iou.mean_loss.clone()
        loss = self.wise_iou(boxes, truth)
        after = self.wise_iou.mean_loss
        after.copy_(torch.where(matches.share.any(), after, before))
        return loss

    def _metric(
        self, prediction: DetectionPrediction, episode: Episode, matches: _Matches
    ) -> Tensor:
        """Cross-entropies: points over prototypes, points over photos, photos over photos."""
        temperature, shots = self.config.temperature, prediction.shots.float()
        embeddings = prediction.embeddings[matches.image, matches.point].float()
        owner = episode.box_object[matches.box]
        asked = matches.share * (owner >= 0)
        asked = asked / asked.sum().clamp(min=torch.finfo(torch.float32).tiny)
        labels, k = owner.clamp(min=0), shots.shape[1]

        def point_term(prototypes: Tensor) -> Tensor:
            loss = prototype_contrastive(embeddings, prototypes, labels, temperature=temperature)
            return (loss * asked).sum()

        total = point_term(prediction.prototypes.float())
        total = total + torch.stack([point_term(shots[:, i]) for i in range(k)]).mean()
        if k > 1:
            objects = torch.arange(shots.shape[0], device=shots.device)
            between = [
                prototype_contrastive(
                    shots[:, i], shots[:, i - 1], objects, temperature=temperature
                )
                for i in range(k)
            ]
            total = total + self.config.photo_share * torch.stack(between).mean()
        return total


def absent_pairs(episode: Episode) -> Tensor:
    """B N, bool: no box of the object is in the image, not even one that is ignored."""
    images, objects = len(episode.images), len(episode.supports)
    seen = torch.zeros(images, objects, device=episode.images.device).index_put_(
        (episode.box_image, episode.box_object.clamp(min=0)),
        (episode.box_object >= 0).float(),
        accumulate=True,
    )
    return seen == 0


def _absence(logits: Tensor, episode: Episode) -> Tensor:
    """Mean over the pairs of an image and an object that is not in it: what its best point scores.

    One point that is taken for the object is a false alarm, and drowns in the focal loss of all.
    """
    absent = absent_pairs(episode).float()
    return (softplus(logits.float().amax(1)) * absent).sum() / absent.sum().clamp(min=1)


def _matches(assigned: Tensor, boxes: int) -> _Matches:
    """The positive points of B A assigned boxes, without asking the device how many there are.

    The number of rows is known beforehand: 16 per box, several times what a box has on average.
    Should there be more positive points after all, the rows are an even sample of them.
    """
    flat = assigned.flatten()
    rows, points = min(flat.numel(), _ROWS_PER_BOX * boxes), assigned.shape[1]
    positive = flat >= 0
    count = positive.sum()
    some = count.clamp(min=1)
    slot = torch.where(positive, positive.cumsum(0) - 1, flat.numel())
    every = torch.arange(flat.numel(), device=flat.device)
    at = every.new_zeros(flat.numel() + 1).scatter_(0, slot, every)
    row = every[:rows]
    at = at[torch.where(count > rows, row * some // max(rows, 1), row % some)]
    return _Matches(
        image=at // points,
        point=at % points,
        box=flat[at].clamp(min=0),
        share=(row < count) / some.clamp(max=max(rows, 1)),
    )
