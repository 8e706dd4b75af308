"""Files that are on the disk when a call returns, and their checksums."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from io import FileIO
from pathlib import Path

__all__ = ["HashedFile", "free_bytes", "sha256_of", "size_of", "sync", "sync_folder"]


class HashedFile:
    """A file being written, and the checksum of what it was asked to hold.

    The first error of the disk is kept in ``problem``: torch's zip writer turns it into a message
    that names neither the disk nor the file.
    """

    def __init__(self, file: FileIO) -> None:
        self.problem: OSError | None = None
        self._file = file
        self._hash = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Checksum of everything given to :meth:`write`."""
        return self._hash.hexdigest()

    def write(self, data: bytes | memoryview) -> int:
        """Write all of ``data``."""
        left = memoryview(data).cast("B")
        self._hash.update(left)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as problem:
            self.problem = self.problem or problem
            raise
        return len(data)

    def flush(self) -> None:
        """Nothing waits here."""


def free_bytes(folder: Path) -> int:
    """What can still be written to the file system that ``folder`` lies in, or will."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    return shutil.disk_usage(there).free


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder; those that cannot be looked at are left out."""
    total = 0
    with suppress(OSError):
        for file in folder.iterdir():
            with suppress(OSError):
                total += file.stat().st_size
    return total


def sha256_of(path: Path) -> str:
    """Checksum of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Force a file's bytes to the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Force a folder's list of names to the disk; Windows has no call for it."""
    if os.name == "posix":
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
