"""Signals that ask a run to stop: it ends its step, saves, and says that it can go on.

A scheduler that wants its machine back sends SIGTERM, a person at the keyboard SIGINT, and SLURM
what ``--signal`` names. In the middle of a step nothing can be saved, so the signal is only
remembered; the loop asks between two steps.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from torch import distributed

from surefoot.errors import ConfigError

__all__ = ["RESUMABLE", "Interrupted", "Interruption", "leave_signals_to_parent"]

RESUMABLE = 75
"""Exit status of a run that stopped because it was asked to, and can go on: EX_TEMPFAIL of
sysexits.h, "try again later". No shell and no signal gives it."""

_SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1")


class Interrupted(SystemExit):
    """A run was asked to stop and can go on; where nobody catches it the process ends with
    :data:`RESUMABLE`.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(RESUMABLE)
        self.message = message

    def __str__(self) -> str:
        return self.message


class Interruption:
    """Remembers that the run was asked to stop, for a loop that asks between two steps.

    The first signal is remembered, and nothing else happens. A second one, ``again_after`` seconds
    later or more, is given to whoever had it before: SIGINT raises ``KeyboardInterrupt``, SIGTERM
    and SIGUSR1 end the process where it is. (Sooner, it is the same request once more: a launcher
    and a terminal both send it.)

    A signal that was ignored before stays ignored. The former handlers are back when the block
    ends. Python sets handlers in the main thread only: in another one there is a warning, signals
    do what they did, and :meth:`request` is the way to ask. Forked children inherit handlers; there
    SIGTERM does what it did before and the others do nothing, for a Ctrl-C reaches every process of
    the terminal and means the parent. See :func:`leave_signals_to_parent` for loader workers.

    Args:
        signals: names; those that the system does not know are left out.
        again_after: seconds from which on another signal is a second one.
        ask_every: where there are several processes: they ask one another only at every so many
            questions.
        clock: seconds, for tests.

    Raises:
        ConfigError: ``ask_every`` below 1.

    >>> with Interruption() as stop:
    ...     for step in range(100):
    ...         if step == 2:
    ...             signal.raise_signal(signal.SIGTERM)  # as a scheduler does
    ...         if stop.requested:
    ...             break  # save, and raise Interrupted
    >>> step, stop.signal_name
    (2, 'SIGTERM')
    """

    def __init__(
        self,
        signals: Sequence[str] = _SIGNALS,
        *,
        again_after: float = 1.0,
        ask_every: int = 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if ask_every < 1:
            raise ConfigError(f"Interruption: ask_every={ask_every}: questions, at least 1.")
        self._names, self._again_after, self._clock = tuple(signals), again_after, clock
        self._ask_every, self._asked = ask_every, 0
        self._former: dict[int, Any] = {}
        self._owner = os.getpid()
        self._here: int | None = None
        self._agreed: int | None = None
        self._at, self._raises = 0.0, False
        self._group: distributed.ProcessGroup | None = None

    # -- asking ----------------------------------------------------------------------------------

    @property
    def requested(self) -> bool:
        """Whether to stop now; ask it after every step.

        In a process group (``torchrun``) every process gets the same answer at the same step, and
        a signal to one stops all. So all have to ask equally often: the question is an all-reduce
        of one number between their CPUs, some 50 to 100 microseconds on one machine, and the
        device is not waited for. ``ask_every`` makes it rarer.
        """
        if self._agreed is None:
            if not _several():
                self._agreed = self._here
            else:
                self._asked += 1
                if self._asked % self._ask_every == 0:
                    self._agreed = self._ask_the_others()
        return self._agreed is not None

    @property
    def signal_name(self) -> str:
        """Of the signal that came, to another process where all have agreed on it; or empty."""
        number = self._agreed if self._here is None else self._here
        return "" if number is None else signal.Signals(number).name

    @property
    def armed(self) -> bool:
        """Whether any handler is set."""
        return bool(self._former)

    def request(self, number: int = signal.SIGTERM) -> None:
        """Ask to stop, as the signal would; for a loop in another thread, or a test."""
        if self._here is None:
            self._here, self._at = number, self._clock()

    @contextmanager
    def at_once(self) -> Generator[None]:
        """Around what changes nothing that is saved, and may take long, such as a validation: the
        signal raises :class:`Interrupted` there and then.

        Not where there are several processes: one that leaves alone keeps the others waiting.
        """
        self._raises = not _several()
        try:
            if self._raises and self._here is not None:
                raise Interrupted(self.signal_name)
            yield
        finally:
            self._raises = False

    def _ask_the_others(self) -> int | None:
        vote = torch.tensor(self._here or 0)
        distributed.all_reduce(vote, distributed.ReduceOp.MAX, group=self._cpu_group())
        return int(vote) or None

    def _cpu_group(self) -> distributed.ProcessGroup | None:
        """The default one if it takes tensors on the CPU, else one made for it: asking through a
        device would wait for what is queued there.
        """
        if "cpu:" in distributed.get_backend_config():
            return None
        if self._group is None:
            made: Any = distributed.new_group(backend="gloo")
            self._group = made
        return self._group

    # -- signals ---------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._owner = os.getpid()
        if threading.current_thread() is not threading.main_thread():
            warnings.warn(
                f"Interruption was begun in the thread {threading.current_thread().name!r}, and "
                f"Python sets signal handlers in the main thread only: {', '.join(self._names)} do "
                "what they did before. Begin it in the main thread, or call request() from there.",
                RuntimeWarning,
                stacklevel=2,
            )
            return self
        for name in self._names:
            number = getattr(signal, name, None)
            former = None if number is None else signal.getsignal(number)
            # None: a handler that is not Python's, which could not be put back.
            if number is not None and former not in (None, signal.SIG_IGN):
                self._former[number] = former
                signal.signal(number, self._arrived)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._put_back()

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            if number == signal.SIGTERM:
                signal.signal(number, self._former[number])
                signal.raise_signal(number)
        elif self._here is None:
            self.request(number)
            if self._raises:
                raise Interrupted(self.signal_name)
        elif self._clock() - self._at >= self._again_after:
            self._put_back()
            signal.raise_signal(number)

    def _put_back(self) -> None:
        for number, former in self._former.items():
            if signal.getsignal(number) == self._arrived:  # else somebody has set another since
                signal.signal(number, former)
        self._former = {}


def leave_signals_to_parent(worker: int = 0) -> None:
    """Take this process out of its process group; give it to a loader as ``worker_init_fn``.

    Ctrl-C in a terminal, and torchrun when it ends its workers, signal a whole process group. A
    loader's worker that dies of it takes the batch away that the training still has to finish.
    Outside the group it is ended by its parent, as always, or ends by itself once that is gone.

    >>> from torch.utils.data import DataLoader
    >>> loader = DataLoader(range(4), num_workers=2, worker_init_fn=leave_signals_to_parent)
    """
    if os.name == "posix":
        os.setpgid(0, 0)


def _several() -> bool:
    here = distributed.is_available() and distributed.is_initialized()
    return here and distributed.get_world_size() > 1
