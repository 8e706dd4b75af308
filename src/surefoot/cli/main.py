"""``surefoot VERB ...``: finds the verb, and says in one block what went wrong."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from surefoot import __version__
from surefoot.cli.verbs import VERBS, find_verb, overview
from surefoot.errors import SurefootError

__all__ = ["main"]

_FAILED, _INTERRUPTED = 2, 130
_DEBUG = {"--debug", "--debug-mode"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: the words after ``surefoot``; those of the process where they are not given.

    Returns:
        The exit status: 0 done, 2 refused or failed, 130 interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
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
