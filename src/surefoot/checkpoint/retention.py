"""Which checkpoints of a folder stay, and the deletion of the others."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from surefoot.checkpoint.manifest import Manifest
from surefoot.errors import CheckpointError

__all__ = ["DELETING", "NAME", "delete", "looks_sound", "number_of", "outdated", "step_of"]

NAME = re.compile(r"(\d+)-step-(\d+)")
"""Of a checkpoint's folder: a running number, and its step."""
DELETING = ".deleting-"
"""Begins the name of a folder that goes."""


def number_of(path: Path) -> int:
    """Running number of a checkpoint, from 1."""
    return int(path.name.partition("-")[0])


def step_of(path: Path) -> int:
    """Optimizer step in a checkpoint's name."""
    return int(path.name.rpartition("-")[2])


def looks_sound(path: Path) -> bool:
    """Whether a checkpoint looks whole; its bytes are not read."""
    try:
        Manifest.read(path).check_sizes(path)
    except CheckpointError:
        return False
    return True


def outdated(folders: Sequence[Path], *, keep_last: int, keep_every: int | None) -> list[Path]:
    """Checkpoints that may go.

    Args:
        folders: all checkpoints, newest first.
        keep_last: how many of the newest sound ones stay.
        keep_every: of the sound ones the first at or after each multiple of so many steps stays.

    What stays beside those is the newest one that was saved as best, with every newer best that
    is damaged; and nothing newer than what is kept goes, damaged or not: someone may want to look
    at it.
    """
    sound = [path for path in folders if looks_sound(path)]
    keep = set(sound[:keep_last])
    oldest = min((number_of(path) for path in keep), default=0)
    keep |= _milestones(sound, keep_every)
    for path in folders:
        if _saved_as_best(path):
            keep.add(path)
            if path in sound:
                break
    return [path for path in folders if path not in keep and number_of(path) < oldest]


def _milestones(sound: Sequence[Path], every: int | None) -> set[Path]:
    """The earliest step of each span; of two with the same step the newer one."""
    found: dict[int, Path] = {}
    for path in sound:
        span = step_of(path) // every if every else 0
        if span and (span not in found or step_of(path) < step_of(found[span])):
            found[span] = path
    return set(found.values())


def _saved_as_best(path: Path) -> bool:
    try:
        return Manifest.read(path).best
    except CheckpointError:
        return False


def delete(path: Path) -> None:
    """Delete a checkpoint; what cannot be is left for the next save."""
    away = path.with_name(DELETING + path.name)
    with suppress(OSError):
        # Out of sight first: a kill half-way leaves no half checkpoint.
        path.rename(away)
        shutil.rmtree(away)
