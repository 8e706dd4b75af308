"""Output into a pipe whose reader has seen enough, as ``| head`` does."""

from __future__ import annotations

import io
import os
import select
import sys
from typing import TextIO

__all__ = ["let_go_of_closed_pipes"]


def let_go_of_closed_pipes() -> bool:
    """Write out what is still buffered; what nobody reads any more goes nowhere from now on.

    Without it the interpreter would fail at its end.

    Returns:
        Whether standard output or standard error was such a pipe.

    >>> let_go_of_closed_pipes()
    False
    """
    closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream)]
    for stream in closed:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    return bool(closed)


def _is_closed(stream: TextIO) -> bool:
    try:
        stream.flush()
        number = stream.fileno()
    except BrokenPipeError:
        return True
    except io.UnsupportedOperation:  # one that lies in memory
        return False
    # A stream without a buffer has nothing to flush; the system knows of its reader.
    if not hasattr(select, "poll"):
        return False
    asked = select.poll()
    asked.register(number, 0)
    return any(events & select.POLLERR for _, events in asked.poll(0))
