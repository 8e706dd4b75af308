"""A folder of checkpoints, of which at least one is always good."""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from surefoot.checkpoint.checkpoint import Checkpoint, Listed, Rejected
from surefoot.checkpoint.disk import free_bytes, sync_folder
from surefoot.checkpoint.draft import Draft
from surefoot.checkpoint.manifest import STATE, WEIGHTS_SUFFIX, Manifest
from surefoot.checkpoint.outcome import BackOff, SaveOutcome
from surefoot.checkpoint.retention import DELETING, NAME, delete, looks_sound, number_of, outdated
from surefoot.checkpoint.state import write_state
from surefoot.checkpoint.tensors import bytes_of
from surefoot.checkpoint.weights import write_weights
from surefoot.errors import CheckpointError, ConfigError

__all__ = ["CheckpointStore"]

_SAVING = ".saving-"
_BESIDES = 2**16
"""Bytes of a checkpoint that are no tensor's."""


class CheckpointStore:
    """Saves checkpoints so that a kill, a full disk or a flipped bit never costs the run.

    A checkpoint is a folder: one safetensors file for each set of weights, ``state.pt`` for the
    rest, and a manifest with the checksum of each. It is written beside, flushed to the disk, read
    back and compared, and only then renamed into place; what a killed save left is swept away by
    the next one. One process writes to a folder at a time.

    Kept are the last ``keep_last`` that look sound, the newest one saved as best, and the first at
    or after each multiple of ``keep_every`` steps. An older best goes only when a newer sound one
    stands. What cannot be deleted is tried again at the next save.

    Args:
        folder: where the checkpoints lie; made at the first save.
        keep_last: how many of the newest to keep, at least 1.
        keep_every: steps between those that are kept for good; none are where it is not given.
        clock: seconds, for tests.

    Raises:
        ConfigError: ``keep_last`` or ``keep_every`` below 1.

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

    def __init__(
        self,
        folder: Path | str,
        *,
        keep_last: int = 3,
        keep_every: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if keep_last < 1:
            raise ConfigError(f"keep_last={keep_last}: at least 1, or nothing would be kept.")
        if keep_every is not None and keep_every < 1:
            raise ConfigError(f"keep_every={keep_every}: steps, at least 1, or None.")
        self.folder = Path(folder)
        self.keep_last, self.keep_every = keep_last, keep_every
        self.rejected = ()
        self._clock, self._back_off = clock, BackOff(clock)

    # -- saving ----------------------------------------------------------------------------------

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
            CheckpointError: weights or moments that are not finite, or a disk that refused; what
                was saved before is intact, and the run can go on and try again.
            UsageError: arguments that cannot be right, whatever the disk does.
        """
        return self.write(
            Draft.of(
                step, state, weights=weights, metric=metric, measured_on=measured_on, best=best
            )
        )

    def try_save(self, step: int, state: Mapping[str, Any], **arguments: Any) -> SaveOutcome:
        """The same, but a save that fails does not end the run: the outcome says what happened.

        The checkpoints before are intact. The next save tries again anyway; :attr:`retry_due` says
        when trying sooner is worth it:

            if step % interval == 0 or store.retry_due:
                outcome = store.try_save(step, state, weights=...)
                journal.event("checkpoint", **outcome.to_dict())

        Args:
            step: optimizer step it is taken after.
            state: what is no weight.
            arguments: the others of :meth:`save`.

        Raises:
            UsageError: arguments that cannot be right, whatever the disk does.
        """
        return self.try_write(Draft.of(step, state, **arguments))

    @property
    def retry_due(self) -> bool:
        """Whether the last save failed and a pause after it is over: 10 s after the first failure,
        twice as long after each further one, and never more than 10 minutes.
        """
        return self._back_off.due

    def try_write(self, draft: Draft) -> SaveOutcome:
        """:meth:`try_save` of a draft."""
        began = self._clock()
        try:
            path = self.write(draft)
        except CheckpointError as refused:
            return SaveOutcome(
                step=draft.step,
                path=None,
                problem=str(refused),
                retry_in=self._back_off.failed(),
                failures=self._back_off.failures,
                seconds=self._clock() - began,
            )
        return SaveOutcome(step=draft.step, path=path, seconds=self._clock() - began)

    def write(self, draft: Draft) -> Path:
        """:meth:`save` of a draft."""
        try:
            draft.check_finite()
        except CheckpointError as refused:
            raise CheckpointError(f"{refused} {self._stands()}", path=self.folder) from refused
        try:
            self._check_space(draft)
            path = self._write(draft)
        except OSError as problem:
            raise CheckpointError(
                f"checkpoint of step {draft.step} could not be saved in {self.folder}: "
                f"{problem.strerror or problem}. {self._stands()} Look at the free space and the "
                "permissions, and save again.",
                path=self.folder,
            ) from problem
        self._back_off.succeeded()
        for old in outdated(
            self._newest_first(), keep_last=self.keep_last, keep_every=self.keep_every
        ):
            delete(old)
        return path

    def _check_space(self, draft: Draft) -> None:
        needed = bytes_of([draft.state, *draft.weights.values()]) + _BESIDES
        free = free_bytes(self.folder)
        if needed > free:
            raise OSError(
                errno.ENOSPC,
                f"it takes {needed / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free, so nothing "
                "was written",
            )

    def _write(self, draft: Draft) -> Path:
        """Write beside, verify, rename; nothing is left where that fails."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        number = max((number_of(path) for path in self._folders()), default=0) + 1
        path = self.folder / f"{number:05d}-step-{draft.step}"
        beside = path.with_name(_SAVING + path.name)
        beside.mkdir()
        try:
            write_state(beside / STATE, draft.state)
            for name, tensors in draft.weights.items():
                write_weights(beside / f"{name}{WEIGHTS_SUFFIX}", tensors)
            Manifest.seal(beside, **draft.facts)
            beside.rename(path)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        sync_folder(self.folder)
        return path

    def _sweep(self) -> None:
        """Delete what a killed save or a killed deletion left."""
        for path in list(self.folder.iterdir()):
            if path.name.startswith((_SAVING, DELETING)):
                shutil.rmtree(path, ignore_errors=True)

    def _stands(self) -> str:
        """What a failed save did not touch."""
        try:
            sound = next((path for path in self._newest_first() if looks_sound(path)), None)
        except CheckpointError:
            return "The checkpoints saved before were not touched."
        if sound is None:
            return "There is no earlier checkpoint."
        return f"The earlier checkpoint {sound.name} is intact."

    # -- loading ---------------------------------------------------------------------------------

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

    def listing(self, *, verify: bool = False) -> list[Listed]:
        """All checkpoints, oldest first, the bad ones too.

        Args:
            verify: read every file and compare its checksum; else only sizes are compared.

        Raises:
            CheckpointError: the folder cannot be read.
        """
        return [Listed.of(path, verify=verify) for path in reversed(self._newest_first())]

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

    def _folders(self) -> Iterator[Path]:
        return (p for p in self.folder.iterdir() if NAME.fullmatch(p.name))

    def _newest_first(self) -> list[Path]:
        try:
            return sorted(self._folders(), key=number_of, reverse=True)
        except FileNotFoundError:
            return []
        except OSError as problem:
            raise CheckpointError(
                f"checkpoints in {self.folder} cannot be read: {problem.strerror}.",
                path=self.folder,
            ) from problem
