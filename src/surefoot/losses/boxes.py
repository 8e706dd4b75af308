"""Overlap losses of boxes: IoU, GIoU, DIoU, CIoU and Wise-IoU.

Boxes are M 4, x1 y1 x2 y2 in pixels (coordinates that are normalised to the image lose precision:
multiply by its size first). Two rules make every finite pair of boxes, up to 1e4 pixels in any
floating dtype, have a finite value and a finite gradient; on ordinary boxes neither shows:

- *Degenerate boxes.* Every side is read 1e-4 pixels longer than it is, which is the resolution of
  float32 at coordinate 1000. So nothing is divided by 0, two boxes that are the same point overlap
  fully, and no gradient is larger than float16 can hold.
- *Inverted boxes*, with x2 < x1 or y2 < y1, are read as evaluation reads them: the inverted side is
  empty, at the middle of its two coordinates. Such a box overlaps with nothing (but for the 1e-4
  pixels), so its loss is at least 1 and never looks good. How far the side is inverted (x1 - x2)
  counts as distance in every loss but plain IoU, so that the gradient turns the box round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from surefoot.errors import ConfigError, UsageError
from surefoot.losses.numerics import fp32_island

__all__ = ["IoUKind", "WiseIoU", "box_iou_aligned", "iou_loss"]

IoUKind = Literal["iou", "giou", "diou", "ciou"]
"""Which loss :func:`iou_loss` computes."""

_PAD = 1e-4
_POINT = 0.1
_LEAST_MEAN = 1e-4


@fp32_island
def box_iou_aligned(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of each box with the one in the same row.

    Args:
        a: M 4, x1 y1 x2 y2 in pixels.
        b: M 4, the same.

    Returns:
        M, float32, in [0, 1]; carries gradient.

    Raises:
        UsageError: the shapes differ or do not end in 4.

    >>> a, b = torch.tensor([[0.0, 0.0, 20.0, 10.0]]), torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    >>> print(f"{box_iou_aligned(a, b).item():.3f}")
    0.500
    """
    return _pair(a, b).iou


@fp32_island
def iou_loss(pred: Tensor, target: Tensor, kind: IoUKind = "ciou") -> Tensor:
    """1 - IoU, and what the kind adds to it so that boxes apart attract each other as well.

    ======  ===========================  ===========  ==========================
    kind    added to 1 - IoU             range        boxes that do not overlap
    ======  ===========================  ===========  ==========================
    iou     nothing                      [0, 1]       1, no gradient
    giou    1 - union / enclosing area   [0, 2]       (1, 2]
    diou    centre distance^2 / c^2      [0, 2]       (1, 2]
    ciou    the same + alpha v           [0, 2.5]     (1, 2.5]
    ======  ===========================  ===========  ==========================

    c is the diagonal of the enclosing box, v = (4 / pi^2) (difference of atan(w / h))^2, and
    alpha = v / (1 - IoU + v) carries no gradient. The slope of v is 1 / side, which would tear the
    smallest boxes apart: alpha fades out for those of less than 0.1 pixels.

    At random initialisation few boxes overlap: the last column is what a run begins with. All kinds
    are symmetric in their arguments.

    Sources: GIoU, Rezatofighi et al. 2019, arXiv:1902.09630; DIoU and CIoU, Zheng et al. 2020,
    arXiv:1911.08287.

    Args:
        pred: M 4, x1 y1 x2 y2 in pixels.
        target: M 4, the same.
        kind: one of the above.

    Returns:
        M, float32.

    Raises:
        UsageError: the shapes differ or do not end in 4, or there is no such kind.

    >>> pred, target = torch.tensor([[0.0, 0.0, 3.0, 4.0]]), torch.tensor([[6.0, 8.0, 9.0, 12.0]])
    >>> [round(float(iou_loss(pred, target, kind)), 3) for kind in ("iou", "giou", "diou", "ciou")]
    [1.0, 1.778, 1.444, 1.444]
    """
    if kind not in get_args(IoUKind):
        raise UsageError(
            f"iou_loss: kind {kind!r}; expected one of {', '.join(get_args(IoUKind))}."
        )
    pair = _pair(pred, target)
    loss = 1 - pair.iou
    if kind == "giou":
        return loss + pair.emptiness
    if kind == "diou":
        return loss + pair.distance / pair.reach
    if kind == "ciou":
        v = pair.aspect
        with torch.no_grad():
            alpha = pair.aspect_share * v / (loss + v + torch.finfo(v.dtype).eps)
        return loss + pair.distance / pair.reach + alpha * v
    return loss


class WiseIoU(nn.Module):
    """Wise-IoU: the distance multiplies 1 - IoU, and a focus says which boxes matter.

    L = r R (1 - IoU), R = exp(centre distance^2 / c^2), where c, the diagonal of the enclosing box,
    carries no gradient; beta = (1 - IoU) / running mean of 1 - IoU, without gradient. The versions
    are the paper's:

    =======  =======================================  =========================================
    version  focus r                                  it favours
    =======  =======================================  =========================================
    1        1                                        nothing
    2        beta^gamma                               the worst boxes (monotonic)
    3        beta / (delta alpha^(beta - delta))      the ordinary ones (non-monotonic): the most
                                                      at beta = 1 / ln(alpha), less on both sides
    =======  =======================================  =========================================

    Range: [0, e] for version 1. At random initialisation boxes do not overlap and the mean is 1, so
    R alone is left: (1, e] for versions 1 and 2, (1.20, 3.27] for version 3. A loss that stays just
    below the upper end means that boxes are far apart for their size: no weight changes it.

    Source: Tong et al. 2023, arXiv:2301.10051.

    ``mean_loss`` is a buffer: it is saved, and goes back with a step that is refused, as long as
    this module is part of the model that is guarded and saved. It is updated in training mode only,
    never by a batch that is empty or not finite, and is read as at least 1e-4. Each process keeps
    its own.

    Args:
        version: 1, 2 or 3.
        momentum: share of a batch in the running mean, in (0, 1]. The paper wants
            1 - 0.05^(1 / (batches per epoch * epochs until the accuracy rises slowly)).
        alpha: of version 3, above 1.
        delta: of version 3, above 0: boxes with beta = delta keep their weight.
        gamma: of version 2, above 0.

    Raises:
        ConfigError: a setting outside its range.

    >>> loss = WiseIoU(version=1)
    >>> pred, target = torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[1.0, 0.0, 3.0, 2.0]])
    >>> print(f"{loss(pred, target).item():.3f}")  # exp(1 / 13) * 2 / 3
    0.720
    """

    mean_loss: Tensor

    def __init__(
        self,
        version: Literal[1, 2, 3] = 3,
        *,
        momentum: float = 0.01,
        alpha: float = 1.9,
        delta: float = 3.0,
        gamma: float = 0.5,
    ) -> None:
        super().__init__()
        if version not in (1, 2, 3):
            raise ConfigError(f"WiseIoU: version {version!r}; the paper has 1, 2 and 3.")
        if not 0 < momentum <= 1:
            raise ConfigError(f"WiseIoU: momentum {momentum}; expected a number in (0, 1].")
        for name, value, least in (("alpha", alpha, 1), ("delta", delta, 0), ("gamma", gamma, 0)):
            if not least < value < math.inf:
                raise ConfigError(f"WiseIoU: {name} {value}; expected a number above {least}.")
        self.version, self.momentum = version, momentum
        self.alpha, self.delta, self.gamma = alpha, delta, gamma
        self.register_buffer("mean_loss", torch.ones((), dtype=torch.float32))

    @fp32_island
    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Loss of each row.

        Args:
            pred: M 4, x1 y1 x2 y2 in pixels.
            target: M 4, the same.

        Returns:
            M, float32.

        Raises:
            UsageError: the shapes differ or do not end in 4.
        """
        pair = _pair(pred, target)
        loss = 1 - pair.iou
        if self.training:
            self._update(loss.detach())
        return self._focus(loss.detach()) * torch.exp(pair.attraction) * loss

    def extra_repr(self) -> str:
        """Settings, as ``print(model)`` shows them."""
        return f"version={self.version}, momentum={self.momentum}"

    def _update(self, loss: Tensor) -> None:
        mean = torch.lerp(self.mean_loss, loss.mean().to(self.mean_loss.dtype), self.momentum)
        # The mean of nothing is NaN, and NaN in a running mean stays for ever.
        self.mean_loss.copy_(torch.where(mean.isfinite(), mean, self.mean_loss))

    def _focus(self, loss: Tensor) -> Tensor | float:
        if self.version == 1:
            return 1.0
        beta = loss / self.mean_loss.float().clamp(min=_LEAST_MEAN)
        if self.version == 2:
            return beta**self.gamma
        return beta / self.delta * torch.exp((self.delta - beta) * math.log(self.alpha))


@dataclass(frozen=True)
class _Pair:
    """What the losses compare two boxes by; each field M, or M 2 for x and y."""

    iou: Tensor
    union: Tensor
    sides: tuple[Tensor, Tensor]
    apart: Tensor
    """Distance of the centres, M 2."""
    enclosing: Tensor
    """Sides of the enclosing box, M 2."""
    inverted: Tensor
    """How far sides are inverted, M 2; 0 for ordinary boxes."""

    @property
    def emptiness(self) -> Tensor:
        """Share of the enclosing box that neither box covers, in [0, 1]."""
        width, height = (self.enclosing + self.inverted).unbind(-1)
        return 1 - self.union / (width * height)

    @property
    def distance(self) -> Tensor:
        """Squared distance of the centres, and of inverted sides from being none."""
        return self._distance(self.enclosing)

    @property
    def reach(self) -> Tensor:
        """The largest that the distance can be: the squared diagonal of the enclosing box."""
        return self.enclosing.square().sum(-1) + self._detour(self.enclosing)

    @property
    def attraction(self) -> Tensor:
        """Distance over reach, where only the distance itself carries gradient; in [0, 1]."""
        return self._distance(self.enclosing.detach()) / self.reach.detach()

    @property
    def aspect(self) -> Tensor:
        """v of CIoU, in [0, 1]."""
        first, second = (torch.atan(sides[..., 0] / sides[..., 1]) for sides in self.sides)
        return (first - second).square() * (4 / math.pi**2)

    @property
    def aspect_share(self) -> Tensor:
        """1; less for boxes below a tenth of a pixel, and 0 for a point, which has no aspect."""
        size = torch.minimum(*(sides.square().sum(-1) for sides in self.sides))
        return size / (size + _POINT**2)

    def _distance(self, enclosing: Tensor) -> Tensor:
        return self.apart.square().sum(-1) + self._detour(enclosing)

    def _detour(self, enclosing: Tensor) -> Tensor:
        # Linear in the inversion: its slope must not vanish where a side is about to turn.
        return self.inverted.sum(-1) * enclosing.sum(-1)


def _pair(pred: Tensor, target: Tensor) -> _Pair:
    if pred.shape != target.shape or pred.shape[-1:] != (4,):
        raise UsageError(
            f"Overlap of boxes: got shapes {tuple(pred.shape)} and {tuple(target.shape)}; expected "
            "M 4 twice, x1 y1 x2 y2, one row per pair. Select the matched rows first."
        )
    low, high, centre, inverted = _read(pred)
    low_t, high_t, centre_t, inverted_t = _read(target)
    sides, sides_t = high - low + _PAD, high_t - low_t + _PAD
    common = torch.relu(torch.minimum(high, high_t) - torch.maximum(low, low_t) + _PAD)
    overlap, area, area_t = (s[..., 0] * s[..., 1] for s in (common, sides, sides_t))
    # In this order the union of a box with one inside it is exactly the larger of the two.
    union = torch.maximum(area, area_t) + (torch.minimum(area, area_t) - overlap)
    return _Pair(
        iou=overlap / union,
        union=union,
        sides=(sides, sides_t),
        apart=centre - centre_t,
        enclosing=torch.maximum(high, high_t) - torch.minimum(low, low_t) + _PAD,
        inverted=inverted + inverted_t,
    )


def _read(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lower and upper corner, centre and inversion, each M 2: the rule for inverted boxes."""
    first, second = boxes[..., :2], boxes[..., 2:]
    centre = (first + second) / 2
    low, high = torch.minimum(first, centre), torch.maximum(second, centre)
    return low, high, centre, torch.relu(first - second)
