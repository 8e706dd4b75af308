from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from surefoot.checkpoint import CheckpointStore

DATA = Path(__file__).with_name("data")


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


@pytest.fixture
def weights() -> dict[str, dict[str, Tensor]]:
    return {"model": {"w": torch.randn(8, 8), "n": torch.tensor(3)}}


@pytest.fixture
def state() -> dict[str, Any]:
    return {"epoch": 2, "optimizer": {"exp_avg": torch.randn(64)}}


@contextmanager
def _largest_file(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def largest_file() -> Callable[[int], AbstractContextManager[None]]:
    """While open, the disk refuses to let any file of this process grow beyond so many bytes."""
    return _largest_file


class Disk:
    """A file system of its own; mounting one needs to be permitted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    """A real disk of 1 MB."""
    disk = Disk(tmp_path / "disk")
    disk.folder.mkdir()
    try:
        mounted = disk.mount("size=1m")
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a file system is not permitted here")
    yield disk
    subprocess.run(["umount", str(disk.folder)], check=True)
