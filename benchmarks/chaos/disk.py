"""Disks that are full, writes that are cut off, files that are damaged."""

from __future__ import annotations

import resource
import signal
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.chaos.inject import Injector, Stage

__all__ = ["DieWhileSaving", "FileLimit", "FullDisk", "damage"]


@dataclass
class FileLimit(Injector):
    """No file may grow beyond so many bytes: writes fail as on a full disk."""

    steps: Collection[int]
    size: int = 2**16

    def step(self, number: int, stage: Stage) -> None:
        """Python turns the signal that comes with it into an ``OSError``."""
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        limit = self.size if number in self.steps else hard
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))


@dataclass
class DieWhileSaving(FileLimit):
    """The process dies in the middle of the first write beyond the limit: a kill during a save."""

    def step(self, number: int, stage: Stage) -> None:
        """The signal's own way is to kill."""
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        super().step(number, stage)


@dataclass
class FullDisk(Injector):
    """The run's folder has no byte left for some steps."""

    steps: Collection[int]

    def step(self, number: int, stage: Stage) -> None:
        """A file of somebody else's fills it, and is deleted later."""
        filler = stage.folder / "somebody-elses-file"
        if number in self.steps:
            _fill(filler)
        else:
            filler.unlink(missing_ok=True)


def _fill(path: Path) -> None:
    """Append until the disk says no."""
    with path.open("ab", buffering=0) as file:
        for size in (2**16, 2**10, 1):
            block = b"x" * size
            try:
                while file.write(block) == size:
                    pass
            except OSError:
                continue


def damage(path: Path, how: Literal["cut", "bit"]) -> str:
    """Cut a file to half, or flip one bit in its middle; says what was done."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    if how == "cut":
        path.write_bytes(data[:middle])
        return f"{path.name} cut from {len(data)} to {middle} bytes"
    data[middle] ^= 0x40
    path.write_bytes(data)
    return f"one bit of {path.name} flipped at byte {middle}"
