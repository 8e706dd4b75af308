"""Writing the report, and saying early where it cannot be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from surefoot.doctor.examine import Examination
from surefoot.doctor.html.page import report
from surefoot.errors import ConfigError

__all__ = ["check_drawing", "write_report"]


def check_drawing() -> None:
    """See whether plots can be drawn.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError(
            "writing an HTML report draws plots with matplotlib, which is not installed. "
            "pip install 'surefoot[report]'"
        )


def write_report(
    path: Path, examinations: Sequence[Examination], unread: Sequence[str] = ()
) -> Path:
    """Write the report of one run or several; returns its path.

    It is written beside the file first and then put in its place: a reader sees the old one or the
    new one.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    check_drawing()
    text = report(examinations, unread)
    beside = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, "utf-8")
        beside.replace(path)
    except OSError as problem:
        raise ConfigError(
            f"the report could not be written to {path}: {problem.strerror or problem}. Name a "
            "file in a folder that can be written to."
        ) from problem
    return path
