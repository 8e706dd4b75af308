"""One checkpoint that was found good, one that was not, and one that was only looked at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from surefoot.checkpoint.disk import size_of
from surefoot.checkpoint.manifest import STATE, WEIGHTS_SUFFIX, Manifest
from surefoot.checkpoint.state import read_state
from surefoot.checkpoint.weights import read_weights
from surefoot.errors import CheckpointError

__all__ = ["Checkpoint", "Listed", "Rejected"]


@dataclass(frozen=True)
class Rejected:
    """A checkpoint that was passed over."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Listed:
    """A checkpoint of a folder, good or not."""

    path: Path
    manifest: Manifest | None
    """None where it cannot be read."""
    problem: str
    """What is wrong with it; empty where nothing was found."""
    bytes: int
    """On the disk."""

    @classmethod
    def of(cls, path: Path, *, verify: bool) -> Self:
        """Look at a checkpoint; with ``verify`` at every byte."""
        manifest = None
        try:
            manifest = Manifest.read(path)
            (manifest.check_sums if verify else manifest.check_sizes)(path)
            problem = ""
        except CheckpointError as refused:
            problem = str(refused)
        return cls(path, manifest, problem, size_of(path))


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every byte was found to be as it was saved."""

    path: Path
    manifest: Manifest

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Verify a checkpoint, all of its files, and open it.

        Raises:
            CheckpointError: it is not there, damaged, or of a newer format.
        """
        path = Path(path)
        try:
            manifest = Manifest.read(path)
            manifest.check_sums(path)
        except CheckpointError as refused:
            raise CheckpointError(
                f"checkpoint {path}: {refused}. Take another one of its run.", path=path
            ) from refused
        return cls(path, manifest)

    @property
    def step(self) -> int:
        """Optimizer step it was taken after."""
        return self.manifest.step

    @property
    def metric(self) -> float | None:
        """Value it was judged by, if it was."""
        return self.manifest.metric

    @property
    def measured_on(self) -> str | None:
        """Name of the weights that the metric was measured on."""
        return self.manifest.measured_on

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights it holds."""
        return self.manifest.weights

    def load_weights(
        self, name: str = "model", *, device: torch.device | str = "cpu"
    ) -> dict[str, Tensor]:
        """A state dict; names that were one tensor when it was saved are one tensor again.

        Raises:
            CheckpointError: no weights of that name, or the file was damaged meanwhile.
        """
        if name not in self.weights:
            raise CheckpointError(
                f"checkpoint {self.path}: has no weights {name!r}; it has {list(self.weights)}.",
                path=self.path,
            )
        try:
            return read_weights(self.path / f"{name}{WEIGHTS_SUFFIX}", device)
        except OSError as problem:
            raise CheckpointError(
                f"checkpoint {self.path}: {problem}.", path=self.path
            ) from problem

    def load_state(self, *, device: torch.device | str = "cpu") -> dict[str, Any]:
        """Everything that is no weight; no code in the file is run.

        Raises:
            CheckpointError: the file holds objects that would run code, or was damaged meanwhile.
        """
        try:
            return read_state(self.path / STATE, device=device)
        except OSError as problem:
            raise CheckpointError(
                f"checkpoint {self.path}: {problem}.", path=self.path
            ) from problem
