"""All stories, and the page for users that they are written out as.

``python tests/doctor/stories/table.py`` writes ``docs/stories.md``; a test keeps it in step.
"""

from __future__ import annotations

from pathlib import Path

import camo_loop
import camo_numbers
import refdet_boxes
import refdet_loop
import refdet_numbers
from telling import Story

__all__ = ["PAGE", "STORIES", "page"]

PAGE = Path(__file__).resolve().parents[3] / "docs" / "stories.md"
_FAMILIES = (refdet_numbers, refdet_boxes, refdet_loop, camo_numbers, camo_loop)
_PROJECTS = {
    "refdet": "A detector of objects that are shown in reference photos",
    "camouflage": "A segmenter of camouflaged objects",
}
_HEAD = (
    "# What a log shows, and what it truly is\n\n"
    "Failures of two real projects, a detector and a segmenter. Their authors wrote long reports "
    "on them, and most named\na wrong cause. For each: what stands in the log, what it truly was, "
    "and what `surefoot doctor` says of such a log, with\nthe page of the rule. Some of it no log "
    "can tell; then the doctor names what it sees, or gives a clean bill, and the last\ncolumn "
    "says what is missing. The logs are written anew with the numbers of the originals, in "
    "`tests/doctor/stories/`, and\na test holds the doctor to this table.\n"
)


def _number(story: Story) -> tuple[int, str]:
    tail = story.id.rpartition("F")[2]
    digits = tail.rstrip("bc")
    return int(digits), tail[len(digits) :]


STORIES: tuple[Story, ...] = tuple(
    sorted(
        (story for family in _FAMILIES for story in family.STORIES),
        key=lambda story: (list(_PROJECTS).index(story.id.split()[0]), *_number(story)),
    )
)
"""In the order of the two taxonomies."""


def page() -> str:
    """The table as Markdown."""
    parts = [_HEAD]
    for project, title in _PROJECTS.items():
        parts += [
            f"## {title}\n",
            "| | what you see in the log | what it truly is | what the doctor says |",
        ]
        parts += ["| --- | --- | --- | --- |"]
        parts += [_row(story) for story in STORIES if story.id.startswith(project)]
        parts += [""]
    return "\n".join(parts)


def _row(story: Story) -> str:
    linked = f"[{story.code}](rules/{story.code}.md)"
    said = f"`{story.cause}`, {linked}"
    if story.cause == "healthy" and story.code == "SF001":
        said = f"a clean bill, {linked}"
    elif story.cause == "healthy":
        said = f"no warning, a note: {linked}"
    if story.untold:
        said += f". The log cannot tell: {story.untold}"
    return f"| {story.id.split()[1]} | {story.shows} | {story.truth} | {said} |"


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
