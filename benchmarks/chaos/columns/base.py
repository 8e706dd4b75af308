"""What a column of the table is: one way to train."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from benchmarks.chaos.fault import Fault
    from benchmarks.chaos.run import Run

__all__ = ["Column"]


class Column(ABC):
    """One way to train; small enough to be sent to another process."""

    name: str
    """As in ``--only``."""
    title: str
    needs: tuple[str, ...] = ()
    """Modules that have to be installed."""
    fp16: Literal["never", "always", "can"] = "never"
    """Whether it has a float16 loop, or nothing else."""
    records: bool = False
    """Whether it is judged by structured records; otherwise by what it prints."""
    attached: bool = False
    """Whether it is somebody else's loop with surefoot in it."""

    def missing(self) -> list[str]:
        """Modules that are not installed."""
        return [name for name in self.needs if importlib.util.find_spec(name) is None]

    def not_staged(self, fault: Fault) -> str | None:
        """Why this fault cannot strike here; None where it can."""
        if fault.setting.fp16 and self.fp16 == "never":
            return "no fp16 loop on the CPU"
        if self.fp16 == "always" and fault.key == "17b":
            return "the same run as 17"
        return None

    def newest_file(self, folder: Path) -> Path:
        """The largest file of the newest checkpoint."""
        files = [path for path in folder.rglob("*") if path.is_file()]
        newest = max(files, key=lambda path: path.stat().st_mtime_ns).parent
        return max(newest.iterdir(), key=lambda path: path.stat().st_size)

    @abstractmethod
    def train(self, run: Run) -> nn.Module:
        """Train, from the newest checkpoint where ``run.resumes``; return the model."""
