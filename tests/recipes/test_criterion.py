"""RefDet's criterion: what it trains, and that a detector trained on it finds its objects."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from surefoot.errors import ConfigError
from surefoot.models import (
    BackboneSupportConfig,
    Detections,
    RefDet,
    RefDetConfig,
    YoloV8Config,
    assign,
    best_boxes,
    detections,
)
from surefoot.recipes.refdet.criterion import RefDetCriterion, RefDetLossConfig
from surefoot.shapes import DetectionPrediction, Episode, LossTerms

COLOURS = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.2, 0.9], [0.9, 0.8, 0.1]])


def paint(image: Tensor, which: int, box: tuple[int, int, int, int]) -> None:
    """Draws object ``which`` into ``image``: a plain, a striped, a chequered rectangle."""
    x1, y1, x2, y2 = box
    y, x = torch.meshgrid(torch.arange(y1, y2), torch.arange(x1, x2), indexing="ij")
    dark = [torch.zeros_like(x), x // 3 % 2, (x // 4 + y // 4) % 2][which]
    image[:, y1:y2, x1:x2] = COLOURS[which][:, None, None] * (1 - 0.7 * dark)


def two_images() -> Episode:
    """Three objects; the first image shows objects 0 and 1, the second 1 and 2."""
    random = torch.Generator().manual_seed(3)
    images = 0.4 + 0.1 * torch.rand(2, 3, 64, 64, generator=random)
    supports = 0.5 + 0.1 * torch.rand(3, 2, 3, 32, 32, generator=random)
    rows = [
        (0, 0, (6, 8, 26, 24)),
        (0, 1, (34, 30, 58, 56)),
        (1, 1, (4, 36, 28, 58)),
        (1, 2, (32, 6, 56, 26)),
    ]
    for image, which, box in rows:
        paint(images[image], which, box)
    for which in range(3):
        paint(supports[which, 0], which, (4, 6, 28, 27))
        paint(supports[which, 1], which, (6, 3, 29, 28))
    return Episode(
        images=images,
        sample_ids=("first", "second"),
        supports=supports,
        boxes=torch.tensor([box for _, _, box in rows], dtype=torch.float32),
        box_image=torch.tensor([image for image, _, _ in rows]),
        box_object=torch.tensor([which for _, which, _ in rows]),
        ignore=torch.zeros(4, dtype=torch.bool),
    )


def without_boxes(episode: Episode) -> Episode:
    none = torch.zeros(0, dtype=torch.int64)
    return replace(
        episode,
        boxes=torch.zeros(0, 4),
        box_image=none,
        box_object=none,
        ignore=none.bool(),
    )


def small() -> RefDet:
    backbone = YoloV8Config(channels=(8, 16, 24, 24), depths=(1, 1, 1), sppf=False, strides=(8,))
    support = BackboneSupportConfig(stride=8)
    return RefDet(RefDetConfig(backbone=backbone, support=support, embedding=24))


def backward(
    model: RefDet, episode: Episode, config: RefDetLossConfig | None = None
) -> tuple[DetectionPrediction, LossTerms]:
    prediction = model(episode.images, episode.supports)
    terms = RefDetCriterion(config)(prediction, episode)
    terms.total.backward()
    return prediction, terms


@functools.cache
@torch.enable_grad()
def overfitted() -> RefDet:
    """A model that has seen the two images 110 times, ready to be asked."""
    torch.manual_seed(0)
    model, criterion, episode = small(), RefDetCriterion(), two_images()
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 110)
    for _ in range(110):
        criterion(model(episode.images, episode.supports), episode).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    with torch.no_grad():
        for _ in range(80):  # BatchNorm's running statistics arrive where the weights are
            model(episode.images, episode.supports)
    return model.eval()


def iou(a: Tensor, b: Tensor) -> float:
    low, high = torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])
    common = (high - low).clamp(min=0).prod()
    return float(common / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common))


def average_precision(found: list[Detections], episode: Episode, which: int) -> float:
    """AP at IoU 0.5 of one object: detections of all images by score, each box matched once."""
    truth = {
        i: [b for b, at, o in zip(*boxes_of(episode), strict=True) if at == i and o == which]
        for i in range(len(found))
    }
    claims = sorted(
        (
            (float(score), i, box)
            for i, image in enumerate(found)
            for score, box, o in zip(image.scores, image.boxes, image.objects, strict=True)
            if o == which
        ),
        key=lambda claim: -claim[0],
    )
    total, hits, area = sum(map(len, truth.values())), 0, 0.0
    for rank, (_, i, box) in enumerate(claims, 1):
        matched = [k for k, true in enumerate(truth[i]) if iou(box, true) >= 0.5]
        if matched:
            truth[i].pop(matched[0])
            hits += 1
            area += hits / rank / total
    return area


def boxes_of(episode: Episode) -> tuple[list[Tensor], list[int], list[int]]:
    return list(episode.boxes), episode.box_image.tolist(), episode.box_object.tolist()


@torch.no_grad()
def test_two_images_are_overfitted() -> None:
    episode = two_images()
    found = detections(overfitted()(episode.images, episode.supports))
    precisions = [average_precision(found, episode, which) for which in range(3)]
    assert sum(precisions) / 3 > 0.9, precisions


@torch.no_grad()
def test_another_objects_photos_lower_the_score_where_the_object_is() -> None:
    episode, model = two_images(), overfitted()
    _, right = best_boxes(model(episode.images, episode.supports))
    swapped = episode.supports.clone()
    swapped[0] = episode.supports[2]  # object 2 is not in the first image
    _, wrong = best_boxes(model(episode.images, swapped))
    assert right[0, 0] > 0.5
    assert wrong[0, 0] < 0.2
    torch.testing.assert_close(wrong[:, 1:], right[:, 1:])


@torch.no_grad()
def test_an_absent_object_scores_low_and_empty_ground_lower() -> None:
    episode, model = two_images(), overfitted()
    _, scores = best_boxes(model(episode.images, episode.supports))
    present = torch.tensor([[True, True, False], [False, True, True]])
    assert scores[present].min() > 2 * scores[~present].max()
    random = torch.Generator().manual_seed(9)
    ground = 0.4 + 0.1 * torch.rand(1, 3, 64, 64, generator=random)
    _, nowhere = best_boxes(model(ground, episode.supports))
    assert nowhere.max() < 0.1


def test_the_terms_are_the_promised_ones_with_the_configured_weights() -> None:
    config = RefDetLossConfig(
        bbox_weight=7.5, cls_weight=0.5, dfl_weight=1.5, supcon_weight=1.2, obj_weight=0.3
    )
    _, terms = backward(small(), two_images(), config)
    assert terms.names == ("bbox", "cls", "dfl", "supcon", "obj")
    assert terms.weights == {"bbox": 7.5, "cls": 0.5, "dfl": 1.5, "supcon": 1.2, "obj": 0.3}
    assert all(value.isfinite() and value > 0 for value in terms.values.values())


def test_absence_is_the_surest_mistake_about_each_object_that_is_not_there() -> None:
    model, episode = small(), two_images()
    config = RefDetLossConfig(absence_weight=1.0)
    prediction, terms = backward(model, episode, config)
    best = prediction.logits.detach().double().amax(1)
    # The first image lacks object 2, the second object 0.
    said = -sum(torch.log(1 - best[i, n].sigmoid()) for i, n in ((0, 2), (1, 0))) / 2
    torch.testing.assert_close(terms.values["absence"].detach().double(), said)
    everywhere = replace(
        episode,
        boxes=episode.boxes[:1].expand(6, 4),
        box_image=torch.tensor([0, 0, 0, 1, 1, 1]),
        box_object=torch.tensor([0, 1, 2, 0, 1, 2]),
        ignore=torch.tensor([False, False, True, False, False, False]),
    )
    assert float(backward(model, everywhere, config)[1].values["absence"].detach()) == 0.0


def test_values_at_random_initialisation_are_the_documented_ones() -> None:
    model, episode = small(), two_images()
    prediction, terms = backward(model, episode)
    assert float(terms.values["dfl"].detach()) == pytest.approx(2.7726, abs=0.2)
    assert 0.8 < terms.values["bbox"] < 1.2
    one = torch.ones(24) / 24**0.5
    alike = replace(
        prediction,
        embeddings=one.expand_as(prediction.embeddings),
        prototypes=one.expand_as(prediction.prototypes),
        shots=one.expand_as(prediction.shots),
    )
    # ln 3 for points over prototypes and over photos, and half of it for photos over photos.
    supcon = float(RefDetCriterion()(alike, episode).values["supcon"])
    assert supcon == pytest.approx(2.5 * 1.0986, rel=1e-3)


def test_one_backward_reaches_every_parameter() -> None:
    model, episode = small(), two_images()
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    backward(model, episode)
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    optimizer.step()  # the conditioning starts as the identity: its keys count once it has moved
    optimizer.zero_grad()
    backward(model, episode)
    still = [name for name, p in model.named_parameters() if not p.grad.abs().sum() > 0]
    assert still == []


def test_an_episode_without_boxes_trains_the_background_alone() -> None:
    model, episode = small(), without_boxes(two_images())
    prediction, terms = backward(model, episode)
    for name in ("bbox", "dfl"):
        assert terms.values[name] == 0
        assert terms.values[name].requires_grad
    gradients = [p.grad for p in model.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert prediction.logits.shape[1] == 64
    assert terms.values["cls"] > 0


def test_every_background_point_is_pushed_down_and_positives_up() -> None:
    episode, model = two_images(), small()
    prediction = model(episode.images, episode.supports)
    logits = prediction.logits.detach().requires_grad_()
    objectness = prediction.objectness.detach().requires_grad_()
    prediction = replace(prediction, logits=logits, objectness=objectness)
    terms = RefDetCriterion()(prediction, episode)
    (terms.values["cls"] + terms.values["obj"]).backward()
    told = assign(episode, prediction.anchor_points, prediction.strides)
    for gradient, positive, ignored in (
        (logits.grad, told.positive, told.ignored),
        (objectness.grad, told.object_positive, told.object_ignored),
    ):
        assert (gradient[positive] < 0).all()
        assert (gradient[ignored] == 0).all()
        assert ignored.any()
        background = ~positive & ~ignored
        assert (gradient[background] > 0).all()
        assert background.float().mean() > 0.7


def test_an_object_that_hardly_shows_changes_nothing() -> None:
    episode = two_images()
    hidden = replace(episode, ignore=torch.tensor([False, False, False, True]))
    seen = replace(
        episode,
        boxes=episode.boxes[:3],
        box_image=episode.box_image[:3],
        box_object=episode.box_object[:3],
        ignore=episode.ignore[:3],
    )
    prediction = small()(episode.images, episode.supports)
    prediction = replace(prediction, logits=prediction.logits + 8)  # as if much were found
    with_it, without_it = (RefDetCriterion()(prediction, e).values for e in (hidden, seen))
    for name in ("bbox", "dfl", "supcon"):
        torch.testing.assert_close(with_it[name], without_it[name])
    assert with_it["cls"] < without_it["cls"]


def test_an_object_nobody_asks_for_trains_its_box_but_no_match() -> None:
    episode = two_images()
    unasked = replace(episode, box_object=torch.full((4,), -1))
    prediction = small()(episode.images, episode.supports)
    terms, full = (RefDetCriterion()(prediction, e).values for e in (unasked, episode))
    torch.testing.assert_close(terms["bbox"], full["bbox"])
    torch.testing.assert_close(terms["obj"], full["obj"])
    alone = RefDetCriterion()(prediction, without_boxes(episode)).values
    torch.testing.assert_close(terms["supcon"], alone["supcon"])


def test_terms_are_means_over_positive_points_however_many_there_are() -> None:
    episode = two_images()
    episode = replace(episode, boxes=torch.tensor([[0.0, 0, 64, 64]] * 4))
    model = small()
    prediction = model(episode.images, episode.supports)
    one = replace(
        episode,
        boxes=episode.boxes[:1],
        box_image=episode.box_image[:1],
        box_object=episode.box_object[:1],
        ignore=episode.ignore[:1],
    )
    twice = replace(
        one,
        images=one.images[:1],
        boxes=one.boxes.repeat(3, 1),
        box_image=one.box_image.repeat(3),
        box_object=one.box_object.repeat(3),
        ignore=one.ignore.repeat(3),
    )
    first = replace(
        prediction,
        **{
            name: getattr(prediction, name)[:1]
            for name in ("logits", "objectness", "distribution", "embeddings")
        },
    )
    a = RefDetCriterion()(prediction, one).values
    b = RefDetCriterion()(first, twice).values
    for name in ("bbox", "dfl", "supcon"):
        torch.testing.assert_close(a[name], b[name])


@pytest.mark.parametrize("kind", ["diou", "wiou"])
def test_nothing_is_read_back_to_the_host(kind: str) -> None:
    """Tensors without data: whatever asks for a value raises."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        model, criterion = small(), RefDetCriterion(RefDetLossConfig(bbox_loss=kind))
        episode = Episode(
            images=torch.rand(2, 3, 64, 64),
            sample_ids=("a", "b"),
            supports=torch.rand(3, 2, 3, 32, 32),
            boxes=torch.rand(4, 4),
            box_image=torch.zeros(4, dtype=torch.int64),
            box_object=torch.zeros(4, dtype=torch.int64),
            ignore=torch.zeros(4, dtype=torch.bool),
        )
        with pytest.raises(DataDependentOutputException):
            episode.boxes.sum().item()
        terms = criterion(model(episode.images, episode.supports), episode)
        terms.total.backward()
        assert terms.total.shape == ()


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou", "wiou"])
def test_every_overlap_loss_trains_the_boxes(kind: str) -> None:
    model, episode = small(), two_images()
    _, terms = backward(model, episode, RefDetLossConfig(bbox_loss=kind, dfl_weight=0.0))
    assert terms.values["bbox"] > 0
    gradient = model.head.box[0][-1].weight.grad[:64]
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_the_running_mean_of_wiou_moves_with_positive_points_only() -> None:
    criterion, episode = RefDetCriterion(RefDetLossConfig(bbox_loss="wiou")), two_images()
    prediction = small()(episode.images, episode.supports)
    for nothing in (without_boxes(episode), replace(episode, ignore=torch.ones(4).bool())):
        criterion(prediction, nothing)
        assert criterion.wise_iou.mean_loss == 1.0
    criterion(prediction, episode)
    assert criterion.wise_iou.mean_loss < 1.0


def test_under_autocast_the_loss_is_float32_and_the_same() -> None:
    model, episode = small(), two_images()
    prediction = model(episode.images, episode.supports)
    expected = RefDetCriterion()(prediction, episode)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        given = RefDetCriterion()(prediction, episode)
    for name, value in given.values.items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected.values[name])


def test_one_photo_of_one_object_is_enough() -> None:
    episode = two_images()
    alone = replace(episode, supports=episode.supports[:1, :1], box_object=torch.zeros(4).long())
    _, terms = backward(small(), alone)
    assert terms.total.isfinite()
    assert terms.values["supcon"] == 0  # one object cannot be taken for another


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bbox_weight": -1.0}, "bbox_weight -1.0; a weight is finite"),
        ({"cls_weight": float("nan")}, "cls_weight nan"),
        ({"temperature": 0.0}, "temperature 0.0 is not above 0"),
    ],
)
def test_impossible_settings_are_refused(change: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RefDetLossConfig(**change)
