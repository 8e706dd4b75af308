"""Where the random numbers of a run stand: torch, CUDA, NumPy's global generator, Python."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from surefoot.errors import CheckpointError

__all__ = ["capture_rng", "restore_rng"]

_VERSION = 1


def capture_rng() -> dict[str, Any]:
    """The global random states of this process, as plain values and CPU tensors.

    CUDA generators are in it once CUDA is in use; asking them earlier would start CUDA. Generators
    of one's own (``torch.Generator``, ``numpy.random.Generator``) and those of data loader workers
    are not in it.

    >>> state = capture_rng()
    >>> first = random.random(), float(torch.rand(())), np.random.rand()
    >>> restore_rng(state)
    ()
    >>> (random.random(), float(torch.rand(())), np.random.rand()) == first
    True
    """
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return {
        "version": _VERSION,
        "python": random.getstate(),
        "numpy": _with_lists(np.random.get_state(legacy=False)),
        "torch": torch.get_rng_state(),
        "cuda": [state.cpu() for state in cuda],
    }


def restore_rng(state: Mapping[str, Any]) -> tuple[str, ...]:
    """Put back what :func:`capture_rng` gave.

    Args:
        state: the captured states; all of them are looked at before the first is put back.

    Returns:
        A sentence for each thing that could not be put back, such as the generator of a device
        that is not there; empty where everything was.

    Raises:
        CheckpointError: it is no such state, or one of a newer version.
    """
    version = state.get("version")
    if version != _VERSION:
        raise CheckpointError(
            f"random states of version {version!r}; this surefoot reads {_VERSION}. Give what "
            "capture_rng() returned, or update surefoot."
        )
    before = capture_rng()
    try:
        _set(state)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as damage:
        _set(before)
        raise CheckpointError(f"random states are damaged: {damage!r}.") from damage
    return _restore_cuda(state.get("cuda", []))


def _set(state: Mapping[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(_with_arrays(state["numpy"]))
    torch.set_rng_state(state["torch"].cpu())


def _restore_cuda(states: list[torch.Tensor]) -> tuple[str, ...]:
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for device, state in enumerate(states[:here]):
        torch.cuda.set_rng_state(state.cpu(), device)
    if len(states) == here or not states:
        return ()
    return (
        f"random states of {len(states)} CUDA devices were saved and {here} are here: random "
        "numbers drawn on a device are not those of the run that was saved.",
    )


def _with_lists(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_lists(child) for key, child in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value


def _with_arrays(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_arrays(child) for key, child in value.items()}
    return np.asarray(value, dtype=np.uint64) if isinstance(value, list) else value
