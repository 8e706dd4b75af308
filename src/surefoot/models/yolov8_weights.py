"""An Ultralytics YOLOv8's weights in our detector: every tensor has its place, or it is an error.

A ``.pt`` file of theirs holds pickled objects of their classes, and reading those runs whatever
code lies in the file. It is therefore never unpickled here: :func:`read_state_dict` takes a file of
tensors alone, and says how to make one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from surefoot.errors import CheckpointError
from surefoot.models.tensor_file import read_tensors
from surefoot.models.yolov8 import Scale, YoloV8Detector, our_name

__all__ = ["load_ultralytics", "read_state_dict"]

_STEMS: dict[int, Scale] = {16: "n", 32: "s", 48: "m", 64: "l", 80: "x"}
_STEM, _BOX, _LABEL = "0.conv.weight", "22.cv2.0.2.weight", "22.cv3.0.2.weight"
_BINS = "22.dfl.conv.weight"
_TOWERS = {"22.cv2.": "head.box.", "22.cv3.": "head.label."}
_SHOWN = 4


def read_state_dict(path: Path | str) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a ``.pt`` file that holds nothing else.

    Raises:
        CheckpointError: the file cannot be read, or holds more than tensors.
    """
    path = Path(path)
    return read_tensors(path, doing=f"reading the weights {path}", pickled=_how_to_export(path))


def _how_to_export(path: Path) -> str:
    there = path.with_name(f"{path.stem}-state.pt")
    return (
        "it holds pickled objects, which are not opened because that runs code from the file. If "
        "you trust it, write its tensors to a file of their own, where "
        f'Ultralytics is installed: python -c "import torch, ultralytics as u; '
        f"torch.save(u.YOLO('{path}').model.float().state_dict(), '{there}')\""
    )


def load_ultralytics(
    state: Mapping[str, Tensor], model: YoloV8Detector | None = None
) -> YoloV8Detector:
    """The detector that an Ultralytics YOLOv8 ``state_dict`` belongs to, with its weights.

    Outputs are those of the original to float32's rounding. Half-precision weights become float32.
    For RefDet's backbone, of other strides and without this head, see
    :func:`surefoot.models.load_ultralytics_state_dict`.

    Args:
        state: tensors by the original's names, ``model.0.conv.weight`` and so on.
        model: where to load them; a new one of the size that ``state`` has, where it is not given.

    Returns:
        ``model``, or the new one, in training mode as every new module is.

    Raises:
        CheckpointError: it is of no YOLOv8 detector, a tensor is missing, is one too many, or has
            another shape. Nothing is loaded then.
    """
    plain = {_without_prefix(name): value for name, value in state.items()}
    names = {name: ours for name in plain if (ours := _our_name(name))}
    model = model or _model_for(plain)
    _check(plain, names, model.state_dict())
    model.load_state_dict({ours: plain[name] for name, ours in names.items()})
    return model


def _without_prefix(name: str) -> str:
    while name.startswith("model."):
        name = name.removeprefix("model.")
    return name


def _our_name(name: str) -> str | None:
    for theirs, ours in _TOWERS.items():
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    inner = our_name(name)
    return inner and f"backbone.{inner}"


def _model_for(plain: Mapping[str, Tensor]) -> YoloV8Detector:
    """A detector of the size, classes and bins that the tensors have."""
    if missing := [name for name in (_STEM, _BOX, _LABEL) if name not in plain]:
        raise CheckpointError(
            f"loading YOLOv8 weights: none of the {len(plain)} tensors is called model.{missing[0]}"
            ", so they are not those of a YOLOv8 detector (one for segmentation, pose or another "
            f"version has other layers); the first is {next(iter(plain), None)!r}."
        )
    stem = len(plain[_STEM])
    if stem not in _STEMS:
        raise CheckpointError(
            f"loading YOLOv8 weights: model.{_STEM} has {stem} channels; the published sizes "
            f"n, s, m, l, x have {', '.join(map(str, _STEMS))}. For another size, pass the model."
        )
    classes, bins = len(plain[_LABEL]), len(plain[_BOX]) // 4
    return YoloV8Detector(_STEMS[stem], classes=classes, reg_max=bins)


def _check(
    plain: Mapping[str, Tensor], names: Mapping[str, str], own: Mapping[str, Tensor]
) -> None:
    """Refuse what would not be loaded whole."""
    theirs = {ours: name for name, ours in names.items()}
    strange = [n for n in plain if n != _BINS and names.get(n) not in own]
    absent = [f"{ours} (of ours)" for ours in own if ours not in theirs]
    shapes = [
        f"{theirs[ours]} is {tuple(plain[theirs[ours]].shape)}, here {tuple(value.shape)}"
        for ours, value in own.items()
        if ours in theirs and plain[theirs[ours]].shape != value.shape
    ]
    for what, found in (("no place for", strange), ("missing", absent), ("other shape", shapes)):
        if found:
            more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
            raise CheckpointError(
                f"loading YOLOv8 weights: {what}: {', '.join(found[:_SHOWN])}{more}. Take a "
                "detector of the same size, classes, bins and strides (8, 16, 32)."
            )
    if _BINS in plain:
        _check_bins(plain[_BINS].flatten().float())


def _check_bins(values: Tensor) -> None:
    """Their bins are a fixed convolution; here the distances 0 .. R-1 are written in the decode."""
    if not torch.equal(values.cpu(), torch.arange(len(values), dtype=torch.float32)):
        raise CheckpointError(
            f"loading YOLOv8 weights: model.{_BINS} holds {values.tolist()}; expected the "
            f"distances 0 to {len(values) - 1}, which the decode here is made for."
        )
