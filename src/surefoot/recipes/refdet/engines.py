"""What computes a trained detector: PyTorch, from a run's weights, or onnxruntime, from a file.

Both take the same squares and give the same boxes; everything around them is NumPy and the same
for both, see :mod:`surefoot.recipes.refdet.finder`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from surefoot.checkpoint import Checkpoint
from surefoot.data import images_to_tensor
from surefoot.errors import CheckpointError, ConfigError, JournalError
from surefoot.journal import Entry, JournalReader
from surefoot.models import RefDet, References, decode_boxes
from surefoot.recipes.hardware import Amp, choose_device
from surefoot.recipes.onnx_file import onnx_session
from surefoot.recipes.refdet.build import build_model
from surefoot.recipes.refdet.config import TrainConfig
from surefoot.recipes.refdet.measuring import detector_of
from surefoot.recipes.refdet.validate import Detector
from surefoot.recipes.run_folder import CONFIG, JOURNAL, run_folder_of
from surefoot.recipes.session import find_checkpoint

__all__ = ["KIND", "Engine", "OnnxEngine", "TorchEngine", "Traits", "reference_tensors"]

KIND = "surefoot.refdet"
"""Key of an exported file's metadata that says which half of the detector it is."""

Pictures = NDArray[np.uint8]
Array = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What has to be known of a detector to use it."""

    image_size: int
    """Side of the square a picture is letterboxed to, in pixels."""
    support_size: int
    """Side of a reference photo, in pixels."""
    k_shot: int
    """Most photos of an object that are used."""
    strides: tuple[int, ...]
    """Of the levels that boxes are read off, in pixels."""
    threshold: float | None
    """Score from which on a box is given, as the run's own evaluation chose it."""
    source: str
    """What it was loaded from, for messages."""


class Engine(Protocol):
    """Encodes photos once, then looks for their objects."""

    @property
    def traits(self) -> Traits:
        """Sizes and threshold."""
        ...

    def encode(self, photos: Pictures) -> Any:
        """N K h w 3 photos -> what :meth:`detect` wants to know of the N objects."""
        ...

    def detect(self, squares: Pictures, references: Any, count: int) -> tuple[Array, Array]:
        """B S S 3 squares -> the best ``count`` points of each object, in any order.

        Returns:
            Boxes B N count 4 in pixels of the square, and scores B N count, 0 to 1.
        """
        ...


def reference_tensors(references: References) -> dict[str, Tensor]:
    """The tensors of references by their names, in their order, whatever the model keeps there."""
    values = {field.name: getattr(references, field.name) for field in fields(references)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


class TorchEngine:
    """A model in PyTorch."""

    def __init__(self, detector: Detector, traits: Traits) -> None:
        self.detector, self.traits = detector, traits

    @classmethod
    def load(cls, path: Path, *, device: str, amp: Amp, weights: str | None) -> Self:
        """From a run folder or one of its checkpoints.

        Raises:
            ConfigError: it is neither, or a run of another program, or one of stage 1.
            CheckpointError: nothing whole is there, or its weights are others than asked for.
        """
        folder = _folder_of(path)
        config = _settings(folder)
        found, _ = find_checkpoint(path, best=True)
        name = weights or found.measured_on or ("ema" if "ema" in found.weights else "model")
        model = build_model(replace(config.model, pretrained=False, support_weights=None))
        try:
            model.load_state_dict(found.load_weights(name))
        except RuntimeError as unfit:
            raise CheckpointError(
                f"{found.path}: its weights are not those of the network that {CONFIG} describes "
                f"({str(unfit).splitlines()[-1].strip()}). Was it trained by another version?",
                path=found.path,
            ) from unfit
        place = choose_device(device)
        detector = detector_of(config, model.eval().to(place), place, amp)
        return cls.of(detector, _threshold(folder, found), f"{found.path} ({name} weights)")

    @classmethod
    def of(cls, detector: Detector, threshold: float | None, source: str) -> Self:
        """A detector that is there already."""
        traits = Traits(
            image_size=detector.image_size,
            support_size=detector.support_size,
            k_shot=detector.k_shot,
            strides=tuple(detector.model.config.backbone.strides),
            threshold=threshold,
            source=source,
        )
        return cls(detector, traits)

    @property
    def model(self) -> RefDet:
        """The network."""
        return self.detector.model

    @torch.inference_mode()
    def encode(self, photos: Pictures) -> References:
        """See :class:`Engine`."""
        with self.detector._autocast():
            return self.model.encode(images_to_tensor(photos).to(self.detector.device))

    @torch.inference_mode()
    def detect(self, squares: Pictures, references: References, count: int) -> tuple[Array, Array]:
        """See :class:`Engine`."""
        images = images_to_tensor(squares).to(self.detector.device)
        with self.detector._autocast():
            found = self.model.detect(images, references)
        scores, at = (
            found.logits.float().sigmoid().transpose(1, 2).topk(min(count, found.logits.shape[1]))
        )  # B N count
        batch = torch.arange(len(images), device=at.device)[:, None, None]
        boxes = decode_boxes(
            found.distribution[batch, at], found.anchor_points[at], found.strides[at]
        )
        return boxes.float().cpu().numpy(), scores.float().cpu().numpy()


class OnnxEngine:
    """An exported detector: ``model.onnx``, and ``model.references.onnx`` beside it."""

    def __init__(self, session: Any, encoder: Any, traits: Traits) -> None:
        self._session, self._encoder, self.traits = session, encoder, traits
        self._wanted = {given.name for given in session.get_inputs()}

    @classmethod
    def load(cls, path: Path) -> Self:
        """From the file of the detector; that of the references lies beside it.

        Raises:
            ConfigError: a file is missing, of another program, or of another export.
        """
        session = onnx_session(path)
        values = _metadata(session, path, "detector")
        beside = references_file(path)
        if not beside.is_file():
            raise ConfigError(
                f"{path}: {beside.name} is not beside it; it encodes the reference photos. Copy "
                "both files that surefoot export refdet wrote."
            )
        encoder = onnx_session(beside)
        if _metadata(encoder, beside, "references")["pair"] != values["pair"]:
            raise ConfigError(
                f"{path} and {beside.name} are of two exports; take both of the same one."
            )
        level = values["threshold"]
        traits = Traits(
            image_size=int(values["image_size"]),
            support_size=int(values["support_size"]),
            k_shot=int(values["k_shot"]),
            strides=tuple(map(int, values["strides"].split())),
            threshold=float(level) if level else None,
            source=str(path),
        )
        return cls(session, encoder, traits)

    def encode(self, photos: Pictures) -> dict[str, NDArray[Any]]:
        """See :class:`Engine`."""
        names = [made.name for made in self._encoder.get_outputs()]
        found = self._encoder.run(names, {"photos": images_to_tensor(photos).numpy()})
        return dict(zip(names, found, strict=True))

    def detect(
        self, squares: Pictures, references: Mapping[str, NDArray[Any]], count: int
    ) -> tuple[Array, Array]:
        """See :class:`Engine`."""
        given = {name: value for name, value in references.items() if name in self._wanted}
        given["images"] = images_to_tensor(squares).numpy()
        boxes, scores = self._session.run(["boxes", "scores"], given)  # B A 4, B A N
        scores = np.swapaxes(scores, 1, 2)
        count = min(count, scores.shape[-1])
        at = np.argpartition(-scores, count - 1, axis=-1)[..., :count]
        return boxes[np.arange(len(boxes))[:, None, None], at], np.take_along_axis(scores, at, -1)


def references_file(path: Path) -> Path:
    """Where the half of an export lies that encodes the references.

    >>> references_file(Path("out/model.onnx")).name
    'model.references.onnx'
    """
    return path.with_suffix(".references.onnx")


def _metadata(session: Any, path: Path, half: str) -> Mapping[str, str]:
    values: dict[str, str] = dict(session.get_modelmeta().custom_metadata_map)
    kind = values.get(KIND)
    if kind == half:
        return values
    if kind is not None:
        raise ConfigError(
            f"{path}: is the {kind} half of a detector; expected the {half} half. Give the file "
            "that --out of surefoot export refdet named."
        )
    inputs = ", ".join(given.name for given in session.get_inputs())
    raise ConfigError(
        f"{path}: is an ONNX file of another program (its inputs: {inputs}); expected one that "
        "surefoot export refdet wrote."
    )


def _folder_of(path: Path) -> Path:
    try:
        return run_folder_of(path, flag="--checkpoint")
    except ConfigError as neither:
        raise ConfigError(
            f"--checkpoint {path}: is no run folder, no checkpoint of one and no .onnx file. Give "
            f"the folder that holds {CONFIG} and checkpoints/."
        ) from neither


def _settings(folder: Path) -> TrainConfig:
    try:
        recipe = JournalReader(folder / JOURNAL).run.get("recipe", "refdet")
    except JournalError:
        recipe = "refdet"  # weights are of use without their journal
    if recipe != "refdet":
        raise ConfigError(
            f"--checkpoint {folder}: is a run of surefoot train {recipe}; expected one of surefoot "
            f"train refdet. Its own verbs end in {recipe}, as surefoot predict {recipe}."
        )
    config = TrainConfig.load(folder / CONFIG)
    if config.learns_classes:
        raise ConfigError(
            f"--checkpoint {folder}: is a run of stage 1 on labelled images, which knows its "
            f"{config.model.classes} classes and compares nothing with reference photos. Train "
            f"stage 2 from it, surefoot train refdet --stage 2 --checkpoint {folder}, and give "
            "that run."
        )
    return config


def _threshold(folder: Path, found: Checkpoint) -> float | None:
    """The threshold that the run chose when it measured these weights; else its newest one."""
    try:
        measured = [entry for entry in JournalReader(folder / JOURNAL) if _has_threshold(entry)]
    except JournalError:
        return None
    if not measured:
        return None
    own = [e for e in measured if found.metric is not None and _st_iou(e) == found.metric]
    return (own or measured)[-1].number("threshold")


def _has_threshold(entry: Entry) -> bool:
    if entry.kind != "evaluation":
        return False
    try:
        return math.isfinite(entry.number("threshold"))
    except (KeyError, TypeError, ValueError):
        return False


def _st_iou(entry: Entry) -> float | None:
    right = entry.values.get("right")
    value = right.get("st_iou") if isinstance(right, Mapping) else None
    return float(value) if isinstance(value, int | float) else None
