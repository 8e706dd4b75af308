"""What a training says of its own health, while it runs and at its end.

The recipes do not know the doctor, who reads journals: who runs a recipe sends one along.

    with attended_by(LiveDoctor):
        train(config, sources)
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

from surefoot.errors import SurefootError
from surefoot.recipes.run_folder import JOURNAL

__all__ = ["REPORT", "Doctor", "Rounds", "attended_by"]

REPORT = "report.html"
"""In the run folder."""

_TROUBLE = (
    SurefootError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""A doctor that fails must not take the run with him."""


class Doctor(Protocol):
    """Who looks at a journal; :class:`surefoot.doctor.live.LiveDoctor` is one."""

    @property
    def due(self) -> bool:
        """Whether it is time for a look; asked at every step."""
        ...

    def look(self) -> Sequence[tuple[str, Mapping[str, Any]]]:
        """What holds now and was not told before: a line, and fields for the journal."""
        ...

    def conclude(self, report: Path) -> Sequence[str]:
        """The verdict in a line or two; writes the report."""
        ...


_ATTENDING: ContextVar[Callable[[Path], Doctor] | None] = ContextVar("attending", default=None)


@contextmanager
def attended_by(doctor: Callable[[Path], Doctor]) -> Generator[None]:
    """Runs that begin inside are looked at by a doctor of their own.

    Args:
        doctor: makes one for a journal's path.
    """
    token = _ATTENDING.set(doctor)
    try:
        yield
    finally:
        _ATTENDING.reset(token)


class Rounds:
    """Lets the doctor look when it is time, and writes down and says what he finds, once.

    Where nobody attends, or once the doctor has failed, it does nothing.

    Args:
        folder: the run folder.
        say: prints a line.
        note: writes an event to the journal, as :meth:`JournalWriter.event`.
        interject: prints a line between two steps; ``say`` where it is not given.
    """

    def __init__(
        self,
        folder: Path,
        say: Callable[[str], object],
        note: Callable[..., object],
        interject: Callable[[str], object] | None = None,
    ) -> None:
        self._folder, self._say, self._note = folder, say, note
        self._interject = interject or say
        make = _ATTENDING.get()
        self._doctor = None if make is None else make(folder / JOURNAL)

    def step(self) -> None:
        """After a step; one look at the clock where no look is due."""
        if self._doctor is None or not self._doctor.due:
            return
        try:
            for line, fields in self._doctor.look():
                self._note("finding", **fields)
                self._interject(f"  {line}")
        except _TROUBLE as problem:
            self._doctor = None
            self._interject(
                f"  the doctor could not look, and the run goes on without: {problem!r}"
            )

    def end(self) -> None:
        """The run is over and its journal closed."""
        if self._doctor is None:
            return
        try:
            for line in self._doctor.conclude(self._folder / REPORT):
                self._say(line)
        except _TROUBLE as problem:
            self._say(f"doctor: no verdict: {problem!r}")
