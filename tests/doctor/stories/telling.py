"""A story: what its log shows, what it truly was, and what the doctor has to say of it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import NamedTuple

from consoles import Lines

from surefoot.doctor import Examination, Finding, examine
from surefoot.journal.foreign import read_log

__all__ = ["Story", "examined", "leading"]


class Story(NamedTuple):
    """One failure of a real project, with a log of it written anew."""

    id: str
    """As the two taxonomies number them: ``refdet F3``, ``camouflage F22``."""
    shows: str
    """What stands in the log."""
    truth: str
    """What it truly was."""
    cause: str
    """What has to be among the first two causes; ``healthy`` where nothing may be a warning."""
    code: str
    """The rule that has to say so, among the first two; of a healthy run one of the notes."""
    log: Callable[[], Lines]
    untold: str = ""
    """Why the log alone cannot tell the truth, where it cannot."""


def examined(story: Story) -> list[Examination]:
    """What the doctor makes of each run in the story's log."""
    text = "\n".join(story.log()) + "\n"
    return [examine(run) for run in read_log(io.BytesIO(text.encode("utf-8")))]


def leading(examinations: list[Examination]) -> list[Finding]:
    """The first two of all findings, ranked as the command does."""
    found = [finding for one in examinations for finding in one.findings]
    if len(examinations) > 1:
        found.sort(key=lambda finding: (not finding.sick, -finding.confidence))
    return found[:2]
