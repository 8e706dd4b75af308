"""``surefoot VERB ...``: finds the verb, and says in one block what went wrong.

The exit statuses:

====  ==============================================================================================
   0  done; of ``surefoot doctor``: healthy
   1  something bad was found: by ``surefoot doctor`` in a run, by ``surefoot checkpoints --verify``
      in a checkpoint
   2  refused, failed, or an unknown flag; of ``surefoot doctor``: a log that cannot be judged
  75  a training was asked to stop by a signal, has saved, and can go on
      (:data:`surefoot.checkpoint.signals.RESUMABLE`)
 130  interrupted at once, as by a second Ctrl-C
 141  who read the output through a pipe left before the work was done, as ``| head`` does; one that
      leaves after it changes no status
====  ==============================================================================================
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from surefoot import __version__
from surefoot.cli.pipes import let_go_of_closed_pipes
from surefoot.cli.verbs import VERBS, find_verb, overview
from surefoot.errors import SurefootError

__all__ = ["main"]

_FAILED, _INTERRUPTED, _UNREAD = 2, 130, 141
_DEBUG = {"--debug", "--debug-mode"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: the words after ``surefoot``; those of the process where they are not given.

    Returns:
        The exit status; the module lists them.

    Raises:
        SystemExit: 75, of a training that was asked to stop; 0 or 2 after ``--help`` of a verb, or
            an unknown flag.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _run(words)
    except BrokenPipeError:
        if not let_go_of_closed_pipes():
            raise  # another pipe's, such as that of a data loader's worker
        return _UNREAD
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # rich ends the process, with status 1
            return _UNREAD
        raise
    finally:
        let_go_of_closed_pipes()


def _run(words: Sequence[str]) -> int:
    if words[:1] == ["--version"]:
        print(f"surefoot {__version__}")
        return 0
    of_several = [verb for verb in VERBS if len(verb.words) > 1]
    asked_for = [verb for verb in of_several if words[:1] == [verb.words[0]]]
    if not words or words[0] in ("-h", "--help") or (asked_for and _stops_at(words[1:])):
        print(overview(asked_for or VERBS))
        return 0
    try:
        verb, rest = find_verb(words)
        return verb.load()(rest)
    except SurefootError as error:
        if any(word.replace("_", "-") in _DEBUG for word in words):
            raise
        _complain(type(error).__name__, error)
        return _FAILED
    except KeyboardInterrupt as stop:
        _complain("interrupted", stop)
        return _INTERRUPTED


def _stops_at(rest: Sequence[str]) -> bool:
    return not rest or rest[0] in ("-h", "--help")


def _complain(title: str, error: BaseException) -> None:
    notes: list[str] = getattr(error, "__notes__", [])
    text = "\n".join([_without_traceback(str(error)), *notes]).strip()
    print(f"surefoot: {title}: {text}" if text else f"surefoot: {title}", file=sys.stderr)


def _without_traceback(text: str) -> str:
    """What a data loader's worker raised arrives with its traceback as text in front."""
    raised = re.search(r"^surefoot\.errors\.\w+: (.*)\Z", text, re.DOTALL | re.MULTILINE)
    return raised[1] if raised else text
