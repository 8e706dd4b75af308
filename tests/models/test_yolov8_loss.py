"""The standard head's loss: Ultralytics' own numbers and gradients, and what holds beside them."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from surefoot.data.detection import DetectionItem, collate_detection
from surefoot.errors import ConfigError
from surefoot.losses.detection import DetectionLoss, DetectionLossConfig
from surefoot.models import anchor_points
from surefoot.models.task_aligned import PositivePoints, positive_points, task_aligned
from surefoot.models.yolov8 import StandardPrediction, YoloV8Detector
from surefoot.shapes import LossTerms

SIZES = {8: (12, 16), 16: (6, 8), 32: (3, 4)}
HEIGHT, WIDTH = 96, 128
CLASSES = 5


@dataclass
class Truth:
    boxes: Tensor
    box_image: Tensor
    box_class: Tensor


def a_truth(seed: int, images: int = 4, count: int = 14) -> Truth:
    """Boxes of 20 to 80 pixels, so that no side is out of a distribution's reach; the last image
    has none.
    """
    random = torch.Generator().manual_seed(seed)
    side = torch.rand(count, 2, generator=random) * 60 + 20
    low = torch.rand(count, 2, generator=random) * (torch.tensor([WIDTH, HEIGHT]) - side)
    return Truth(
        torch.cat((low, low + side), dim=1),
        torch.randint(0, images - 1, (count,), generator=random).sort().values,
        torch.randint(0, CLASSES, (count,), generator=random),
    )


def raw_outputs(seed: int, images: int = 4) -> tuple[Tensor, Tensor]:
    """B 64 A and B N A, as both heads' convolutions give them, one level after the other."""
    random = torch.Generator().manual_seed(seed)
    count = sum(h * w for h, w in SIZES.values())
    sides = torch.randn(images, 64, count, generator=random)
    scores = torch.randn(images, CLASSES, count, generator=random) * 2 - 3
    return sides.requires_grad_(), scores.requires_grad_()


def ours(
    sides: Tensor, scores: Tensor, truth: Truth, loss: DetectionLoss | None = None
) -> tuple[LossTerms, PositivePoints]:
    points, strides = anchor_points(SIZES)
    prediction = StandardPrediction(
        logits=scores.transpose(1, 2),
        distribution=sides.unflatten(1, (4, 16)).permute(0, 3, 1, 2),
        anchor_points=points,
        strides=strides,
    )
    found = positive_points(prediction, truth, task_aligned(prediction, truth))
    return (loss or DetectionLoss())(prediction.logits, found), found


@pytest.fixture(scope="module")
def original_loss():
    """Ultralytics' loss as a function of the raw outputs: its sum, and its three parts."""
    tasks = pytest.importorskip("ultralytics.nn.tasks", reason="Ultralytics is not installed")
    from ultralytics.utils.loss import v8DetectionLoss

    model = tasks.DetectionModel("yolov8n.yaml", nc=CLASSES, verbose=False)
    model.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    criterion = v8DetectionLoss(model)

    def loss(sides: Tensor, scores: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
        maps = [torch.zeros(len(sides), 1, h, w) for h, w in SIZES.values()]
        low, high = truth.boxes.split(2, dim=1)
        whole = torch.tensor([WIDTH, HEIGHT])
        batch = {
            "batch_idx": truth.box_image.float(),
            "cls": truth.box_class.float()[:, None],
            "bboxes": torch.cat(((low + high) / 2 / whole, (high - low) / whole), dim=1),
        }
        total, parts = criterion({"boxes": sides, "scores": scores, "feats": maps}, batch)
        if isinstance(parts, dict):  # a tensor of the three in older versions
            parts = torch.stack([parts[name] for name in ("box_loss", "cls_loss", "dfl_loss")])
        return total.sum() / len(sides), parts

    return loss


@pytest.mark.parametrize("seed", range(6))
def test_parts_and_gradients_equal_the_originals(original_loss, seed: int) -> None:
    truth, (sides, scores) = a_truth(seed), raw_outputs(seed)
    terms, found = ours(sides, scores, truth)
    assert len(found.point) > 20
    total, parts = original_loss(sides, scores, truth)
    values = [terms.weight(n) * terms.values[n] for n in ("bbox", "cls", "dfl")]
    torch.testing.assert_close(torch.stack(values), parts, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(terms.total, total, atol=1e-4, rtol=1e-5)
    for name, leaf in (("sides", sides), ("scores", scores)):
        mine, theirs = (
            torch.autograd.grad(t, leaf, retain_graph=True)[0] for t in (terms.total, total)
        )
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-4, msg=name)


def test_a_batch_without_boxes_equals_the_originals(original_loss) -> None:
    truth, (sides, scores) = a_truth(0, count=0), raw_outputs(0)
    terms, _ = ours(sides, scores, truth)
    _, parts = original_loss(sides, scores, truth)
    values = [terms.weight(n) * terms.values[n] for n in ("bbox", "cls", "dfl")]
    torch.testing.assert_close(torch.stack(values), parts, atol=1e-4, rtol=1e-5)
    assert values[0] == values[2] == 0
    terms.total.backward()
    assert (scores.grad > 0).all()
    assert not sides.grad.any()


@pytest.mark.parametrize("kind", ["iou", "giou", "diou", "ciou", "wiou"])
def test_every_overlap_teaches_only_the_positive_points(kind: str) -> None:
    sides, scores = raw_outputs(1)
    terms, found = ours(
        sides, scores, a_truth(1), DetectionLoss(DetectionLossConfig(bbox_loss=kind))
    )
    terms.values["bbox"].backward()
    touched = sides.grad.abs().sum(1) > 0
    expected = torch.zeros_like(touched)
    expected[found.image, found.point] = found.score > 0
    assert torch.equal(touched, expected)


def test_the_running_mean_of_wiou_is_saved_and_left_alone_by_batches_without_boxes() -> None:
    loss = DetectionLoss(DetectionLossConfig(bbox_loss="wiou"))
    ours(*raw_outputs(2), a_truth(2, count=0), loss)
    assert loss.state_dict()["wise_iou.mean_loss"] == 1
    ours(*raw_outputs(2), a_truth(2), loss)
    assert loss.state_dict()["wise_iou.mean_loss"] != 1


def test_half_precision_outputs_are_judged_in_float32() -> None:
    sides, scores = (t.detach().bfloat16() for t in raw_outputs(3))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms, _ = ours(sides, scores, a_truth(3))
    expected, _ = ours(sides.float(), scores.float(), a_truth(3))
    for name, value in terms.values.items():
        assert value.dtype == torch.float32
        assert value == expected.values[name]


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_absurd_outputs_have_a_finite_loss_and_gradient(size: float) -> None:
    sides, scores = (t.detach().mul(size).requires_grad_() for t in raw_outputs(4))
    terms, _ = ours(sides, scores, a_truth(4))
    terms.total.backward()
    assert terms.total.isfinite()
    assert sides.grad.isfinite().all()
    assert scores.grad.isfinite().all()


def test_a_score_that_is_not_a_number_shows_in_the_loss() -> None:
    sides, scores = raw_outputs(5)
    scores.data[0, 0, 0] = torch.nan
    assert ours(sides, scores, a_truth(5))[0].values["cls"].isnan()


def test_terms_at_random_initialisation_are_what_the_docstring_says() -> None:
    torch.manual_seed(0)
    detector = YoloV8Detector("n", classes=CLASSES).train()
    prediction = detector(torch.rand(4, 3, HEIGHT, WIDTH))
    truth = a_truth(6)
    found = positive_points(prediction, truth, task_aligned(prediction, truth))
    terms = DetectionLoss()(prediction.logits, found)
    q = found.score.sum().clamp(min=1)
    assert (terms.values["dfl"] / (found.score.sum() / q)).item() == pytest.approx(2.77, rel=0.1)
    assert terms.values["cls"] < 15


def test_a_batch_of_the_data_set_reaches_every_parameter() -> None:
    items = [
        DetectionItem(image=torch.rand(3, 64, 64), boxes=boxes, labels=labels, id=name, index=0)
        for name, boxes, labels in [
            ("two", torch.tensor([[4.0, 4, 40, 40], [20, 30, 60, 62]]), torch.tensor([0, 4])),
            ("none", torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
        ]
    ]
    batch, detector = collate_detection(items), YoloV8Detector("n", classes=CLASSES)
    prediction = detector(batch.images)
    found = positive_points(prediction, batch, task_aligned(prediction, batch))
    assert found.image.unique().tolist() == [0]
    DetectionLoss()(prediction.logits, found).total.backward()
    without = [n for n, p in detector.named_parameters() if p.grad is None or not p.grad.any()]
    # A fresh head's boxes are 15 strides wide: those of the coarser levels miss objects this small.
    assert set(found.point.tolist()) <= set(range(64))
    assert [name for name in without if not name.startswith(("head.box.1.", "head.box.2."))] == []


def test_a_few_steps_learn_two_images() -> None:
    torch.manual_seed(0)
    detector = YoloV8Detector("n", classes=CLASSES)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # two images are no statistics
    optimizer = torch.optim.AdamW(detector.parameters(), lr=2e-3)
    images, truth, loss = torch.rand(2, 3, 64, 64), a_truth(7, images=3, count=4), DetectionLoss()
    truth.boxes = truth.boxes.clamp(max=64)
    totals: list[float] = []
    for _ in range(30):
        prediction = detector(images)
        found = positive_points(prediction, truth, task_aligned(prediction, truth))
        terms = loss(prediction.logits, found)
        terms.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        totals.append(terms.total.item())
    assert totals[-1] < 0.6 * totals[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"bbox_weight": -1}, "bbox_weight -1; a weight is finite"),
        ({"cls_weight": float("nan")}, "cls_weight nan"),
        ({"bbox_loss": "eiou"}, r"bbox_loss 'eiou'; expected one of iou, giou, diou, ciou, wiou"),
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DetectionLossConfig(**change)
