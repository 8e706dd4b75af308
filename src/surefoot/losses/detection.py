"""What a detector of fixed classes is trained on: overlap, class and distribution of box sides."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from surefoot.errors import ConfigError
from surefoot.losses.boxes import IoUKind, WiseIoU, iou_loss
from surefoot.losses.distribution import distribution_focal_loss
from surefoot.shapes import LossTerms

__all__ = ["AssignedPoints", "DetectionLoss", "DetectionLossConfig"]

_Overlap = Literal[IoUKind, "wiou"]


class AssignedPoints(Protocol):
    """The P positive points of a batch: what :class:`DetectionLoss` reads of an assignment."""

    @property
    def image(self) -> Tensor:
        """P, int64."""
        ...

    @property
    def point(self) -> Tensor:
        """P, int64: which of the A anchor points."""
        ...

    @property
    def label(self) -> Tensor:
        """P, int64: which of the N classes it is to say."""
        ...

    @property
    def score(self) -> Tensor:
        """P, in [0, 1]: with which probability."""
        ...

    @property
    def boxes(self) -> Tensor:
        """P 4, x1 y1 x2 y2 in pixels: what the point says."""
        ...

    @property
    def truth(self) -> Tensor:
        """P 4, x1 y1 x2 y2 in pixels."""
        ...

    @property
    def distribution(self) -> Tensor:
        """P 4 R, logits over each side's distance."""
        ...

    @property
    def distances(self) -> Tensor:
        """P 4, in strides: the truth."""
        ...


@dataclass(frozen=True, kw_only=True)
class DetectionLossConfig:
    """Weights of the terms, and which overlap; the weights are those that YOLOv8 trains with."""

    bbox_weight: float = 7.5
    """Overlap of the box with the true one, over positive points."""
    cls_weight: float = 0.5
    """Cross-entropy of every (anchor point, class) pair."""
    dfl_weight: float = 1.5
    """Distribution focal loss of the box sides, over positive points."""
    bbox_loss: _Overlap = "ciou"
    """Overlap measure of the bbox term; wiou is WIoU v3."""

    def __post_init__(self) -> None:
        for name in ("bbox", "cls", "dfl"):
            value = getattr(self, f"{name}_weight")
            if not 0 <= value < math.inf:
                raise ConfigError(
                    f"DetectionLossConfig: {name}_weight {value}; a weight is finite and at "
                    "least 0."
                )
        kinds = (*get_args(IoUKind), "wiou")
        if self.bbox_loss not in kinds:
            raise ConfigError(
                f"DetectionLossConfig: bbox_loss {self.bbox_loss!r}; expected one of "
                f"{', '.join(kinds)}."
            )


class DetectionLoss(nn.Module):
    """Loss of a standard head against task-aligned soft targets, in float32.

    With the soft targets q of the positive points, of sum Q (read as at least 1):

    - ``bbox``: sum of q x overlap loss, by Q; near 1 where boxes hardly overlap.
    - ``cls``: binary cross-entropy of all B A N logits against q, summed, by Q. At the prior it is
      small for what is background and -ln(prior), about 10, for what is not.
    - ``dfl``: sum of q x distribution focal loss, by Q; ln R = 2.77 at random initialisation.

    Images without boxes push every score down; where no image has one, ``bbox`` = ``dfl`` = 0, with
    graph. The running mean of WIoU is a buffer: save the loss with the model.

    Sources: Feng et al. 2021 (TOOD), arXiv:2108.07755; Li et al. 2020, arXiv:2006.04388; overlap
    losses as in :func:`iou_loss` and :class:`WiseIoU`.

    >>> from types import SimpleNamespace
    >>> box, at = torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.tensor([0])
    >>> found = SimpleNamespace(
    ...     image=at, point=at, label=at, score=torch.tensor([0.8]), boxes=box, truth=box,
    ...     distribution=torch.zeros(1, 4, 16), distances=torch.full((1, 4), 0.5))
    >>> terms = DetectionLoss()(torch.zeros(1, 1, 2), found)
    >>> {name: round(float(value), 3) for name, value in terms.values.items()}
    {'bbox': 0.0, 'cls': 1.386, 'dfl': 2.218}
    """

    def __init__(self, config: DetectionLossConfig | None = None) -> None:
        super().__init__()
        self.config = config or DetectionLossConfig()
        self.wise_iou = WiseIoU() if self.config.bbox_loss == "wiou" else None

    def forward(self, logits: Tensor, found: AssignedPoints) -> LossTerms:
        """The terms, with the weights of the configuration.

        Args:
            logits: B A N, of every anchor point.
            found: the positive ones.
        """
        config = self.config
        with torch.autocast(logits.device.type, enabled=False):
            q = found.score.detach().float()
            total = q.sum().clamp(min=1)
            dfl = distribution_focal_loss(found.distribution, found.distances)
            values = {
                "bbox": (self._overlap(found) * q).sum() / total,
                "cls": _cross_entropy(logits, found, q) / total,
                "dfl": (dfl * q).sum() / total,
            }
        return LossTerms(values, {name: getattr(config, f"{name}_weight") for name in values})

    def _overlap(self, found: AssignedPoints) -> Tensor:
        if self.wise_iou is not None:
            return self.wise_iou(found.boxes, found.truth)
        kind = self.config.bbox_loss
        assert kind != "wiou"
        return iou_loss(found.boxes, found.truth, kind)


def _cross_entropy(logits: Tensor, found: AssignedPoints, q: Tensor) -> Tensor:
    """Sum over all pairs of softplus(x) - q x: next to no pair has a q, so none is written out."""
    asked = logits[found.image, found.point, found.label].float()
    return F.softplus(logits.float()).sum() - (asked * q).sum()
