"""``surefoot export refdet``: the detector as two ONNX files, compared with itself.

One file encodes reference photos, the other finds their objects: what the first gives goes into the
second, by name. A program in any language that has onnxruntime can so look for objects that it was
never exported with.
"""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from surefoot.data import images_to_tensor, letterbox
from surefoot.errors import ConfigError
from surefoot.models import RefDet, References, decode_boxes
from surefoot.recipes.onnx_file import onnx_session
from surefoot.recipes.refdet.engines import (
    KIND,
    TorchEngine,
    Traits,
    reference_tensors,
    references_file,
)
from surefoot.recipes.refdet.footage import open_frames

__all__ = ["Differences", "ExportConfig", "export"]

_OPSET = 18
_FRAMES = 5
_EXAMPLES = (2, 3), (3, 5)
"""Objects and photos of each, twice: an axis whose length differs depends on them."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Write a trained detector as ONNX, and compare what it says with the original."""

    checkpoint: Path
    """Run folder (its best checkpoint is taken), or one of its checkpoints."""
    out: Path
    """The file of the detector, .onnx; that of the references is written beside it, as
    NAME.references.onnx."""
    video: Path | None = None
    """Video, or folder of frames, on which the files are compared with the original; without one,
    on pictures of noise."""
    weights: str | None = None
    """model or ema; those that the checkpoint's score was measured on where it is not given."""
    tolerance: float = 1e-3
    """Largest difference of a probability that is let through."""
    box_tolerance: float = 0.01
    """Largest difference of a box's side that is let through, in pixels of the network's square."""

    def __post_init__(self) -> None:
        if self.out.suffix != ".onnx":
            raise ConfigError(f"--out {self.out}: has to end in .onnx.")
        if self.checkpoint.suffix == ".onnx":
            raise ConfigError(f"--checkpoint {self.checkpoint}: is an ONNX file already.")


@dataclass(frozen=True, kw_only=True)
class Differences:
    """The largest between the files and the network."""

    score: float
    """Of a probability, over every anchor point and object."""
    box: float
    """Of a box's side, in pixels of the network's square, over every anchor point."""
    frames: int
    """Pictures they were taken on."""


class _Encode(nn.Module):
    def __init__(self, model: RefDet) -> None:
        super().__init__()
        self.model = model

    def forward(self, photos: Tensor) -> tuple[Tensor, ...]:
        return tuple(reference_tensors(self.model.encode(photos)).values())


class _Detect(nn.Module):
    """Images and the tensors of the references -> boxes B A 4 (pixels) and scores B A N."""

    def __init__(self, model: RefDet, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, images: Tensor, *known: Tensor) -> tuple[Tensor, Tensor]:
        return self.say(images, References(**dict(zip(self.names, known, strict=True))))

    def say(self, images: Tensor, references: References) -> tuple[Tensor, Tensor]:
        found = self.model.detect(images, references)
        boxes = decode_boxes(found.distribution, found.anchor_points, found.strides)
        return boxes, found.logits.sigmoid()


def export(config: ExportConfig) -> Differences:
    """Write both files, run them, compare; a file that differs is not left behind.

    Returns:
        The largest differences between the files, one after the other, and the network.

    Raises:
        ConfigError: the extra is not installed, or the files say something else than the network.
        CheckpointError: nothing whole to load.
        DataError: the video cannot be read.
    """
    engine = TorchEngine.load(config.checkpoint, device="cpu", amp=None, weights=config.weights)
    frames = _frames(config.video, engine.traits.image_size)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    whole = config.out, references_file(config.out)
    parts = tuple(path.with_name(f".{uuid.uuid4().hex}.{path.name}") for path in whole)
    try:
        _write(engine.model, engine.traits, parts)
        found = _compare(engine, parts, frames)
        if not (found.score <= config.tolerance and found.box <= config.box_tolerance):
            raise ConfigError(
                f"{config.out}: was not written; it differs from the network by {found.score:.2g} "
                f"in a probability and {found.box:.2g} px in a box, more than --tolerance "
                f"{config.tolerance:g} or --box-tolerance {config.box_tolerance:g}."
            )
        for part, path in zip(parts, whole, strict=True):
            os.replace(part, path)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
    return found


def _write(model: RefDet, traits: Traits, paths: tuple[Path, ...]) -> None:
    """The detector and the encoder of the references, into ``paths``."""
    side, dynamic = traits.support_size, torch.export.Dim.AUTO
    small, large = (torch.zeros(n, k, 3, side, side) for n, k in _EXAMPLES)
    with torch.no_grad():
        known, more = (reference_tensors(model.encode(photos)) for photos in (small, large))
    batch, objects = torch.export.Dim("batch", min=1), torch.export.Dim("objects", min=1)
    shapes = tuple(
        {
            axis: objects if sizes == (_EXAMPLES[0][0], _EXAMPLES[1][0]) else dynamic
            for axis, sizes in enumerate(zip(value.shape, more[name].shape, strict=True))
            if sizes[0] != sizes[1]
        }
        for name, value in known.items()
    )
    meta = _metadata(traits)
    _to_onnx(
        _Detect(model, tuple(known)).eval(),
        (torch.zeros(2, 3, traits.image_size, traits.image_size), *known.values()),
        paths[0],
        names=(["images", *known], ["boxes", "scores"]),
        shapes={"images": {0: batch}, "known": shapes},
        metadata=meta | {KIND: "detector"},
    )
    _to_onnx(
        _Encode(model).eval(),
        (small,),
        paths[1],
        names=(["photos"], list(known)),
        shapes={"photos": {0: objects, 1: dynamic}},
        metadata=meta | {KIND: "references"},
    )


def _metadata(traits: Traits) -> dict[str, str]:
    return {
        "image_size": str(traits.image_size),
        "support_size": str(traits.support_size),
        "k_shot": str(traits.k_shot),
        "strides": " ".join(map(str, traits.strides)),
        "threshold": "" if traits.threshold is None else repr(traits.threshold),
        "source": traits.source,
        "pair": uuid.uuid4().hex,
    }


def _to_onnx(
    network: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    *,
    names: tuple[list[str], list[str]],
    shapes: Mapping[str, Any],
    metadata: Mapping[str, str],
) -> None:
    try:
        with warnings.catch_warnings():
            # Axes of equal length are given one name here, which is not worth a warning.
            warnings.filterwarnings("ignore", message="# The axis name: ")
            program: Any = torch.onnx.export(
                network,
                example,
                input_names=names[0],
                output_names=names[1],
                dynamic_shapes=dict(shapes),
                opset_version=_OPSET,
                dynamo=True,
                verbose=False,
            )
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"export: {missing.name} is not installed: pip install 'surefoot[export]'."
        ) from missing
    program.model.metadata_props.update(metadata)
    program.save(str(path), external_data=False)


def _frames(video: Path | None, size: int) -> NDArray[np.uint8]:
    """A few squares to compare on."""
    if video is None:
        random = np.random.default_rng(0)
        return random.integers(0, 256, (_FRAMES, size, size, 3), dtype=np.uint8)
    source = open_frames(video)
    places = sorted({int(at) for at in np.linspace(0, source.count - 1, _FRAMES)})
    return np.stack([letterbox(picture, size)[0] for picture in source.read(places)])


def _compare(
    engine: TorchEngine, paths: tuple[Path, ...], frames: NDArray[np.uint8]
) -> Differences:
    """The two files one after the other, beside the network, for other numbers of everything than
    they were exported with.
    """
    detector, encoder = (onnx_session(path) for path in paths)
    wanted = {given.name for given in detector.get_inputs()}
    model, size = engine.model, engine.traits.support_size
    images = images_to_tensor(frames)
    photos = images_to_tensor(np.stack([letterbox(frame, size)[0] for frame in frames]))
    score = box = 0.0
    for objects, shots, batch in ((1, 1, 1), (3, 2, 3), (2, 3, len(images))):
        support = photos[torch.arange(objects * shots) % len(photos)].unflatten(0, (objects, shots))
        with torch.no_grad():
            references = model.encode(support)
            ours = _Detect(model, ()).say(images[:batch], references)
        names = list(reference_tensors(references))
        known = dict(zip(names, encoder.run(names, {"photos": support.numpy()}), strict=True))
        given = {name: value for name, value in known.items() if name in wanted}
        theirs = detector.run(["boxes", "scores"], given | {"images": images[:batch].numpy()})
        differences = [
            float(np.abs(a.numpy() - b).max()) for a, b in zip(ours, theirs, strict=True)
        ]
        box, score = max(box, differences[0]), max(score, differences[1])
    return Differences(score=score, box=box, frames=len(frames))
