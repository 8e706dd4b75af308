"""Assignment and loss of a standard head, forward and backward, beside Ultralytics' own.

    python -m benchmarks.refdet_step                            # batches of 4 and 16, 640 pixels
    OMP_NUM_THREADS=1 python -m benchmarks.refdet_step --cpu-time --rounds 10
    python -m benchmarks.refdet_step --image 96 --boxes 2 --rounds 2        # does it run

Both begin at what the head's convolutions give, B 64 A and B N A (8400 anchor points at 640
pixels), and end at the gradient with respect to it. The loss is the same number in both, but for
sides beyond the last bin, which Ultralytics learns as 14.99 strides and we as 15. Three kinds of
predictions: of a head that has learnt something, whose boxes lie about the true ones; of a fresh
one, whose boxes are all alike; and noise. The target is half of Ultralytics' time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor

from benchmarks.interleave import (
    Way,
    add_options,
    clocked,
    interleave,
    machine,
    print_table,
    save_rows,
)
from surefoot.losses.detection import DetectionLoss
from surefoot.models import anchor_points
from surefoot.models.task_aligned import positive_points, task_aligned
from surefoot.models.yolov8 import StandardPrediction

__all__ = ["Case", "a_case", "our_loss", "their_loss"]

CLASSES, BINS = 80, 16
RIVAL, OURS = "Ultralytics' v8 loss and assigner", "surefoot"
NOTHING: Callable[[], object] = lambda: None  # noqa: E731
KINDS = ("learnt", "fresh", "noise")


@dataclass(frozen=True)
class Truth:
    """The boxes of a batch."""

    boxes: Tensor
    box_image: Tensor
    box_class: Tensor


@dataclass(frozen=True)
class Case:
    """What the head said of a batch, and what is true."""

    sides: Tensor
    """B 64 A."""
    scores: Tensor
    """B N A."""
    truth: Truth
    sizes: Mapping[int, tuple[int, int]]
    image: int


def a_truth(images: int, boxes: int, image: int) -> Truth:
    """From none to twice ``boxes`` an image, sides log-uniform from 2 to 60 % of the image's."""
    count = torch.randint(0, 2 * boxes + 1, (images,))
    total = int(count.sum())
    side = image * torch.exp(torch.empty(total, 2).uniform_(-3.9, -0.5))
    low = torch.rand(total, 2) * (image - side)
    return Truth(
        boxes=torch.cat((low, low + side), dim=1),
        box_image=torch.arange(images).repeat_interleave(count),
        box_class=torch.randint(0, CLASSES, (total,)),
    )


def a_case(kind: str, batch: int, options: argparse.Namespace) -> Case:
    torch.manual_seed(0)
    image = options.image
    truth = a_truth(batch, options.boxes, image)
    sizes = {stride: (image // stride, image // stride) for stride in (8, 16, 32)}
    points, strides = anchor_points(sizes)
    sides = torch.randn(batch, 4 * BINS, len(points)) * (1.0 if kind == "noise" else 0.1)
    scores = torch.randn(batch, CLASSES, len(points)) - 9
    if kind == "noise":
        scores += 6
    if kind == "learnt":
        _teach(sides, scores, truth, points, strides)
    device = options.device
    moved = Truth(*(t.to(device) for t in (truth.boxes, truth.box_image, truth.box_class)))
    leaves = [t.to(device).requires_grad_() for t in (sides, scores)]
    return Case(*leaves, truth=moved, sizes=sizes, image=image)


def _teach(sides: Tensor, scores: Tensor, truth: Truth, points: Tensor, strides: Tensor) -> None:
    """Let the points inside each box say about that box, and its class."""
    bins = torch.arange(BINS)
    for box, image, label in zip(truth.boxes, truth.box_image, truth.box_class, strict=True):
        away = torch.cat((points - box[:2], box[2:] - points), dim=1) / strides[:, None]
        inside = (away > 0).all(1)
        near = -2 * (away[inside, :, None] * 1.1 - bins).abs()
        sides[image, :, inside] += near.flatten(1).T
        scores[image, label, inside] += 7


def our_loss(case: Case) -> Callable[[], Tensor]:
    loss = DetectionLoss()
    points, strides = anchor_points(dict(case.sizes), case.sides.device)

    def total() -> Tensor:
        prediction = StandardPrediction(
            logits=case.scores.transpose(1, 2),
            distribution=case.sides.unflatten(1, (4, BINS)).permute(0, 3, 1, 2),
            anchor_points=points,
            strides=strides,
        )
        aligned = task_aligned(prediction, case.truth)
        found = positive_points(prediction, case.truth, aligned)
        return loss(prediction.logits, found).total

    return total


def their_loss(case: Case) -> Callable[[], Tensor]:
    from ultralytics.nn.tasks import DetectionModel
    from ultralytics.utils.loss import v8DetectionLoss

    model = DetectionModel("yolov8n.yaml", nc=CLASSES, verbose=False).to(case.sides.device)
    model.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    criterion = v8DetectionLoss(model)
    batch, truth = len(case.sides), case.truth
    low, high = truth.boxes.split(2, dim=1)
    given = {
        "batch_idx": truth.box_image.float(),
        "cls": truth.box_class.float()[:, None],
        "bboxes": torch.cat(((low + high) / 2, high - low), dim=1) / case.image,
    }
    maps = [case.sides.new_zeros(batch, 1, h, w) for h, w in case.sizes.values()]

    def total() -> Tensor:
        said = {"boxes": case.sides, "scores": case.scores, "feats": maps}
        return criterion(said, given)[0].sum() / batch

    return total


def with_backward(loss: Callable[[], Tensor], case: Case) -> Callable[[], object]:
    return lambda: torch.autograd.grad(loss(), [case.sides, case.scores])


def compare(kind: str, batch: int, options: argparse.Namespace) -> None:
    case = a_case(kind, batch, options)
    ours, theirs = our_loss(case), their_loss(case)
    count = len(case.truth.boxes)
    title = f"{kind} head, batch {batch}, {count} boxes, {case.sides.shape[-1]} anchor points"
    ways: dict[str, Way] = {
        name: (NOTHING, with_backward(loss, case)) for name, loss in ((RIVAL, theirs), (OURS, ours))
    }
    rows = interleave(ways, rival=RIVAL, warmup=options.warmup, **clocked(options))
    print_table(title, rows, rival=RIVAL)
    print(f"the loss itself: {ours().item():.4f}, theirs {theirs().item():.4f}")
    save_rows(options.json, title, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--image", type=int, default=640, help="side in pixels")
    parser.add_argument("--boxes", type=int, default=7, help="boxes of an image, on average")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--warmup", type=int, default=3, help="rounds that do not count")
    add_options(parser)
    options = parser.parse_args()
    options.rounds = options.rounds or 30
    print(machine(options.device))
    for batch in options.batch:
        for kind in options.kinds:
            compare(kind, batch, options)


if __name__ == "__main__":
    main()
