"""A run's folder while it is being written: journal, checkpoints, and the way back into both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from surefoot.checkpoint import Checkpoint, CheckpointStore, Rejected
from surefoot.errors import CheckpointError, TrainingDiverged
from surefoot.journal import JournalWriter
from surefoot.recipes.run_folder import CHECKPOINTS, CONFIG, JOURNAL

__all__ = ["Session", "find_checkpoint"]


class Session:
    """Opens a run folder's journal and checkpoints, and says, when the run is cut short, where it
    can go on.

    Args:
        folder: the run folder; it exists.
        recipe: name of the verb, as ``surefoot train <recipe>``.
        run: what the journal's header says of the run.
    """

    def __init__(self, folder: Path, *, recipe: str, run: Mapping[str, Any]) -> None:
        self.folder = folder
        self.store = CheckpointStore(folder / CHECKPOINTS, keep_last=3)
        self.journal = JournalWriter(folder / JOURNAL, run={"recipe": recipe, **run})
        self._recipe = recipe

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
