"""A run's folder while it is being written: journal, checkpoints, and the way back into both."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from surefoot.checkpoint import Checkpoint, CheckpointStore, Rejected, SaveOutcome
from surefoot.errors import CheckpointError, JournalError, TrainingDiverged
from surefoot.guard import Stall, StallWatch
from surefoot.journal import JournalWriter
from surefoot.recipes.run_folder import CHECKPOINTS, CONFIG, JOURNAL
from surefoot.records import StepRecord

__all__ = ["SAVE_SECONDS", "PatientJournal", "Session", "find_checkpoint"]


SAVE_SECONDS = 600.0
"""A checkpoint is due after so long, in the middle of an epoch, too."""


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
        clock: seconds, for tests.
    """

    _saved_at: float | None
    """When the last save was; None where it failed."""

    def __init__(
        self,
        folder: Path,
        *,
        recipe: str,
        run: Mapping[str, Any],
        say: Callable[[str], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder = folder
        self.store = CheckpointStore(folder / CHECKPOINTS, keep_last=3, clock=clock)
        self._say = say or (lambda line: sys.stderr.write(f"{line}\n"))
        writer = JournalWriter(folder / JOURNAL, run={"recipe": recipe, **run})
        self.journal = PatientJournal(writer, self._say)
        self.stalls = StallWatch(on_stall=self._stalled)
        """Told of every step; it looks while the session is open."""
        self._recipe, self._clock, self._saved_at = recipe, clock, clock()

    @property
    def save_due(self) -> bool:
        """Whether a checkpoint is worth it now: the last one failed and a pause is over, or it is
        :data:`SAVE_SECONDS` old.
        """
        if self._saved_at is None:
            return self.store.retry_due
        return self._clock() - self._saved_at >= SAVE_SECONDS

    def save(self, step: int, state: Mapping[str, Any], **arguments: Any) -> SaveOutcome:
        """Save a checkpoint, or tell why not; see :meth:`CheckpointStore.try_save`.

        Raises:
            UsageError: arguments that cannot be right, whatever the disk does.
        """
        outcome = self.store.try_save(step, state, **arguments)
        self._saved_at = self._clock() if outcome.saved else None
        self.journal.event("checkpoint", **outcome.to_dict())
        if not outcome.saved:
            self._say(f"  {outcome}")
        return outcome

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
        if isinstance(error, KeyboardInterrupt | TrainingDiverged):
            error.add_note(self.where_to_go_on())
        if error is not None:
            self.journal.event("stopped", error=type(error).__name__, message=str(error))
        self.journal.close()

    def where_to_go_on(self) -> str:
        """A sentence on the newest checkpoint."""
        newest = self.store.newest()
        if newest is None:
            return f"There is no checkpoint in {self.folder} yet."
        return (
            f"The last checkpoint is {newest.path}. Go on with: "
            f"surefoot train {self._recipe} --resume {self.folder}"
        )


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
