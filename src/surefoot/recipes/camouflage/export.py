"""``surefoot export camouflage``: the network as an ONNX file, compared with itself."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from surefoot.errors import ConfigError
from surefoot.models.camouflage import CamouflageNet
from surefoot.recipes.camouflage.segmenter import Segmenter
from surefoot.recipes.onnx_file import onnx_session

__all__ = ["ExportConfig", "export"]

_OPSET = 18


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a trained segmenter as ONNX, and compare what it says with the original."""

    checkpoint: Path
    """Run folder (its best checkpoint is taken), or one of its checkpoints."""
    out: Path
    """The file, .onnx. Its input is ``images``, B 3 S S, RGB in [0, 1]; its output ``logits``."""
    weights: str | None = None
    """model or ema; those that the checkpoint's score was measured on where it is not given."""
    tolerance: float = 1e-3
    """Largest difference of a probability that is let through."""


class _Logits(nn.Module):
    def __init__(self, model: CamouflageNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).mask


def export(config: ExportConfig) -> float:
    """Write the file, run it, compare; one that differs is not left behind.

    Returns:
        The largest difference of a probability between the file and the network, over batches of
        1 and 3 random images.

    Raises:
        ConfigError: the extra is not installed, or the file says something else than the network.
    """
    if config.out.suffix != ".onnx":
        raise ConfigError(f"--out {config.out}: has to end in .onnx.")
    segmenter = Segmenter.load(config.checkpoint, weights=config.weights)
    if segmenter.masks is None:
        raise ConfigError(f"--checkpoint {config.checkpoint}: is an ONNX file already.")
    network = _Logits(segmenter.masks.model).eval()
    config.out.parent.mkdir(parents=True, exist_ok=True)
    part = config.out.with_name(f".{uuid.uuid4().hex}.{config.out.name}")
    try:
        _write(network, part, segmenter.size)
        worst = _compare(network, part, segmenter.size)
        if not worst <= config.tolerance:
            raise ConfigError(
                f"{config.out}: was not written; it differs from the network by {worst:.2g} in a "
                f"probability, more than --tolerance {config.tolerance:g}."
            )
        os.replace(part, config.out)
    finally:
        part.unlink(missing_ok=True)
    return worst


def _write(network: nn.Module, path: Path, size: int) -> None:
    try:
        torch.onnx.export(
            network,
            (torch.zeros(2, 3, size, size),),
            str(path),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            opset_version=_OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"export: {missing.name} is not installed: pip install 'surefoot[export]'."
        ) from missing


def _compare(network: nn.Module, path: Path, size: int) -> float:
    session = onnx_session(path)
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for count in (1, 3):
        images = torch.rand(count, 3, size, size, generator=generator)
        with torch.no_grad():
            ours = network(images).sigmoid().numpy()
        (theirs,) = session.run(None, {"images": images.numpy()})
        chances = 1 / (1 + np.exp(-theirs.astype(np.float64)))
        worst = max(worst, float(np.abs(ours - chances).max()))
    return worst
