"""A timm model's weights from a local file, into its pyramid: all of them, or an error."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from importlib import import_module
from pathlib import Path

from torch import Tensor, nn

from surefoot.errors import CheckpointError
from surefoot.models.dino import WRAPPERS
from surefoot.models.tensor_file import read_tensors

__all__ = ["load_timm_weights"]


def load_timm_weights(net: nn.Module, name: str, path: Path) -> int:
    """Loads a state dict of the whole model, or of its pyramid alone, as timm or the model's
    authors name things.

    timm's own loading passes over what a file does not have; a backbone that is partly random
    trains, and ends somewhere below, without a word.

    Args:
        net: what ``timm.create_model(name, features_only=True)`` gave.
        name: of timm.
        path: .safetensors, or a torch file of tensors only.

    Returns:
        How many tensors were loaded.

    Raises:
        CheckpointError: the file cannot be read, or lacks a tensor, or has one of another shape.
    """
    doing = f"loading weights of {name} from {path}"
    read = read_tensors(path, doing=doing, wrappers=WRAPPERS)
    state = {k.removeprefix("module."): v for k, v in read.items()}
    own = net.state_dict()
    # Counters of batches: nothing is computed from them, and older files have none.
    needed = [n for n in own if not n.endswith("num_batches_tracked")]
    found = _found(own, state)
    if not found.keys() >= set(needed):
        found = _found(own, _as_timm_names(name, state))
    missing = [n for n in needed if n not in found]
    wrong = [n for n in found if found[n].shape != own[n].shape]
    for names, what in ((missing, "it has no"), (wrong, "it has another shape of")):
        if names:
            _refuse(name, path, what, names, len(needed))
    net.load_state_dict(own | found)
    return len(found)


def _refuse(name: str, path: Path, what: str, names: list[str], needed: int) -> None:
    fitting = needed - len(names)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    raise CheckpointError(
        f"loading weights of {name} from {path}: {fitting} of the {needed} tensors "
        f"({100 * fitting // needed} %) fit; {what} {', '.join(names[:3])}{more}. A backbone that "
        "is partly random is refused: give the file of the same model, or start from random "
        "weights.",
        path=path,
    )


def _found(own: Iterable[str], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: state[m] for n in own for m in _names_in_whole(n) if m in state}


def _as_timm_names(name: str, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """From the names of a model's authors to those of timm's whole model."""
    import timm

    module = import_module(timm.model_entrypoint(name.split(".")[0]).__module__)
    if not hasattr(module, "checkpoint_filter_fn"):
        return state
    try:
        return module.checkpoint_filter_fn(dict(state), timm.create_model(name))
    except (KeyError, RuntimeError):  # it looks up what a file of another network does not have
        return state


def _names_in_whole(name: str) -> Iterator[str]:
    """A tensor's name in the pyramid, then what it may be called in the whole model.

    timm's pyramids pull the first level of containers apart (``stages.0.`` becomes ``stages_0.``)
    or hold the whole model as ``body`` or ``model``.
    """
    yield re.sub(r"^(\w+)_(\d+)\.", r"\1.\2.", name)
    yield re.sub(r"^(body|model)\.", "", name)
    yield name
