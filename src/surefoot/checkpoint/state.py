"""Everything of a run that is no weight: written so that reading it back runs no code."""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO, FileIO
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from surefoot.checkpoint.disk import HashedFile, sha256_of
from surefoot.checkpoint.tensors import listed, nonfinite, tensors_in
from surefoot.errors import CheckpointError, UsageError

__all__ = ["check_finite_state", "check_state", "read_state", "write_state"]

_LEAVES = (type(None), bool, int, float, str, Tensor, nn.Parameter)
_CONTAINERS = (dict, OrderedDict, list, tuple)
# What pickling and weights-only unpickling of an object that is not made for it raises.
_REFUSALS = (
    pickle.PickleError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def check_state(state: Mapping[str, Any]) -> None:
    """Refuse what could not be loaded again with ``weights_only=True``.

    Numbers, strings, None, tensors, and dicts, lists and tuples of them can; so can the few other
    types that torch's restricted loader knows.

    Raises:
        UsageError: something else is in it; the message names the place.

    >>> check_state({"optimizer": {"lr": Path("x")}})
    Traceback (most recent call last):
        ...
    surefoot.errors.UsageError: checkpoint: cannot be loaded again without running code:
    state['optimizer']['lr'] (...Path). ...
    """
    found = [f"{place} ({_name_of(value)})" for place, value in _foreign(state, "state", set())]
    if found:
        raise UsageError(
            f"checkpoint: cannot be loaded again without running code: {listed(found)}. Save plain "
            "values in their place: float(...) of a NumPy number, a tensor of an array, the "
            "state_dict() of an object, the name of a function."
        )


def check_finite_state(state: Mapping[str, Any]) -> None:
    """Refuse a state that would make the weights bad as soon as a run goes on from it.

    Raises:
        CheckpointError: a floating or complex tensor with a NaN or an Inf in it.

    >>> check_finite_state({"optimizer": {"exp_avg": torch.tensor([1.0, float("nan")])}})
    Traceback (most recent call last):
        ...
    surefoot.errors.CheckpointError: checkpoint: 1 tensor of the state is not finite:
    state['optimizer']['exp_avg']. It is not saved: ...
    """
    if bad := nonfinite(tensors_in(state)):
        few = len(bad) == 1
        these = "1 tensor of the state is" if few else f"{len(bad)} tensors of the state are"
        raise CheckpointError(
            f"checkpoint: {these} not finite: {listed(bad)}. It is not saved: a run that goes on "
            "from it is lost. Find the step that made it so. What holds NaN or Inf on purpose can "
            "be saved as plain numbers: tolist()."
        )


def _foreign(value: Any, place: str, above: set[int]) -> Iterator[tuple[str, Any]]:
    """Every place below ``value`` whose type the restricted loader does not take."""
    kind = type(value)
    if kind in _LEAVES or id(value) in above:
        return
    if kind not in _CONTAINERS:
        if not _loads_again(value):
            yield place, value
        return
    above = above | {id(value)}
    if isinstance(value, Mapping):
        for key, child in cast(Mapping[Any, Any], value).items():
            yield from _foreign(key, f"{place}: the key {key!r}", above)
            yield from _foreign(child, f"{place}[{key!r}]", above)
        return
    for number, child in enumerate(cast(Sequence[Any], value)):
        yield from _foreign(child, f"{place}[{number}]", above)


def _loads_again(value: Any) -> bool:
    buffer = BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except _REFUSALS:
        return False
    return True


def _name_of(value: Any) -> str:
    kind = type(value)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state and read back what the file holds.

    Args:
        path: the new file.
        state: what :func:`check_state` has seen.

    Raises:
        OSError: the disk refused, or gave back something else.
    """
    with FileIO(path, "wb") as file:
        hashed = HashedFile(file)
        try:
            torch.save(dict(state), cast(Any, hashed))
        except RuntimeError as consequence:
            if hashed.problem is None:
                raise
            raise hashed.problem from consequence
    if sha256_of(path) != hashed.sha256:
        raise OSError(f"{path.name} holds other bytes than were written")
    read_state(path, lazily=True)


def read_state(
    path: Path, *, device: torch.device | str = "cpu", lazily: bool = False
) -> dict[str, Any]:
    """The inverse of :func:`write_state`; no code in the file is run.

    Args:
        path: the file.
        device: where tensors go.
        lazily: map tensors into memory instead of reading them.

    Raises:
        OSError: no such file, or no file of this kind, or objects in it that would run code.
    """
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):  # what torch.save wrote before it wrote archives
            raise OSError(f"{path.name} is no archive of torch.save (no code in the file was run)")
    try:
        return torch.load(path, map_location=device, weights_only=True, mmap=lazily)
    except _REFUSALS as refusal:
        raise OSError(
            f"{path.name} was refused by the loader that takes plain values only (no code in the "
            "file was run)"
        ) from refusal
