"""Weights as safetensors files: checked before they are written, compared after.

safetensors refuses tensors that share memory. Names that are one and the same tensor (tied
weights) are saved once, and the file's metadata says which names stand for which, so that loading
gives one tensor under all of them again. Views that only overlap are saved as copies of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from surefoot.checkpoint.tensors import listed, nonfinite
from surefoot.errors import CheckpointError, UsageError

__all__ = ["check_finite_weights", "check_weights", "read_weights", "write_weights"]

_TIES = "surefoot.ties"


def check_weights(name: str, tensors: Mapping[str, Any]) -> None:
    """Refuse what cannot be saved.

    Args:
        name: what the tensors are, for the message.
        tensors: a state dict.

    Raises:
        UsageError: a value that is no dense tensor with data.
    """
    for key, value in tensors.items():
        if not isinstance(value, Tensor):
            raise UsageError(
                f"checkpoint: weights[{name!r}][{key!r}] is a {type(value).__name__}, no tensor; "
                "put it into the state."
            )
        if value.is_meta or value.is_quantized or value.layout is not torch.strided:
            kind = "on the meta device" if value.is_meta else f"{value.layout}, {value.dtype}"
            raise UsageError(
                f"checkpoint: weights[{name!r}][{key!r}] is {kind}; only dense tensors with data "
                "can be saved."
            )


def check_finite_weights(name: str, tensors: Mapping[str, Tensor]) -> None:
    """Refuse weights that no run should start from.

    Args:
        name: what the tensors are, for the message.
        tensors: a state dict that :func:`check_weights` has seen.

    Raises:
        CheckpointError: a floating or complex tensor with a NaN or an Inf in it.
    """
    if bad := nonfinite(tensors.items()):
        raise CheckpointError(
            f"checkpoint: {len(bad)} of the {len(tensors)} tensors of weights {name!r} are not "
            f"finite: {listed(bad)}. They are not saved: a run that starts from them is lost. "
            "Find the step that made them so. A buffer that holds Inf on purpose belongs out of "
            "the state dict: register_buffer(..., persistent=False)."
        )


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a state dict and compare what the file holds with it.

    Args:
        path: the new file.
        tensors: a state dict that :func:`check_weights` has seen.

    Raises:
        OSError: the disk refused, or gave back something else.
        UsageError: a dtype that safetensors does not know.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> weight = torch.eye(2)
    >>> write_weights(path, {"embed.weight": weight, "head.weight": weight})
    >>> loaded = read_weights(path)
    >>> loaded["embed.weight"] is loaded["head.weight"]
    True
    """
    kept, ties = _untied(tensors)
    metadata = {"format": "pt", _TIES: json.dumps(ties)}
    try:
        save_file(kept, path, metadata=metadata)
    except SafetensorError as problem:
        raise OSError(str(problem)) from problem
    except KeyError as unknown:
        dtype = str(unknown.args[0])
        named = listed([name for name, tensor in kept.items() if str(tensor.dtype) == dtype])
        raise UsageError(f"checkpoint: safetensors knows no {dtype}: {named}.") from unknown
    with _opened(path) as file:
        differ = [n for n, t in kept.items() if not _same(file.get_tensor(n), t)]
    if differ:
        raise OSError(f"{path.name} holds other values than were written: {listed(differ)}")


def read_weights(path: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The inverse of :func:`write_weights`; tied names share one tensor.

    Raises:
        OSError: no such file, or no safetensors file.
    """
    with _opened(path, device) as file:
        found = {name: file.get_tensor(name) for name in _names(file)}
        ties: dict[str, str] = json.loads((file.metadata() or {}).get(_TIES, "{}"))
    return found | {name: found[kept] for name, kept in ties.items()}


def _opened(path: Path, device: torch.device | str = "cpu") -> safe_open:
    try:
        return safe_open(path, framework="pt", device=str(device))
    except SafetensorError as problem:
        raise OSError(f"{path.name}: {problem}") from problem


def _names(file: safe_open) -> Iterable[str]:
    return file.keys()


def _untied(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that share no memory, and which name stands for which of them."""
    kept: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    storages: set[tuple[object, ...]] = set()
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and place in first:
            ties[name] = first[place]
            continue
        first[place] = name
        storage = (tensor.device, tensor.untyped_storage().data_ptr())
        dense = tensor.detach().resolve_conj().resolve_neg().contiguous()
        # A part of a memory that is saved already, or will be by another name.
        whole = dense.untyped_storage().nbytes() == dense.nbytes and storage not in storages
        kept[name] = dense if whole else dense.clone()
        storages.add(storage)
    return kept, ties


def _same(loaded: Tensor, tensor: Tensor) -> bool:
    """Equal to the bit; NaN, which equals nothing, does not come here."""
    same_kind = loaded.dtype == tensor.dtype and loaded.shape == tensor.shape
    return same_kind and torch.equal(_bytes(loaded), _bytes(tensor.cpu()))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)
