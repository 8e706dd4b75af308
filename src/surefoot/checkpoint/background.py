"""Saving while the training goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from surefoot.checkpoint.draft import Draft
from surefoot.checkpoint.outcome import SaveOutcome
from surefoot.checkpoint.staging import Staging
from surefoot.checkpoint.store import CheckpointStore
from surefoot.errors import CheckpointError

__all__ = ["BackgroundSaver"]


class BackgroundSaver:
    """Writes a store's checkpoints in a thread; the training waits only until a copy is made.

    The checkpoint is that of the moment of :meth:`save`, bit for bit the one that ``store.save``
    would have written, with all its guarantees: it gets its name when every byte is on the disk and
    was read back. The copy is in host memory and as large as the checkpoint; it is kept for the
    next one. One checkpoint is written at a time: a save waits for the one before.

    How a save went is told at the next :meth:`save`, :meth:`poll` or :meth:`close`, in the thread
    of the training: to ``on_outcome``, and the run goes on; where that is not given, one that
    failed is raised there.

    Args:
        store: where to.
        on_outcome: told of each save.

    >>> import tempfile, torch
    >>> store = CheckpointStore(tempfile.mkdtemp())
    >>> weight = torch.ones(2)
    >>> with BackgroundSaver(store, on_outcome=lambda outcome: print(outcome.saved)) as saver:
    ...     saver.save(1, {}, weights={"model": {"w": weight}})
    ...     _ = weight.zero_()  # the training goes on
    True
    >>> store.newest().load_weights()["w"].tolist()
    [1.0, 1.0]
    """

    def __init__(
        self,
        store: CheckpointStore,
        *,
        on_outcome: Callable[[SaveOutcome], object] | None = None,
    ) -> None:
        self.store = store
        self._on_outcome = on_outcome
        self._staging = Staging()
        self._running: Future[SaveOutcome] | None = None

    def save(self, step: int, state: Mapping[str, Any], **arguments: Any) -> None:
        """Begin to save; what is given may change as soon as this returns.

        Args:
            step: optimizer step it is taken after.
            state: what is no weight.
            arguments: the others of :meth:`CheckpointStore.save`.

        Raises:
            CheckpointError: the save before failed, and there is no ``on_outcome``.
            UsageError: arguments that cannot be right, whatever the disk does.
        """
        draft = Draft.of(step, state, **arguments)
        self.wait()
        # A thread of its own for each: none is there when a data loader forks its workers.
        threads = ThreadPoolExecutor(1, thread_name_prefix="surefoot-checkpoint")
        self._running = threads.submit(self.store.try_write, self._staging.copy(draft))
        threads.shutdown(wait=False)

    @property
    def retry_due(self) -> bool:
        """As :attr:`CheckpointStore.retry_due`; never while a checkpoint is being written."""
        return (self._running is None or self._running.done()) and self.store.retry_due

    def poll(self) -> None:
        """Tell how the save went, if it is over.

        Raises:
            CheckpointError: it failed, and there is no ``on_outcome``.
        """
        if self._running is not None and self._running.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the checkpoint is on the disk, and tell how that went.

        Raises:
            CheckpointError: it failed, and there is no ``on_outcome``.
        """
        if self._running is None:
            return
        running, self._running = self._running, None
        outcome = running.result()
        if self._on_outcome is not None:
            self._on_outcome(outcome)
        elif not outcome.saved:
            raise CheckpointError(outcome.problem, path=self.store.folder)

    close = wait

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
