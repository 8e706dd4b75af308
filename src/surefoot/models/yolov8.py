"""YOLOv8: backbone and neck (PAN-FPN) at any width, depth and choice of strides; the detector.

Written from the published description; the pyramid is Liu et al. 2018, "Path Aggregation Network
for Instance Segmentation", arXiv:1803.01534. The finest stride asked for decides how far down the
top-down path goes: (8, 16, 32) is YOLOv8 itself, (4, 8, 16, 32) its variant for small objects, and
(8,) has no bottom-up path at all. Nothing is built that no output depends on.

Images are RGB in [0, 1], in training, evaluation and export alike: no mean is taken off, nothing
is divided by a deviation. Published weights were trained on just that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from surefoot.errors import CheckpointError, ConfigError, UsageError
from surefoot.models.blocks import C2f, ConvBnAct, Sppf
from surefoot.models.decode import anchor_points
from surefoot.models.heads import StandardHead
from surefoot.shapes import Prediction

__all__ = [
    "Scale",
    "StandardPrediction",
    "YoloV8",
    "YoloV8Config",
    "YoloV8Detector",
    "load_ultralytics_state_dict",
    "our_name",
]

Scale = Literal["n", "s", "m", "l", "x"]
"""Published sizes of YOLOv8, from nano to extra large."""

_SCALES: dict[str, tuple[float, float, int]] = {  # depth, width, most channels
    "n": (0.33, 0.25, 1024),
    "s": (0.33, 0.50, 1024),
    "m": (0.67, 0.75, 768),
    "l": (1.00, 1.00, 512),
    "x": (1.00, 1.25, 512),
}


@dataclass(frozen=True, kw_only=True)
class YoloV8Config:
    """Size of a backbone and neck."""

    channels: tuple[int, ...]
    """Channels after the stages of stride 2, 4, 8, ...; the neck gives the same at each stride."""
    depths: tuple[int, ...]
    """Bottlenecks of each C2f, for the stages of stride 4, 8, ...: one fewer than ``channels``."""
    neck_depth: int = 1
    """Bottlenecks of every C2f of the neck."""
    sppf: bool = True
    """Whether the last stage ends with spatial pyramid pooling."""
    strides: tuple[int, ...] = (8, 16, 32)
    """Strides that are given, in pixels, finest first."""

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.channels) - 1:
            raise ConfigError(
                f"YoloV8Config: {len(self.channels)} channels and {len(self.depths)} depths; the "
                "stem (stride 2) has no C2f, so there is one depth fewer than channels."
            )
        if any(c < 2 or c % 2 for c in self.channels):
            raise ConfigError(
                f"YoloV8Config: channels {self.channels}; C2f splits them into halves, so every "
                "one is even and at least 2."
            )
        built = tuple(2 ** (i + 1) for i in range(1, len(self.channels)))
        if not self.strides or not set(self.strides) <= set(built):
            raise ConfigError(
                f"YoloV8Config: strides {self.strides} asked for, but {len(self.channels)} stages "
                f"reach {built}; name some of those, or add a stage."
            )
        if tuple(sorted(set(self.strides))) != self.strides:
            raise ConfigError(
                f"YoloV8Config: strides {self.strides}; name each once, finest first."
            )

    @classmethod
    def scaled(cls, scale: Scale, *, strides: tuple[int, ...] = (8, 16, 32)) -> YoloV8Config:
        """A published size.

        >>> YoloV8Config.scaled("n").channels
        (16, 32, 64, 128, 256)
        """
        if scale not in _SCALES:
            raise ConfigError(f"YoloV8: unknown scale {scale!r}; expected one of {[*_SCALES]}.")
        depth, width, most = _SCALES[scale]
        return cls(
            channels=tuple(
                8 * math.ceil(min(c, most) * width / 8) for c in (64, 128, 256, 512, 1024)
            ),
            depths=tuple(max(1, round(n * depth)) for n in (3, 6, 6, 3)),
            neck_depth=max(1, round(3 * depth)),
            strides=strides,
        )

    def channels_at(self, stride: int) -> int:
        """Channels of the map of this stride."""
        return self.channels[stride.bit_length() - 2]


class _Stage(nn.Module):
    """A convolution of stride 2, then a C2f; the deepest one ends with SPPF."""

    def __init__(self, in_channels: int, out_channels: int, depth: int, *, sppf: bool) -> None:
        super().__init__()
        self.down = ConvBnAct(in_channels, out_channels, 3, 2)
        self.c2f = C2f(out_channels, out_channels, depth, shortcut=True)
        self.sppf = Sppf(out_channels, out_channels) if sppf else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.sppf(self.c2f(self.down(x)))


class _PathUp(nn.Module):
    """One step of the bottom-up path: down to the next stride, joined with the top-down map."""

    def __init__(self, fine: int, coarse: int, depth: int) -> None:
        super().__init__()
        self.down = ConvBnAct(fine, fine, 3, 2)
        self.c2f = C2f(fine + coarse, coarse, depth)

    def forward(self, finer: Tensor, skip: Tensor) -> Tensor:
        return self.c2f(torch.cat((self.down(finer), skip), dim=1))


class YoloV8(nn.Module):
    """Backbone and neck: B 3 H W in [0, 1] -> {stride: B C H/stride W/stride}.

    H and W are multiples of the deepest stage's stride (32 for a published size).
    Initialisation is PyTorch's for convolutions and 1/0 for batch normalisation, as YOLOv8's is.

    >>> maps = YoloV8("n")(torch.zeros(1, 3, 64, 64))
    >>> {stride: tuple(m.shape[1:]) for stride, m in maps.items()}
    {8: (64, 8, 8), 16: (128, 4, 4), 32: (256, 2, 2)}
    """

    def __init__(self, config: YoloV8Config | Scale = "n") -> None:
        super().__init__()
        self.config = config if isinstance(config, YoloV8Config) else YoloV8Config.scaled(config)
        c, last = self.config.channels, len(self.config.channels) - 1
        self.stem = ConvBnAct(3, c[0], 3, 2)
        self.stages = nn.ModuleDict(
            {
                str(2 ** (i + 1)): _Stage(
                    c[i - 1], c[i], self.config.depths[i - 1], sppf=self.config.sppf and i == last
                )
                for i in range(1, last + 1)
            }
        )
        at, depth = self.config.channels_at, self.config.neck_depth
        self.top_down = nn.ModuleDict(
            {str(s): C2f(at(s) + at(2 * s), at(s), depth) for s in self._top_down_strides()}
        )
        self.bottom_up = nn.ModuleDict(
            {str(s): _PathUp(at(s // 2), at(s), depth) for s in self._bottom_up_strides()}
        )

    @property
    def deepest(self) -> int:
        """Stride of the last stage: image sides are multiples of it."""
        return 2 ** len(self.config.channels)

    def _top_down_strides(self) -> list[int]:
        strides: list[int] = []
        stride = self.deepest // 2
        while stride >= self.config.strides[0]:
            strides.append(stride)
            stride //= 2
        return strides

    def _bottom_up_strides(self) -> list[int]:
        strides: list[int] = []
        stride = self.config.strides[0] * 2
        while stride <= self.config.strides[-1]:
            strides.append(stride)
            stride *= 2
        return strides

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """B 3 H W -> {stride: B C H/stride W/stride}, finest first."""
        maps: dict[int, Tensor] = {}
        x = self.stem(images)
        for stride, stage in self.stages.items():
            x = maps[int(stride)] = stage(x)
        for name, c2f in self.top_down.items():
            stride = int(name)
            coarse = interpolate(maps[2 * stride], scale_factor=2.0, mode="nearest")
            maps[stride] = c2f(torch.cat((coarse, maps[stride]), dim=1))
        for name, step in self.bottom_up.items():
            stride = int(name)
            maps[stride] = step(maps[stride // 2], maps[stride])
        return {stride: maps[stride] for stride in self.config.strides}


@dataclass(frozen=True, kw_only=True)
class StandardPrediction(Prediction):
    """Every anchor point of every image, scored against every class."""

    logits: Tensor
    """B A N; ``sigmoid(logits)`` is the probability that the class is at the anchor point."""
    distribution: Tensor
    """B A 4 R: logits over the distance of the left, top, right and bottom side, in strides."""
    anchor_points: Tensor
    """A 2, x y in pixels."""
    strides: Tensor
    """A, pixels."""


class YoloV8Detector(nn.Module):
    """YOLOv8 whole: backbone, neck and standard head, for classes that are known beforehand.

    >>> detector = YoloV8Detector("n", classes=80)
    >>> sum(p.numel() for p in detector.parameters())
    3157184
    >>> detector(torch.zeros(1, 3, 64, 96)).logits.shape
    torch.Size([1, 126, 80])
    """

    def __init__(
        self, config: YoloV8Config | Scale = "n", *, classes: int, reg_max: int = 16
    ) -> None:
        super().__init__()
        self.backbone = YoloV8(config)
        strides = self.backbone.config.strides
        channels = tuple(self.backbone.config.channels_at(s) for s in strides)
        self.head = StandardHead(channels, strides, classes=classes, reg_max=reg_max)

    def forward(self, images: Tensor) -> StandardPrediction:
        """Scores every anchor point against every class.

        Args:
            images: B 3 H W, RGB in [0, 1]; sides are multiples of the deepest stride.

        Raises:
            UsageError: the images are of another shape.
        """
        deepest = self.backbone.deepest
        sides = images.shape[-2:]
        if images.ndim != 4 or images.shape[1] != 3 or any(s % deepest or not s for s in sides):
            raise UsageError(
                f"detecting: images are {tuple(images.shape)}; expected B 3 H W with H and W "
                f"multiples of {deepest}, the deepest stride. Letterbox them to such a size."
            )
        maps = self.backbone(images)
        distribution, logits = self.head(list(maps.values()))
        sizes = {stride: (m.shape[-2], m.shape[-1]) for stride, m in maps.items()}
        points, strides = anchor_points(sizes, images.device)
        return StandardPrediction(
            logits=logits, distribution=distribution, anchor_points=points, strides=strides
        )


# Layer numbers of Ultralytics' yolov8.yaml by what the layer is here.
_ULTRALYTICS_LAYERS: dict[int, str] = {
    0: "stem",
    1: "stages.4.down",
    2: "stages.4.c2f",
    3: "stages.8.down",
    4: "stages.8.c2f",
    5: "stages.16.down",
    6: "stages.16.c2f",
    7: "stages.32.down",
    8: "stages.32.c2f",
    9: "stages.32.sppf",
    12: "top_down.16",
    15: "top_down.8",
    16: "bottom_up.16.down",
    18: "bottom_up.16.c2f",
    19: "bottom_up.32.down",
    21: "bottom_up.32.c2f",
}


def load_ultralytics_state_dict(model: YoloV8, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Copies an Ultralytics YOLOv8 ``state_dict`` (``model.0.conv.weight``...) into ``model``.

    The detection head of the checkpoint is left out. Returns the names of our own tensors that the
    checkpoint does not have: none for strides (8, 16, 32), the finest level's for (4, 8, 16, 32).

    Raises:
        CheckpointError: a tensor of the checkpoint is of another shape, as for another scale, or
            nothing in it belongs to a YOLOv8.
    """
    renamed = {ours: value for name, value in state.items() if (ours := our_name(name))}
    own = model.state_dict()
    taken = {name: value for name, value in renamed.items() if name in own}
    if not taken:
        raise CheckpointError(
            f"loading YOLOv8 weights: none of the {len(state)} tensors has a name of an "
            f"Ultralytics YOLOv8, such as 'model.0.conv.weight'; the first is "
            f"{next(iter(state), None)!r}."
        )
    for name, value in taken.items():
        if value.shape != own[name].shape:
            raise CheckpointError(
                f"loading YOLOv8 weights: {name} is {tuple(value.shape)} in the checkpoint and "
                f"{tuple(own[name].shape)} in the model; take the checkpoint of the same scale."
            )
    model.load_state_dict(taken, strict=False)
    return tuple(name for name in own if name not in taken)


def our_name(name: str) -> str | None:
    """Our name of a tensor of an Ultralytics YOLOv8's backbone or neck; None for any other.

    >>> our_name("model.15.cv1.conv.weight")
    'top_down.8.cv1.conv.weight'
    """
    layer, _, rest = name.removeprefix("model.").partition(".")
    place = _ULTRALYTICS_LAYERS.get(int(layer)) if layer.isdecimal() else None
    return f"{place}.{rest}" if place and rest else None
