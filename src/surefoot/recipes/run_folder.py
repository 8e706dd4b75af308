"""Where a run keeps what it writes.

runs/refdet-20260102-030405/
  config.json      the settings
  journal.jsonl    every step, epoch and event
  checkpoints/     weights and state, see surefoot.checkpoint
  failures/        refused steps, to be run again by surefoot replay
"""

from __future__ import annotations

import time
from pathlib import Path

from surefoot.errors import ConfigError

__all__ = [
    "AUTO",
    "CHECKPOINTS",
    "CONFIG",
    "FAILURES",
    "JOURNAL",
    "new_run_folder",
    "run_folder_of",
    "to_resume",
]

CONFIG, JOURNAL, CHECKPOINTS = "config.json", "journal.jsonl", "checkpoints"
FAILURES = "failures"
AUTO = Path("auto")
"""As ``--resume``: go on with the run in --save-dir, or start it."""


def to_resume(resume: Path | None, save_dir: Path | None) -> Path | None:
    """The run, or its checkpoint, that is gone on with; None where one starts.

    Raises:
        ConfigError: :data:`AUTO` without a folder to look in.

    >>> to_resume(AUTO, Path("not/there"))
    """
    if resume != AUTO:
        return resume
    if save_dir is None:
        raise ConfigError("--resume auto: goes on with the run in --save-dir; name that folder.")
    saved = (save_dir / CHECKPOINTS).glob("[0-9]*-step-*")
    return save_dir if (save_dir / CONFIG).is_file() and any(saved) else None


def run_folder_of(path: Path, *, flag: str = "--resume") -> Path:
    """The run folder that ``path`` is, or that the checkpoint at ``path`` lies in.

    Args:
        path: as somebody gave it.
        flag: that it was given by, for the error.

    Raises:
        ConfigError: neither of the two.
    """
    for folder in (path, path.parent, path.parent.parent):
        if (folder / CONFIG).is_file() and (folder == path or _inside(path, folder)):
            return folder
    raise ConfigError(
        f"{flag} {path}: is no run folder and no checkpoint of one. Give the folder that holds "
        f"{CONFIG} and {CHECKPOINTS}/, or a folder inside its {CHECKPOINTS}/."
    )


def _inside(path: Path, folder: Path) -> bool:
    return path.exists() and (folder / CHECKPOINTS).resolve() in (
        path.resolve(),
        path.resolve().parent,
    )


def new_run_folder(wanted: Path | None, recipe: str, *, again: bool = False) -> Path:
    """Make the folder of a new run; ``runs/<recipe>-<date>-<time>`` where none is wanted.

    Args:
        wanted: the folder.
        recipe: as in ``surefoot train <recipe>``.
        again: one that a run was begun in may be taken.

    Raises:
        ConfigError: there is a run in it already, or it cannot be made.
    """
    folder = wanted or Path("runs") / f"{recipe}-{time.strftime('%Y%m%d-%H%M%S')}"
    if not again and ((folder / CONFIG).exists() or (folder / JOURNAL).exists()):
        raise ConfigError(
            f"--save-dir {folder}: holds a run already. Go on with it by --resume {folder}, or "
            "choose another folder."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise ConfigError(f"--save-dir {folder}: cannot be made ({problem}).") from problem
    return folder
