"""A folder of checkpoints, of which at least one is always good."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from surefoot.checkpoint.checkpoint import Checkpoint, Rejected
from surefoot.checkpoint.disk import sync_folder
from surefoot.checkpoint.manifest import STATE, WEIGHTS_SUFFIX, Manifest
from surefoot.checkpoint.state import check_state, write_state
from surefoot.checkpoint.weights import check_weights, write_weights
from surefoot.errors import CheckpointError, ConfigError, UsageError

__all__ = ["CheckpointStore"]

_NAME = re.compile(r"(\d+)-step-(\d+)")
_WEIGHTS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SAVING, _DELETING = ".saving-", ".deleting-"


class CheckpointStore:
    """Saves checkpoints so that a kill, a full disk or a flipped bit never costs the run.

    A checkpoint is a folder: one safetensors file for each set of weights, ``state.pt`` for the
    rest, and a manifest with the checksum of each. It is written beside, flushed to the disk, read
    back and compared, and only then renamed into place; what a killed save left is swept away by
    the next one. One process writes to a folder at a time.

    Kept are the last ``keep_last`` that look sound, and the newest one saved as best. An older best
    goes only when a newer sound one stands. What cannot be deleted is tried again at the next save.

    Args:
        folder: where the checkpoints lie; made at the first save.
        keep_last: how many of the newest to keep, at least 1.

    Raises:
        ConfigError: ``keep_last`` below 1.

    >>> import tempfile, torch
    >>> store = CheckpointStore(tempfile.mkdtemp(), keep_last=2)
    >>> model = torch.nn.Linear(2, 1)
    >>> path = store.save(
    ...     100, {"epoch": 1}, weights={"model": model.state_dict()}, metric=0.52, best=True
    ... )
    >>> path.name
    '00001-step-100'
    >>> newest = store.newest()
    >>> newest.step, newest.metric, newest.measured_on, newest.load_state()
    (100, 0.52, 'model', {'epoch': 1})
    >>> model.load_state_dict(newest.load_weights("model"))
    <All keys matched successfully>
    """

    rejected: tuple[Rejected, ...]
    """What the last :meth:`newest` or :meth:`best` passed over, newest first, and why."""

    def __init__(self, folder: Path | str, *, keep_last: int = 3) -> None:
        if keep_last < 1:
            raise ConfigError(f"keep_last={keep_last}: at least 1, or nothing would be kept.")
        self.folder = Path(folder)
        self.keep_last = keep_last
        self.rejected = ()

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        *,
        weights: Mapping[str, Mapping[str, Tensor]],
        metric: float | None = None,
        measured_on: str | None = None,
        best: bool = False,
    ) -> Path:
        """Save a checkpoint and return its folder once it is safely on the disk.

        Args:
            step: optimizer step it is taken after.
            state: what is no weight: optimizer, schedule, guard, random states, position. Plain
                values and tensors, see :func:`surefoot.checkpoint.check_state`.
            weights: state dicts by name, such as ``{"model": ..., "ema": ...}``.
            metric: value it is judged by.
            measured_on: which of ``weights`` the metric was measured on; may be left out where
                there is only one.
            best: whether it is the best so far; needs a metric that is a number.

        Raises:
            CheckpointError: weights that are not finite, or a disk that refused; what was saved
                before is intact, and the run can go on and try again.
            UsageError: arguments that cannot be right, whatever the disk does.
        """
        if step < 0:
            raise UsageError(f"checkpoint: step {step}; steps are counted from 0.")
        facts = {"step": step, **_judged(weights, metric, measured_on, best)}
        check_state(state)
        try:
            for name, tensors in weights.items():
                check_weights(name, tensors)
        except CheckpointError as refused:
            raise CheckpointError(f"{refused} {self._stands()}", path=self.folder) from refused
        try:
            path = self._write(facts, state, weights)
        except OSError as problem:
            raise CheckpointError(
                f"checkpoint of step {step} could not be saved in {self.folder}: "
                f"{problem.strerror or problem}. {self._stands()} Look at the free space and the "
                "permissions, and save again.",
                path=self.folder,
            ) from problem
        self._retain()
        return path

    def newest(self) -> Checkpoint | None:
        """The newest good checkpoint, verified to the bit; None where there is none.

        Raises:
            CheckpointError: the folder cannot be read.
        """
        return self._first_good(best=False)

    def best(self) -> Checkpoint | None:
        """The newest good one of those saved as best; None where there is none.

        Raises:
            CheckpointError: the folder cannot be read.
        """
        return self._first_good(best=True)

    def _first_good(self, *, best: bool) -> Checkpoint | None:
        rejected: list[Rejected] = []
        good = None
        for path in self._newest_first():
            try:
                manifest = Manifest.read(path)
                if best and not manifest.best:
                    continue
                manifest.check_sums(path)
            except CheckpointError as refused:
                rejected.append(Rejected(path, str(refused)))
                continue
            good = Checkpoint(path, manifest)
            break
        self.rejected = tuple(rejected)
        return good

    def _write(
        self,
        facts: Mapping[str, Any],
        state: Mapping[str, Any],
        weights: Mapping[str, Mapping[str, Tensor]],
    ) -> Path:
        """Write beside, verify, rename; nothing is left where that fails."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        number = max((_number(path) for path in self._folders()), default=0) + 1
        path = self.folder / f"{number:05d}-step-{facts['step']}"
        beside = path.with_name(_SAVING + path.name)
        beside.mkdir()
        try:
            write_state(beside / STATE, state)
            for name, tensors in weights.items():
                write_weights(beside / f"{name}{WEIGHTS_SUFFIX}", tensors)
            Manifest.seal(beside, **facts)
            beside.rename(path)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        sync_folder(self.folder)
        return path

    def _folders(self) -> Iterator[Path]:
        return (p for p in self.folder.iterdir() if _NAME.fullmatch(p.name))

    def _newest_first(self) -> list[Path]:
        try:
            return sorted(self._folders(), key=_number, reverse=True)
        except FileNotFoundError:
            return []
        except OSError as problem:
            raise CheckpointError(
                f"checkpoints in {self.folder} cannot be read: {problem.strerror}.",
                path=self.folder,
            ) from problem

    def _sweep(self) -> None:
        """Delete what a killed save or a killed deletion left."""
        for path in list(self.folder.iterdir()):
            if path.name.startswith((_SAVING, _DELETING)):
                shutil.rmtree(path, ignore_errors=True)

    def _retain(self) -> None:
        folders = self._newest_first()
        sound = [path for path in folders if _sound(path)]
        keep = set(sound[: self.keep_last])
        oldest = min((_number(path) for path in keep), default=0)
        for path in folders:
            if _saved_as_best(path):
                keep.add(path)
                if path in sound:
                    break
        for path in folders:
            # Nothing newer than what is kept goes, damaged or not: someone may want to look at it.
            if path not in keep and _number(path) < oldest:
                self._delete(path)

    def _delete(self, path: Path) -> None:
        away = path.with_name(_DELETING + path.name)
        with suppress(OSError):  # tried again at the next save
            # Out of sight first: a kill half-way leaves no half checkpoint.
            path.rename(away)
            shutil.rmtree(away)

    def _stands(self) -> str:
        """What a failed save did not touch."""
        try:
            sound = next((path for path in self._newest_first() if _sound(path)), None)
        except CheckpointError:
            return "The checkpoints saved before were not touched."
        if sound is None:
            return "There is no earlier checkpoint."
        return f"The earlier checkpoint {sound.name} is intact."


def _judged(
    weights: Mapping[str, Any], metric: float | None, measured_on: str | None, best: bool
) -> dict[str, Any]:
    """What the manifest says of the metric; refuses what it could not say."""
    if not weights:
        raise UsageError("checkpoint: no weights to save; give at least weights={'model': ...}.")
    if odd := [name for name in weights if not _WEIGHTS_NAME.fullmatch(name)]:
        raise UsageError(f"checkpoint: weights {odd}: letters, digits, - and _ make a name.")
    if measured_on is not None and measured_on not in weights:
        raise UsageError(
            f"checkpoint: measured_on={measured_on!r} is none of the weights {sorted(weights)}."
        )
    if best and (metric is None or math.isnan(metric)):
        raise UsageError(f"checkpoint: saved as best with the metric {metric}; best by what?")
    if metric is None:
        return {"metric": None, "measured_on": None, "best": False}
    if measured_on is None and len(weights) > 1:
        raise UsageError(
            f"checkpoint: the metric was measured on one of {sorted(weights)}; say which by "
            "measured_on=."
        )
    return {
        "metric": float(metric),
        "measured_on": measured_on or next(iter(weights)),
        "best": best,
    }


def _number(path: Path) -> int:
    return int(path.name.partition("-")[0])


def _sound(path: Path) -> bool:
    """Whether a checkpoint looks whole; its bytes are not read."""
    try:
        Manifest.read(path).check_sizes(path)
    except CheckpointError:
        return False
    return True


def _saved_as_best(path: Path) -> bool:
    try:
        return Manifest.read(path).best
    except CheckpointError:
        return False
