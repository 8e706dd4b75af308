"""The table of contents of a checkpoint, and what it takes to believe it."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, cast

from surefoot.checkpoint.disk import sha256_of, sync, sync_folder
from surefoot.errors import CheckpointError

__all__ = ["FORMAT_VERSION", "MANIFEST", "STATE", "WEIGHTS_SUFFIX", "FileSum", "Manifest"]

FORMAT_VERSION = 1
"""Version of a checkpoint's layout; a reader of today reads every older one."""
MANIFEST, STATE, WEIGHTS_SUFFIX = "manifest.json", "state.pt", ".safetensors"
_FORMAT = "surefoot-checkpoint"


@dataclass(frozen=True)
class FileSum:
    """What a file has to be."""

    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint holds."""

    step: int
    """Optimizer step it was taken after."""
    saved: str
    """When: ISO 8601 with the time zone."""
    metric: float | None
    """Value it was judged by, if it was."""
    measured_on: str | None
    """Name of the weights that ``metric`` was measured on."""
    best: bool
    """Whether it was the best of its run when it was saved."""
    files: Mapping[str, FileSum]
    """Every file but the manifest."""

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of the weights, sorted."""
        return tuple(
            sorted(n.removesuffix(WEIGHTS_SUFFIX) for n in self.files if n.endswith(WEIGHTS_SUFFIX))
        )

    def to_json(self) -> str:
        """The manifest as text, with a checksum of its own."""
        values = asdict(self) | {"format": _FORMAT, "version": FORMAT_VERSION}
        if self.metric is not None and not math.isfinite(self.metric):
            values["metric"] = str(self.metric)  # JSON has no NaN
        return json.dumps(values | {"sha256": _sum_of(values)}, indent=2) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the manifest of a checkpoint; its files are not looked at.

        Raises:
            CheckpointError: none there, a damaged one, or one of a newer format.
        """
        try:
            values = json.loads((folder / MANIFEST).read_text("utf-8"))
        except OSError as problem:
            missing = isinstance(problem, FileNotFoundError)
            what = "is missing" if missing else f"cannot be read ({problem.strerror})"
            raise CheckpointError(f"{MANIFEST} {what}", path=folder) from problem
        except (ValueError, RecursionError) as damage:
            raise CheckpointError(f"{MANIFEST} is damaged ({damage})", path=folder) from damage
        return cls._of(values, folder)

    @classmethod
    def _of(cls, values: Any, folder: Path) -> Self:
        if not isinstance(values, dict) or values.get("format") != _FORMAT:
            raise CheckpointError(f"{MANIFEST} is none of a checkpoint of surefoot", path=folder)
        fields = cast(dict[str, Any], values)
        version = fields.get("version")
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise CheckpointError(
                f"format version {version}; this surefoot reads up to {FORMAT_VERSION}: update it",
                path=folder,
            )
        if fields.pop("sha256", None) != _sum_of(fields):
            raise CheckpointError(f"{MANIFEST} is damaged (its checksum differs)", path=folder)
        try:
            return cls(
                step=int(fields["step"]),
                saved=str(fields["saved"]),
                metric=None if fields["metric"] is None else float(fields["metric"]),
                measured_on=fields["measured_on"],
                best=bool(fields["best"]),
                files={_file_name(n): FileSum(**sums) for n, sums in fields["files"].items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError) as damage:
            raise CheckpointError(f"{MANIFEST} is damaged ({damage!r})", path=folder) from damage

    @classmethod
    def seal(cls, folder: Path, **facts: Any) -> Self:
        """Flush a folder's files to the disk, and write down what they have to be.

        Args:
            folder: holds everything but the manifest.
            facts: the fields that are not known from the files.

        Raises:
            OSError: the disk refused, or gave back something else.
        """
        files = sorted(folder.iterdir())
        for file in files:
            sync(file)
        sums = {file.name: FileSum(file.stat().st_size, sha256_of(file)) for file in files}
        saved = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = cls(saved=saved, files=sums, **facts)
        path = folder / MANIFEST
        path.write_text(manifest.to_json(), encoding="utf-8")
        for file in files:  # safetensors lets nobody but the owner read what it writes
            shutil.copymode(path, file)
        sync(path)
        sync_folder(folder)
        if path.read_text("utf-8") != manifest.to_json():
            raise OSError(f"{MANIFEST} holds other values than were written")
        return manifest

    def check_sizes(self, folder: Path) -> None:
        """Look whether every file is there, in full length; quick.

        Raises:
            CheckpointError: one is not.
        """
        for name, expected in self.files.items():
            try:
                size = (folder / name).stat().st_size
            except OSError as problem:
                raise CheckpointError(f"{name} is missing", path=folder) from problem
            if size != expected.bytes:
                raise CheckpointError(
                    f"{name} has {size:,} bytes of {expected.bytes:,}", path=folder
                )

    def check_sums(self, folder: Path) -> None:
        """Look whether every file is what was saved, to the bit; reads all of them.

        Raises:
            CheckpointError: one is not.
        """
        self.check_sizes(folder)
        for name, expected in self.files.items():
            try:
                found = sha256_of(folder / name)
            except OSError as problem:
                raise CheckpointError(
                    f"{name} cannot be read ({problem.strerror})", path=folder
                ) from problem
            if found != expected.sha256:
                raise CheckpointError(f"{name} is damaged (its checksum differs)", path=folder)


def _sum_of(values: Mapping[str, Any]) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _file_name(name: str) -> str:
    if name != Path(name).name or name in ("", ".", ".."):
        raise ValueError(f"{name!r} leads out of the checkpoint")
    return name
