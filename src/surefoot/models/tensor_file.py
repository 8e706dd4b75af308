"""Tensors from a file of somebody else's weights; no code in it is ever run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from surefoot.errors import CheckpointError

__all__ = ["first_line", "read_tensors"]

_UNREADABLE = (EOFError, OSError, RuntimeError, ValueError, SafetensorError)
_SHOWN = 4


def read_tensors(
    path: Path, *, doing: str, wrappers: Sequence[str] = (), pickled: str = ""
) -> dict[str, Tensor]:
    """The tensors of a ``.safetensors`` file, or of a torch file that holds nothing else.

    Args:
        path: of the file.
        doing: how messages begin, such as ``loading weights of resnet18 from a.pth``.
        wrappers: names that a torch file may keep its tensors below; each is looked for in what
            the ones before it gave.
        pickled: what is said of a file with other objects in it, where that is more than what torch
            says.

    Raises:
        CheckpointError: the file cannot be read, or holds something else.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "weights.pth"
    >>> torch.save({"epoch": 3, "state_dict": {"bias": torch.ones(2)}}, path)
    >>> read_tensors(path, doing="reading", wrappers=["model", "state_dict"])
    {'bias': tensor([1., 1.])}
    """
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        said = f": {pickled}" if pickled else f" failed: {first_line(error)}"
        raise CheckpointError(f"{doing}{said}", path=path) from error
    except _UNREADABLE as error:
        raise CheckpointError(f"{doing} failed: {first_line(error)}", path=path) from error
    for wrapper in wrappers:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        inside = f" with {', '.join(map(str, list(state)[:_SHOWN]))}" if _has_parts(state) else ""
        raise CheckpointError(
            f"{doing}: expected a mapping of names to tensors, a plain state_dict; the file holds "
            f"a {type(state).__name__}{inside}.",
            path=path,
        )
    return {str(name): value for name, value in state.items()}


def _has_parts(state: Any) -> bool:
    return isinstance(state, Mapping | list | tuple) and bool(state)


def first_line(error: BaseException) -> str:
    """The type of an error and the first line of what it says.

    >>> first_line(ValueError("too long\\nand more"))
    'ValueError: too long'
    """
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
