"""Checkpoints in shards: every process writes its own part, and the whole is verified like others.

For states that no single process can hold. torch.distributed.checkpoint lays the files out and
loads them into any number of processes; a folder gets its name only when all have written, every
file is on the disk and its checksum in the manifest. What does not need this is better off with
:class:`~surefoot.checkpoint.CheckpointStore`: its files are open to any other program, and loading
them runs no code, where the index of these (``.metadata``) is a pickle.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from torch import distributed
from torch.distributed import checkpoint as torch_checkpoint

from surefoot.checkpoint.checkpoint import Checkpoint, Rejected
from surefoot.checkpoint.disk import sync_folder
from surefoot.checkpoint.manifest import Manifest
from surefoot.checkpoint.retention import NAME, delete, number_of, outdated
from surefoot.checkpoint.store import CheckpointStore
from surefoot.errors import CheckpointError, ConfigError

__all__ = ["load", "save"]

T = TypeVar("T")
_SAVING = ".saving-"


def save(folder: Path | str, step: int, state: Mapping[str, Any], *, keep_last: int = 3) -> Path:
    """Save a state of which every process holds a part; all of them call, and all wait.

    Args:
        folder: one that all processes see; the checkpoint is a folder in it.
        step: optimizer step it is taken after.
        state: nested dicts and lists of tensors, in shards (``DTensor``) or alike in all processes,
            and plain values. As ``get_state_dict`` of torch.distributed.checkpoint gives it.
        keep_last: how many of the newest to keep, at least 1.

    Returns:
        The checkpoint's folder, once it is safely on the disk.

    Raises:
        CheckpointError: a process could not write; what was saved before is intact. In all of them.

    >>> import tempfile, torch
    >>> folder = tempfile.mkdtemp()
    >>> save(folder, 7, {"w": torch.ones(2)}).name
    '00001-step-7'
    >>> state = {"w": torch.zeros(2)}
    >>> load(folder, state).step, state["w"].tolist()
    (7, [1.0, 1.0])
    """
    if keep_last < 1:
        raise ConfigError(f"keep_last={keep_last}: at least 1, or nothing would be kept.")
    home = Path(folder)
    what = f"checkpoint of step {step} could not be saved in {home}"
    beside = home / _of_first(lambda: _begun(home, step), what)
    try:
        _alike(lambda: _write(state, beside), what)
        path = home / _of_first(lambda: _sealed(beside, step), what)
    except BaseException:
        if _rank() == 0:
            shutil.rmtree(beside, ignore_errors=True)
        raise
    if _rank() == 0:
        found = sorted(_folders(home), key=number_of, reverse=True)
        for old in outdated(found, keep_last=keep_last, keep_every=None):
            delete(old)
    return path


def load(
    folder: Path | str,
    state: dict[str, Any],
    *,
    on_rejected: Callable[[Rejected], object] | None = None,
) -> Checkpoint:
    """Fill a state from the newest checkpoint whose every byte is what was saved; all call.

    Args:
        folder: as for :func:`save`.
        state: as it was saved, with any values; it is changed in place. The number of processes,
            and with it the shards, may be another.
        on_rejected: told, in every process, of the damaged ones that were passed over.

    Raises:
        CheckpointError: there is no good one, or it holds another state. In all processes.
    """
    home = Path(folder)

    def newest() -> tuple[str, list[tuple[str, str]]]:
        store = CheckpointStore(home)
        found = store.newest()
        rejected = [(one.path.name, one.reason) for one in store.rejected]
        if found is None:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in rejected)
            raise CheckpointError(f"there is no good checkpoint. {reasons}".strip(), path=home)
        return found.path.name, rejected

    name, rejected = _of_first(newest, f"loading from {home}")
    for bad, reason in rejected if on_rejected is not None else ():
        on_rejected(Rejected(home / bad, reason))  # type: ignore[misc]
    found = Checkpoint(home / name, Manifest.read(home / name))
    _alike(lambda: _read(state, found.path), f"loading {found.path}")
    return found


def _begun(home: Path, step: int) -> str:
    home.mkdir(parents=True, exist_ok=True)
    for left in home.glob(f"{_SAVING}*"):
        shutil.rmtree(left, ignore_errors=True)
    number = max(map(number_of, _folders(home)), default=0) + 1
    beside = home / f"{_SAVING}{number:05d}-step-{step}"
    beside.mkdir()
    return beside.name


def _sealed(beside: Path, step: int) -> str:
    Manifest.seal(beside, step=step, metric=None, measured_on=None, best=False)
    path = beside.with_name(beside.name.removeprefix(_SAVING))
    beside.rename(path)
    sync_folder(path.parent)
    return path.name


def _write(state: Mapping[str, Any], beside: Path) -> None:
    writer = torch_checkpoint.FileSystemWriter(beside)
    with _alone_is_fine():
        torch_checkpoint.save(dict(state), storage_writer=writer, no_dist=not _several())


def _read(state: dict[str, Any], path: Path) -> None:
    reader = torch_checkpoint.FileSystemReader(path)
    with _alone_is_fine():
        torch_checkpoint.load(state, storage_reader=reader, no_dist=not _several())


@contextmanager
def _alone_is_fine() -> Generator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable")
        yield


def _folders(home: Path) -> list[Path]:
    return [path for path in home.iterdir() if NAME.fullmatch(path.name)]


# -- together --------------------------------------------------------------------------------------


def _several() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _rank() -> int:
    return distributed.get_rank() if _several() else 0


def _of_first(call: Callable[[], T], what: str) -> T:
    """What the first process's call returns; what went wrong there goes wrong everywhere."""
    box: list[Any] = [None, ""]
    if _rank() == 0:
        try:
            box[0] = call()
        except (CheckpointError, OSError) as problem:
            box[1] = str(problem)
    if _several():
        distributed.broadcast_object_list(box, src=0)
    if box[1]:
        raise CheckpointError(f"{what}: {box[1]}")
    return box[0]


def _alike(call: Callable[[], None], what: str) -> None:
    """torch raises in every process what went wrong in any, as one error that holds all."""
    try:
        call()
    except (torch_checkpoint.CheckpointException, RuntimeError, OSError, ValueError) as problem:
        failures = getattr(problem, "failures", {})
        each = [f"process {rank}: {error[0]}" for rank, error in sorted(failures.items())]
        raise CheckpointError(f"{what}: {'; '.join(each) or problem}") from problem
