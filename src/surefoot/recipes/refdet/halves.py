"""How an episode is cut where it does not fit into the device's memory.

Its scenes are divided. Every piece keeps all reference photos: each scene is scored against every
object, and the contrastive term compares the objects with one another. So an episode of one scene
with many objects, or with many or large photos, cannot be made smaller here.

The terms are means over what a piece has of positive points. Weighed by how many those are, which
the boxes alone tell, they add up to the terms of the whole episode; what differs is what is
computed from the scenes together: BatchNorm's statistics, the running mean of WIoU, and, in an
episode with far more positive points than boxes, which of them are taken for the box terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from surefoot.guard.halves import Halves
from surefoot.guard.out_of_memory import Halved
from surefoot.guard.splits import Piece
from surefoot.models import AssignConfig, anchor_points, assign
from surefoot.recipes.refdet.criterion import absent_pairs
from surefoot.recipes.refdet.learner import Learner
from surefoot.shapes import Episode

__all__ = ["EpisodeSplit", "halves_of"]


def halves_of(learner: Learner, on_halved: Callable[[Halved], object]) -> Halves:
    """What cuts the episodes of a run."""
    levels, config = learner.model.config.backbone.strides, learner.criterion.config
    split = EpisodeSplit(levels, config.assign)
    return Halves(learner.guarded, split=split, on_halved=on_halved)


class EpisodeSplit:
    """Cuts an episode's scenes in two.

    Args:
        strides: of the model's levels, in pixels.
        config: which anchor points are positive.
    """

    def __init__(self, strides: Sequence[int], config: AssignConfig) -> None:
        self._strides, self._config = tuple(strides), config

    def __call__(self, episode: Episode) -> Sequence[Piece]:
        """Two pieces, or none of an episode with one scene."""
        count = len(episode.images)
        if count < 2:
            return []
        middle = (count + 1) // 2
        halves = [_scenes(episode, 0, middle), _scenes(episode, middle, count)]
        counts = [self._counts(half) for half in halves]
        whole = [sum(one) for one in zip(*counts, strict=True)]
        return [
            Piece(half, len(half.images), _weights(own, whole))
            for half, own in zip(halves, counts, strict=True)
        ]

    def _counts(self, episode: Episode) -> list[int]:
        """Positive points: of some object, of an object that is asked for, of any box; and pairs of
        an image and an object that is not in it.
        """
        height, width = episode.images.shape[-2:]
        sizes = {stride: (height // stride, width // stride) for stride in self._strides}
        points, strides = anchor_points(sizes, episode.images.device)
        found = assign(episode, points, strides, self._config)
        masks = [found.object_positive, found.positive, found.box >= 0, absent_pairs(episode)]
        return [int(count) for count in torch.stack([mask.sum() for mask in masks]).tolist()]


def _weights(own: Sequence[int], whole: Sequence[int]) -> dict[str, float]:
    """Of each term; the sums over all points are divided by their number, or by 1."""
    _, of_pairs, on_boxes, absent = (
        mine / every if every else 0.5 for mine, every in zip(own, whole, strict=True)
    )
    return {
        "bbox": on_boxes,
        "cls": max(own[1], 1) / max(whole[1], 1),
        "dfl": on_boxes,
        "supcon": of_pairs,
        "obj": max(own[0], 1) / max(whole[0], 1),
        "absence": absent,
        # Of what is compared within a piece alone: near, not the same.
        "cpe": on_boxes,
        "triplet": on_boxes,
    }


def _scenes(episode: Episode, start: int, stop: int) -> Episode:
    mine: Tensor = (episode.box_image >= start) & (episode.box_image < stop)
    return replace(
        episode,
        images=episode.images[start:stop],
        sample_ids=episode.sample_ids[start:stop],
        boxes=episode.boxes[mine],
        box_image=episode.box_image[mine] - start,
        box_object=episode.box_object[mine],
        ignore=episode.ignore[mine],
    )
