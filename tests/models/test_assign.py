"""Which anchor points answer for which box; the rule once more, slow and obvious."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from surefoot.errors import ConfigError
from surefoot.models import AssignConfig, anchor_points, assign
from surefoot.shapes import Episode

LEVELS = {4: (16, 16), 8: (8, 8), 16: (4, 4)}


def an_episode(rows: list[tuple], images: int = 1, objects: int = 2) -> Episode:
    """Rows of (image, object, ignore, box)."""
    return Episode(
        images=torch.zeros(images, 3, 64, 64),
        sample_ids=tuple(map(str, range(images))),
        supports=torch.zeros(objects, 1, 3, 8, 8),
        boxes=torch.tensor([r[3] for r in rows], dtype=torch.float32).view(-1, 4),
        box_image=torch.tensor([r[0] for r in rows], dtype=torch.int64),
        box_object=torch.tensor([r[1] for r in rows], dtype=torch.int64),
        ignore=torch.tensor([r[2] for r in rows], dtype=torch.bool),
    )


def level_of(box: list[float], strides: list[float], reach: float) -> float:
    size = ((box[2] - box[0]) * (box[3] - box[1])) ** 0.5
    fitting = [s for s in strides if size <= reach * s]
    return min(fitting) if fitting else max(strides)


def slow_assign(
    episode: Episode, points: Tensor, strides: Tensor, config: AssignConfig
) -> dict[str, list]:
    """Loops over everything; what each point is told by each box, then who wins."""
    images, objects, anchors = len(episode.images), len(episode.supports), len(points)
    levels = sorted(set(strides.tolist()))
    boxes = episode.boxes.tolist()
    owner = [[-1] * anchors for _ in range(images)]
    ring = [[set() for _ in range(anchors)] for _ in range(images)]
    unsure = [[False] * anchors for _ in range(images)]
    for a in range(anchors):
        (x, y), stride = points[a].tolist(), float(strides[a])
        for m, box in enumerate(boxes):
            image, ignore = int(episode.box_image[m]), bool(episode.ignore[m])
            off = (abs(x - (box[0] + box[2]) / 2), abs(y - (box[1] + box[3]) / 2))
            sides = (box[2] - box[0], box[3] - box[1])
            radius = [max(config.radius * side, config.least_cells * stride) for side in sides]
            inside = all(o <= r for o, r in zip(off, radius, strict=True))
            in_ring = all(o <= config.ring * r for o, r in zip(off, radius, strict=True))
            if ignore:
                unsure[image][a] = unsure[image][a] or in_ring
            elif stride == level_of(box, levels, config.reach):
                if in_ring:
                    ring[image][a].add(int(episode.box_object[m]))
                best = owner[image][a]
                area = sides[0] * sides[1]
                if inside and (
                    best < 0
                    or area < (boxes[best][2] - boxes[best][0]) * (boxes[best][3] - boxes[best][1])
                ):
                    owner[image][a] = m
    told: dict[str, list] = {"box": owner, "positive": [], "ignored": []}
    told["object_positive"] = [[m >= 0 for m in row] for row in owner]
    told["object_ignored"] = [
        [owner[i][a] < 0 and (bool(ring[i][a]) or unsure[i][a]) for a in range(anchors)]
        for i in range(images)
    ]
    for i in range(images):
        rows_p, rows_i = [], []
        for a in range(anchors):
            m = owner[i][a]
            mine = [m >= 0 and int(episode.box_object[m]) == n for n in range(objects)]
            rows_p.append(mine)
            rows_i.append(
                [(n in ring[i][a] or unsure[i][a]) and not mine[n] for n in range(objects)]
            )
        told["positive"].append(rows_p)
        told["ignored"].append(rows_i)
    return told


@st.composite
def episodes(draw: st.DrawFn) -> Episode:
    images, objects = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rows = []
    for _ in range(draw(st.integers(0, 6))):
        x, y = draw(st.integers(-80, 560)) / 8 + 1 / 64, draw(st.integers(0, 480)) / 8 + 1 / 64
        w, h = draw(st.integers(2, 700)) / 8, draw(st.integers(2, 700)) / 8
        rows.append(
            (
                draw(st.integers(0, images - 1)),
                draw(st.integers(-1, objects - 1)),
                draw(st.integers(0, 3)) == 0,
                (x, y, x + w, y + h),
            )
        )
    return an_episode(rows, images, objects)


@settings(max_examples=60)
@given(episodes(), st.sampled_from([1.0, 1.6, 2.0]), st.sampled_from([0.5, 0.71, 1.2]))
def test_it_equals_its_slow_twin(episode: Episode, ring: float, least: float) -> None:
    config = AssignConfig(ring=ring, least_cells=least, radius=0.2203, reach=7.9)
    points, strides = anchor_points(LEVELS)
    given_ = assign(episode, points, strides, config)
    for name, expected in slow_assign(episode, points, strides, config).items():
        assert getattr(given_, name).tolist() == expected, name
    assert not (given_.positive & given_.ignored).any()
    assert given_.positive.sum(-1).max() <= 1


def test_no_box_at_all_is_background_everywhere() -> None:
    given_ = assign(an_episode([], images=2), *anchor_points(LEVELS))
    assert given_.box.tolist() == [[-1] * 336] * 2
    for mask in (given_.positive, given_.ignored, given_.object_positive, given_.object_ignored):
        assert not mask.any()


@pytest.mark.parametrize(
    ("side", "stride"), [(6, 4), (31, 4), (33, 8), (63, 8), (65, 16), (640, 16)]
)
def test_a_box_belongs_to_the_level_of_its_size(side: float, stride: int) -> None:
    points, strides = anchor_points({4: (64, 64), 8: (32, 32), 16: (16, 16)})
    low, high = 128 - side / 2, 128 + side / 2
    given_ = assign(an_episode([(0, 0, False, (low, low, high, high))]), points, strides)
    assert set(strides[given_.box[0] == 0].tolist()) == {stride}


def test_the_smaller_box_has_the_point_that_two_claim_and_the_larger_ignores_it() -> None:
    rows = [(0, 0, False, (8, 8, 56, 56)), (0, 1, False, (26, 26, 40, 40))]
    points, strides = anchor_points({8: (8, 8)})
    given_ = assign(an_episode(rows), points, strides)
    centre = 4 * 8 + 4  # (36, 36): in the centre of both
    assert given_.box[0, centre] == 1
    assert given_.positive[0, centre].tolist() == [False, True]
    assert given_.ignored[0, centre].tolist() == [True, False]


def test_an_object_nobody_asks_for_is_an_object_and_negative_for_all() -> None:
    given_ = assign(an_episode([(0, -1, False, (26, 26, 40, 40))]), *anchor_points({8: (8, 8)}))
    assert given_.object_positive.sum() > 0
    assert not given_.positive.any()
    assert not given_.ignored.any()


def test_a_box_that_hardly_shows_is_left_out_of_every_map() -> None:
    given_ = assign(an_episode([(0, 0, True, (26, 26, 40, 40))]), *anchor_points({8: (8, 8)}))
    assert not given_.object_positive.any()
    assert given_.object_ignored.sum() > 0
    assert torch.equal(given_.ignored[..., 0], given_.object_ignored)
    assert torch.equal(given_.ignored[..., 1], given_.object_ignored)


@given(st.integers(0, 10_000), st.integers(0, 512), st.integers(0, 512))
@settings(max_examples=40)
def test_every_box_with_its_centre_in_the_image_has_a_point(seed: int, x: int, y: int) -> None:
    w, h = (torch.rand(2, generator=torch.Generator().manual_seed(seed)) * 500 + 1).tolist()
    row = (0, 0, False, (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
    points, strides = anchor_points({8: (64, 64), 16: (32, 32)})
    given_ = assign(an_episode([row]), points, strides)
    assert given_.positive.sum() >= 1


@pytest.mark.parametrize("change", [{"radius": 0}, {"least_cells": 0.4}, {"ring": 0.9}])
def test_a_region_that_may_hold_no_point_is_refused(change: dict) -> None:
    with pytest.raises(ConfigError, match="may have no anchor point"):
        AssignConfig(**change)
