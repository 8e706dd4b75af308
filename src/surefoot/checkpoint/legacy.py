"""Files that ``torch.save`` wrote: whether their bytes are those that were written."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from surefoot.errors import CheckpointError

__all__ = ["LegacyFile", "verify_legacy"]

_BLOCK = 2**20
# What reading an archive raises that was changed anywhere: flags, names, sizes, methods.
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    LookupError,
    OverflowError,
    RuntimeError,
    ValueError,
)


@dataclass(frozen=True)
class LegacyFile:
    """A file of ``torch.save`` whose every record was found to be as it was written."""

    path: Path
    records: int
    """Parts of the archive; each tensor's storage is one."""
    bytes: int
    """Of the records together."""


def verify_legacy(path: Path | str) -> LegacyFile:
    """Read a file that ``torch.save`` wrote and compare each record with its own checksum.

    ``torch.save`` writes a CRC32 beside each record, and ``torch.load`` does not look at it: a
    flipped bit or a hole of zeros becomes a wrong weight without a word. Nothing is unpickled here.

    Args:
        path: a ``.pt``, ``.pth``, ``.ckpt`` or ``.bin`` file, of PyTorch 1.6 or newer.

    Raises:
        CheckpointError: a damaged record, which it names; a file that was cut off; or one that
            has no checksums, such as those of older versions.

    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "last.pt"
    >>> torch.save({"weight": torch.ones(4)}, path)
    >>> verify_legacy(path).bytes > 16
    True
    >>> content = bytearray(path.read_bytes())
    >>> content[content.index(torch.ones(4).numpy().tobytes())] ^= 1
    >>> _ = path.write_bytes(content)
    >>> verify_legacy(path)
    Traceback (most recent call last):
        ...
    surefoot.errors.CheckpointError: .../last.pt: record last/data/0 is damaged: ...
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            for entry in entries:
                _check(archive, entry, path)
    except FileNotFoundError as missing:
        raise CheckpointError(f"{path}: no such file.", path=path) from missing
    except _DAMAGE as damage:
        raise CheckpointError(f"{path}: {_no_archive(path, damage)}", path=path) from damage
    except OSError as problem:
        raise CheckpointError(f"{path}: cannot be read ({problem}).", path=path) from problem
    return LegacyFile(path, len(entries), sum(entry.file_size for entry in entries))


def _check(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    """Read one record; the reader compares its checksum at its end."""
    try:
        with archive.open(entry) as record:
            while record.read(_BLOCK):
                pass
    except (OSError, *_DAMAGE) as damage:
        raise CheckpointError(
            f"{path}: record {entry.filename} is damaged: its {entry.file_size:,} bytes are not "
            f"those that were written ({damage}). torch.load would not have said so. Take another "
            "checkpoint.",
            path=path,
        ) from damage


def _no_archive(path: Path, damage: Exception) -> str:
    with path.open("rb") as file:
        start = file.read(4)
    if start.startswith(b"PK\3\4"):
        return (
            f"is cut off or its table of contents is damaged ({damage}): {path.stat().st_size:,} "
            "bytes are there. Take another checkpoint."
        )
    if not start.strip(b"\0"):
        return "is empty, or begins with zeros. Take another checkpoint."
    return (
        "is no archive of torch.save; there are no checksums in it to compare. Files of PyTorch "
        "before 1.6 have none; load such a file once, with weights_only=True, and save it anew."
    )
