"""Pyramids of feature maps: any of timm's, and a tiny one for a CPU.

An encoder takes RGB in [0, 1], normalises it itself, so that training and use cannot differ in it,
and gives four maps, finest first. ``channels`` and ``strides`` say what they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from surefoot.errors import CheckpointError, ConfigError, UsageError
from surefoot.models.camouflage.weights import load_timm_weights

__all__ = ["TimmEncoder", "TinyEncoder", "build_encoder", "conv_bn_relu"]

_STRIDES = (4, 8, 16, 32)
_TINY = "tiny"


def build_encoder(name: str, *, pretrained: bool | Path = False) -> TinyEncoder | TimmEncoder:
    """An encoder by its name: ``"tiny"``, or any model of timm that gives a pyramid.

    Raises:
        ConfigError: no such model, or it gives no maps at strides 4, 8, 16 and 32, or weights are
            asked for that do not exist.
        CheckpointError: the weights cannot be had.
    """
    if name != _TINY:
        return TimmEncoder(name, pretrained=pretrained)
    if pretrained is not False:
        raise ConfigError(
            f"CamouflageNet: pretrained={pretrained!r}, but the encoder 'tiny' has no published "
            "weights; leave it out, or take an encoder of timm, such as pvt_v2_b2."
        )
    return TinyEncoder()


def conv_bn_relu(
    in_channels: int, out_channels: int, kernel: int = 1, *, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """Convolution without bias, batch normalisation, ReLU; the size stays, but for the stride."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, padding, dilation=dilation, bias=False
        ),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


class _Residual(nn.Module):
    """Two 3x3 convolutions added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = conv_bn_relu(channels, channels, 3)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.second(self.first(x))))


class TinyEncoder(nn.Module):
    """Four stages of residual convolutions, random weights: 0.1 M parameters, for 64 to 128 pixels.

    Strides 2 to 16, not 4 to 32: at 64 pixels a map of stride 32 has four cells. Every image is
    brought to mean 0 in each channel and standard deviation 1 over all: what is camouflaged differs
    in structure, not in brightness, and without it a small network did not start to learn.

    >>> [tuple(m.shape[1:]) for m in TinyEncoder()(torch.rand(1, 3, 64, 64))]
    [(16, 32, 32), (24, 16, 16), (32, 8, 8), (48, 4, 4)]
    """

    channels: tuple[int, ...] = (16, 24, 32, 48)
    strides: tuple[int, ...] = (2, 4, 8, 16)

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, self.channels[0], 3)
        before = (self.channels[0], *self.channels[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(conv_bn_relu(given, own, 3, stride=2), _Residual(own))
            for given, own in zip(before, self.channels, strict=True)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """B 3 H W in [0, 1] -> four maps, finest first; H and W are multiples of 16."""
        centred = images - images.mean((2, 3), keepdim=True)
        spread = centred.square().mean((1, 2, 3), keepdim=True)
        # A plain image stays plain: its spread is far below that of one grey level of 256.
        x = self.stem(centred / (spread + 1e-6).sqrt())
        maps: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class TimmEncoder(nn.Module):
    """The pyramid of a timm model: what it gives at strides 4, 8, 16 and 32.

    Channels and strides are read from the model, and maps that come as B H W C are turned. Its own
    mean and standard deviation are buffers, and so part of every checkpoint.

    Args:
        name: of timm.
        pretrained: True loads the published weights from the hub or its local cache; a path loads
            a local file, .safetensors or a torch file of tensors only. Nothing falls back to
            random weights.

    Raises:
        ConfigError: timm does not know the model, or it has no such pyramid.
        CheckpointError: the weights cannot be had, or are of another network.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, *, pretrained: bool | Path = False) -> None:
        super().__init__()
        self.name = name
        self.net = _create(name, from_hub=pretrained is True)
        self._levels, self.channels = _pyramid(name, self.net.feature_info)
        self.strides: tuple[int, ...] = _STRIDES
        self._turned = str(getattr(self.net, "output_fmt", "NCHW")).endswith("NHWC")
        for buffer, fallback in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            value = torch.tensor(self.net.pretrained_cfg.get(buffer, fallback)).view(3, 1, 1)
            self.register_buffer(buffer, value)
        if not isinstance(pretrained, bool):
            load_timm_weights(self.net, name, pretrained)

    def forward(self, images: Tensor) -> list[Tensor]:
        """B 3 H W in [0, 1] -> four maps B C h w, finest first; H and W are multiples of 32.

        Raises:
            UsageError: the model gives maps of another size than it states.
        """
        maps = self.net((images - self.mean) / self.std)
        sides = [(images.shape[2] // s, images.shape[3] // s) for s in self.strides]
        return [
            self._channels_first(maps[level], (channels, *side))
            for level, channels, side in zip(self._levels, self.channels, sides, strict=True)
        ]

    def _channels_first(self, found: Tensor, expected: tuple[int, int, int]) -> Tensor:
        channels, height, width = expected
        layouts = {False: expected, True: (height, width, channels)}
        # Both fit where all three are equal; only then does the stated layout decide.
        for turned in (self._turned, not self._turned):
            if tuple(found.shape[1:]) == layouts[turned]:
                return found.permute(0, 3, 1, 2) if turned else found
        raise UsageError(
            f"encoding images with {self.name}: a map is {tuple(found.shape[1:])}; expected "
            f"{layouts[False]} or {layouts[True]}. It cannot be the encoder at this size."
        )


def _create(name: str, *, from_hub: bool) -> Any:
    import timm

    if not timm.is_model(name.split(".")[0]):
        raise ConfigError(
            f"CamouflageNet: timm {timm.__version__} knows no model {name!r}; "
            'timm.list_models("pvt*") lists what it knows, and "tiny" is built in.'
        )
    try:
        try:  # Models with windows are made for one size of image, unless told otherwise.
            return timm.create_model(
                name, pretrained=from_hub, features_only=True, strict_img_size=False
            )
        except TypeError:
            return timm.create_model(name, pretrained=from_hub, features_only=True)
    except (OSError, RuntimeError, AttributeError) as error:
        said = f"{type(error).__name__}: {str(error).strip().split(chr(10))[0]}"
        if from_hub:
            raise CheckpointError(
                f"loading weights of {name} from the hub failed: {said}\n"
                "Give a local file of them (.safetensors or .pth), run once where the hub can be "
                "reached, or start from random weights (pretrained=False)."
            ) from error
        raise ConfigError(
            f"CamouflageNet: {name} gives no feature maps ({said}); take one that does, such as "
            "pvt_v2_b2."
        ) from error


def _pyramid(name: str, info: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Which of a model's maps are taken, and their channels: the last one of each stride."""
    strides, channels = [int(s) for s in info.reduction()], [int(c) for c in info.channels()]
    last = {stride: level for level, stride in enumerate(strides)}
    if missing := [stride for stride in _STRIDES if stride not in last]:
        raise ConfigError(
            f"CamouflageNet: {name} gives maps at strides {strides}; {missing} are missing of the "
            f"{list(_STRIDES)} that the decoder reads. Take a pyramid, such as pvt_v2_b2."
        )
    levels = tuple(last[stride] for stride in _STRIDES)
    return levels, tuple(channels[level] for level in levels)
