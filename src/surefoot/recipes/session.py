"""A run's folder while it is being written: journal, checkpoints, and the way back into both."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from surefoot.checkpoint import (
    BackgroundSaver,
    Checkpoint,
    CheckpointStore,
    Rejected,
    SaveOutcome,
)
from surefoot.checkpoint.signals import Interrupted
from surefoot.errors import CheckpointError, JournalError, TrainingDiverged
from surefoot.guard import Stall, StallWatch
from surefoot.journal import JournalWriter
from surefoot.recipes.run_folder import CHECKPOINTS, CONFIG, JOURNAL
from surefoot.recipes.verdict import Rounds
from surefoot.records import StepRecord, Verdict

__all__ = ["SAVE_SECONDS", "Bystander", "PatientJournal", "Saving", "Session", "find_checkpoint"]


SAVE_SECONDS = 600.0
"""A checkpoint is due after so long, in the middle of an epoch, too."""


@dataclass(frozen=True)
class Saving:
    """When checkpoints are written within an epoch, and which are kept."""

    steps: int = 0
    """Optimizer steps between two; 0: only :data:`SAVE_SECONDS` count."""
    keep_last: int = 3
    """As in :class:`CheckpointStore`."""
    keep_every: int = 0
    """As in :class:`CheckpointStore`; 0: none."""
    background: bool = False
    """Write them in a thread, while the training goes on."""


class Session:
    """Opens a run folder's journal and checkpoints, and says, when the run is cut short, where it
    can go on.

    A disk that refuses does not end the run: a checkpoint or a line that could not be written is
    told, and tried again.

    Args:
        folder: the run folder; it exists.
        recipe: name of the verb, as ``surefoot train <recipe>``.
        run: what the journal's header says of the run.
        say: prints a line for a person; to standard error where it is not given.
        interject: prints a line while a step's bar stands there; ``say`` where it is not given.
        saving: how often checkpoints are written, and which are kept.
        clock: seconds, for tests.
    """

    _saved_at: float | None
    """When the last save was; None where it failed."""
    _outcome: SaveOutcome | None = None
    """Of the last save that is over."""

    def __init__(
        self,
        folder: Path,
        *,
        recipe: str,
        run: Mapping[str, Any],
        say: Callable[[str], object] | None = None,
        interject: Callable[[str], object] | None = None,
        saving: Saving | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self._saving = folder, saving or Saving()
        self.store = CheckpointStore(
            folder / CHECKPOINTS,
            keep_last=self._saving.keep_last,
            keep_every=self._saving.keep_every or None,
            clock=clock,
        )
        self._saver = BackgroundSaver(self.store, on_outcome=self._told)
        self._steps_due = False
        self._say = say or (lambda line: sys.stderr.write(f"{line}\n"))
        writer = JournalWriter(folder / JOURNAL, run={"recipe": recipe, **run})
        self.journal = PatientJournal(writer, self._say)
        self.stalls = StallWatch(on_stall=self._stalled)
        """Told of every step; it looks while the session is open."""
        self._recipe, self._clock, self._saved_at = recipe, clock, clock()
        self._rounds = Rounds(folder, self._say, self.journal.event, interject)

    def step(self, record: StepRecord, **extra: Any) -> None:
        """Write down what became of a step."""
        self.journal.write(record, **extra)
        self.stalls.step()
        self._saver.poll()
        self._rounds.step()
        if record.verdict is not Verdict.ACCUMULATED and self._saving.steps:
            self._steps_due |= (record.step + 1) % self._saving.steps == 0

    @property
    def save_due(self) -> bool:
        """Whether a checkpoint is worth it now: the last one failed and a pause is over, it is
        :data:`SAVE_SECONDS` old, or so many steps were made.
        """
        if self._saved_at is None and not self._steps_due:
            return self._saver.retry_due
        old = self._saved_at is not None and self._clock() - self._saved_at >= SAVE_SECONDS
        return old or self._steps_due

    def save(
        self, step: int, state: Mapping[str, Any], *, wait: bool = True, **arguments: Any
    ) -> SaveOutcome | None:
        """Save a checkpoint, or tell why not; see :meth:`CheckpointStore.try_save`.

        Args:
            step: optimizer step it is taken after.
            state: what is no weight.
            wait: until it is on the disk; else, where they are written in a thread, it may be on
                its way, and None is returned.
            arguments: the others of :meth:`CheckpointStore.save`.

        Raises:
            UsageError: arguments that cannot be right, whatever the disk does.
        """
        self._steps_due = False
        if self._saving.background:
            self._saver.wait()
            self._saved_at, self._outcome = self._clock(), None
            self._saver.save(step, state, **arguments)
            if wait:
                self._saver.wait()
        else:
            self._told(self.store.try_save(step, state, **arguments))
        return self._outcome

    def _told(self, outcome: SaveOutcome) -> None:
        self._outcome = outcome
        self._saved_at = self._clock() if outcome.saved else None
        self.journal.event("checkpoint", **outcome.to_dict())
        if not outcome.saved:
            self._say(f"  {outcome}")

    def interrupted(self, by: str, step: int) -> Interrupted:
        """Write down, and say in a line, that the run stops because it was asked to.

        Args:
            by: name of the signal.
            step: optimizer steps that were made.

        Returns:
            What to raise: the process then ends with a status that says that it can go on.

        Raises:
            CheckpointError: nothing is there to go on from.
        """
        newest = self.store.newest()
        self.journal.event(
            "interrupted", by=by, step=step, checkpoint=None if newest is None else newest.path.name
        )
        if newest is None:
            problem = "" if self._outcome is None else self._outcome.problem
            raise CheckpointError(f"{by}: the run stops and has no checkpoint. {problem}".strip())
        gone = step - newest.step
        lost = f" ({gone} step{'s'[: gone - 1]} lost after it)" if gone > 0 else ""
        line = f"  {by}: step {newest.step} is saved in {newest.path}{lost}. {self._go_on()}"
        self._say(line)
        return Interrupted(line.strip())

    def _stalled(self, stall: Stall) -> None:
        self._say(f"  {stall}; the journal has all stacks")
        self.journal.event("stalled", **stall.to_dict())

    def __enter__(self) -> Self:
        self.stalls.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stalls.stop()
        self._saver.close()
        if isinstance(error, KeyboardInterrupt | TrainingDiverged):
            error.add_note(self.where_to_go_on())
        if error is not None and not isinstance(error, Interrupted):
            self.journal.event("stopped", error=type(error).__name__, message=str(error))
        self.journal.close()
        if not isinstance(error, KeyboardInterrupt | SystemExit):  # who asked it to end waits
            self._rounds.end()

    def where_to_go_on(self) -> str:
        """A sentence on the newest checkpoint."""
        newest = self.store.newest()
        if newest is None:
            return f"There is no checkpoint in {self.folder} yet."
        return f"The last checkpoint is {newest.path}. {self._go_on()}"

    def _go_on(self) -> str:
        return f"Go on with: surefoot train {self._recipe} --resume {self.folder}"


class Bystander:
    """A session in a process that writes nothing: another one has the run's folder."""

    def __init__(self) -> None:
        self.stalls = StallWatch(on_stall=lambda _: None)
        self.journal = _Unwritten()
        self.save_due = False

    def step(self, record: StepRecord, **extra: Any) -> None:
        """Nothing."""

    def save(self, step: int, state: Mapping[str, Any], **arguments: Any) -> None:
        """Nothing."""

    def interrupted(self, by: str, step: int) -> Interrupted:
        """What to raise."""
        return Interrupted(f"{by}: step {step}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing."""


class _Unwritten:
    def event(self, kind: str, /, **fields: Any) -> None:
        """Nothing."""


class PatientJournal:
    """A journal that goes on where its disk refuses, and says what it lost.

    Args:
        writer: the journal.
        say: told once when lines begin to be lost, and once when they no longer are.
    """

    def __init__(self, writer: JournalWriter, say: Callable[[str], object]) -> None:
        self._writer, self._say = writer, say
        self._lost = 0

    def write(self, record: StepRecord, **extra: Any) -> None:
        """As :meth:`JournalWriter.write`."""
        self._try(partial(self._writer.write, record, **extra))

    def event(self, kind: str, /, **fields: Any) -> None:
        """As :meth:`JournalWriter.event`."""
        self._try(partial(self._writer.event, kind, **fields))

    def close(self) -> None:
        """As :meth:`JournalWriter.close`."""
        self._try(self._writer.close)

    def _try(self, call: Callable[[], None]) -> None:
        try:
            if self._lost:
                self._writer.event("gap", lost=self._lost)
                self._say(f"  the journal is written again; {self._lost} lines were lost")
                self._lost = 0
            call()
        except JournalError as problem:
            self._lost += 1
            if self._lost == 1:
                self._say(f"  {problem} The run goes on; its lines are lost until then.")


def find_checkpoint(path: Path, *, best: bool = False) -> tuple[Checkpoint, tuple[Rejected, ...]]:
    """The checkpoint at ``path``, or the newest good one (or the best) of the run there.

    Args:
        path: a run folder, its folder of checkpoints, or one of them.
        best: take the best one of a run, where one was saved as such.

    Returns:
        The checkpoint, and the damaged ones that were passed over.

    Raises:
        CheckpointError: there is none, or none that is whole.
    """
    for folder in (path / CHECKPOINTS, path):
        store = CheckpointStore(folder)
        found = (store.best() if best else None) or store.newest()
        if found is not None:
            return found, store.rejected
        if store.rejected:
            reasons = "; ".join(map(str, store.rejected))
            raise CheckpointError(f"{path}: every checkpoint is damaged. {reasons}", path=path)
    if (path / CHECKPOINTS).exists() or (path / CONFIG).exists():
        raise CheckpointError(f"{path}: the run has no checkpoint yet; start it anew.", path=path)
    return Checkpoint.open(path), ()
