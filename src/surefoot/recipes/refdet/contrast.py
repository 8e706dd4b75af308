"""Two more terms of an episode's loss: contrastive proposals, and triplets against background."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from surefoot.losses import (
    batch_hard_triplet,
    contrastive_proposals,
    jittered_boxes,
    roi_features,
)
from surefoot.models import RefDet
from surefoot.recipes.refdet.options import LossOptions
from surefoot.shapes import DetectionPrediction, Episode, LossTerms

__all__ = ["Contrast", "empty_points"]

_PER_BOX = 4
_STRIDE = 8
"""Proposals are read off the level of this stride, where there is one: an object of a drone's view
is 2 to 8 of its cells."""
_EMPTY_PER_IMAGE = 4


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Adds the terms whose weight is above 0.

    - ``cpe``: :func:`~surefoot.losses.contrastive_proposals` of jittered boxes, from features of
      their own image as their own object conditions them. About ln(R - 1) for R proposals while
      nothing is told apart.
    - ``triplet``: :func:`~surefoot.losses.batch_hard_triplet` over photos, the objects in the
      scenes, objects that nobody asks for, and the empty places that the detector likes best; the
      last two are nobody's positive. The margin, at most 2 + margin, while nothing is told apart.
    """

    cpe_weight: float = 0.0
    triplet_weight: float = 0.0
    margin: float = 0.3

    @classmethod
    def of(cls, options: LossOptions) -> Contrast:
        """As the flags have it."""
        return cls(
            cpe_weight=options.cpe_weight,
            triplet_weight=options.triplet_weight,
            margin=options.triplet_margin,
        )

    def __call__(
        self, terms: LossTerms, model: RefDet, prediction: DetectionPrediction, episode: Episode
    ) -> LossTerms:
        """``terms`` and these."""
        values, weights = dict(terms.values), dict(terms.weights)
        with torch.autocast(prediction.logits.device.type, enabled=False):
            if self.cpe_weight:
                values["cpe"] = _proposals(model, prediction, episode)
                weights["cpe"] = self.cpe_weight
            if self.triplet_weight:
                values["triplet"] = _triplets(prediction, episode, self.margin)
                weights["triplet"] = self.triplet_weight
        return LossTerms(values, weights)


def _proposals(model: RefDet, prediction: DetectionPrediction, episode: Episode) -> Tensor:
    levels = {stride: (height, width) for height, width, stride in prediction.levels}
    stride = _STRIDE if _STRIDE in levels else min(levels)
    owner = torch.where(episode.ignore, -1, episode.box_object)
    conditioned = model.conditioned(
        prediction, None, episode.box_image, owner.clamp(min=0), stride=stride
    )
    features = conditioned.transpose(1, 2).unflatten(2, levels[stride])
    drawn = jittered_boxes(episode.boxes, _PER_BOX)
    rows = roi_features([features], drawn.boxes, drawn.source, strides=[stride])
    return contrastive_proposals(rows, owner[drawn.source], drawn.ious)


def _triplets(prediction: DetectionPrediction, episode: Episode, margin: float) -> Tensor:
    shots = prediction.shots.float()
    objects = torch.arange(len(shots), device=shots.device).repeat_interleave(shots.shape[1])
    seen = roi_features(
        _maps(prediction),
        episode.boxes,
        episode.box_image,
        strides=[stride for _, _, stride in prediction.levels],
    )
    owner = torch.where(episode.ignore, -1, episode.box_object)
    at = empty_points(prediction, episode, _EMPTY_PER_IMAGE)
    image = torch.arange(len(at), device=at.device)[:, None]
    empty = prediction.embeddings[image, at].float().flatten(0, 1)
    return batch_hard_triplet(
        torch.cat([shots.flatten(0, 1), seen, normalize(empty, dim=-1)]),
        torch.cat([objects, owner, owner.new_full((len(empty),), -1)]),
        margin=margin,
    )


def _maps(prediction: DetectionPrediction) -> list[Tensor]:
    """B A D embeddings -> B D h w of each level."""
    sizes = [height * width for height, width, _ in prediction.levels]
    return [
        part.transpose(1, 2).unflatten(2, (height, width)).float()
        for part, (height, width, _) in zip(
            prediction.embeddings.split(sizes, dim=1), prediction.levels, strict=True
        )
    ]


@torch.no_grad()
def empty_points(prediction: DetectionPrediction, episode: Episode, count: int) -> Tensor:
    """B ``count``, int64: the anchor points outside every box, a stride away from it at least, that
    score highest for any object. In an image full of boxes some may be inside all the same.
    """
    points, reach = prediction.anchor_points, prediction.strides[:, None]
    low, high = episode.boxes[:, None, :2] - reach, episode.boxes[:, None, 2:] + reach
    inside = ((points >= low) & (points <= high)).all(-1).float()  # M A
    scores = prediction.logits.float().amax(-1)
    covered = torch.zeros_like(scores).index_add_(0, episode.box_image, inside)
    return scores.masked_fill(covered > 0, -torch.inf).topk(count, dim=1).indices
