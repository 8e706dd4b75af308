"""The decoded frames of one video in one file, each found in the same time.

    8 bytes                 what the file is
    4088 bytes              its header: JSON, and spaces up to the end
    frames x 24 bytes       of each frame: where it begins, its length, its CRC-32; 0 0 0: not kept
    the frames

The file appears under its name when it is complete, and its header holds a checksum of the table
and the length of the whole, so that one that a machine lost half of is recognised.
"""

from __future__ import annotations

import io
import json
import os
import warnings
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from surefoot.data.transforms import Letterbox, letterbox

__all__ = ["Encoding", "FrameFile", "content_of", "encode", "overhead", "write_frame_file"]

Encoding = Literal["raw", "jpeg"]
"""raw: the bytes of the pixels. jpeg: quality 95 at full colour resolution, about a tenth of
that, decoded in milliseconds; pixels differ a little from those of the video."""

Picture = NDArray[np.uint8]
_MAGIC = b"SFFRAME1"
_HEADER = 4096
_ROW = np.dtype([("start", "<i8"), ("length", "<i8"), ("crc", "<i8")])


@dataclass(frozen=True)
class FrameFile:
    """A file that was found whole; it holds no handle and no frame, and travels to workers."""

    path: Path
    frames: int
    """Of the video."""
    kept: int
    """How many of them are here."""
    bytes: int
    """Of the file."""
    size: int
    """Side in pixels that frames are letterboxed to."""
    place: Letterbox
    """Where a frame of the video lies in its square."""
    shape: tuple[int, int, int]
    """Of a kept frame."""
    encoding: Encoding
    made_from: Mapping[str, Any]
    """What it was made from, and for; another one is to be made when this is not so any more."""

    @classmethod
    def open(cls, path: Path) -> FrameFile | None:
        """The file at ``path``; None where there is none, or not a whole one."""
        try:
            with path.open("rb") as file:
                if file.read(len(_MAGIC)) != _MAGIC:
                    return None
                header = json.loads(file.read(_HEADER - len(_MAGIC)))
                table = file.read(header["frames"] * _ROW.itemsize)
                length = file.seek(0, os.SEEK_END)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if zlib.crc32(table) != header["table_crc"] or length != header["bytes"]:
            return None
        return cls(
            path=path,
            frames=header["frames"],
            kept=header["kept"],
            bytes=length,
            size=header["size"],
            place=Letterbox(**header["place"]),
            shape=tuple(header["shape"]),
            encoding=header["encoding"],
            made_from=header["made_from"],
        )

    def read(self, frame: int) -> Picture | None:
        """The frame in its square, or None where it is not kept.

        A frame that cannot be read any more is as one that is not kept, with a warning.
        """
        if not 0 <= frame < self.frames:
            return None
        try:
            with self.path.open("rb") as file:
                file.seek(_HEADER + frame * _ROW.itemsize)
                row = np.frombuffer(file.read(_ROW.itemsize), _ROW)[0]
                if not row["length"]:
                    return None
                file.seek(int(row["start"]))
                data = file.read(int(row["length"]))
            if zlib.crc32(data) != row["crc"]:
                raise ValueError("its checksum is another")
            return letterbox(self._decoded(data), self.size)[0]
        except (OSError, ValueError, IndexError) as error:
            warnings.warn(
                f"{self.path}: frame {frame} cannot be read ({error}); it is decoded from the "
                "video instead. Delete the file, and the next run makes it anew.",
                RuntimeWarning,
                stacklevel=2,
            )
            return None

    def _decoded(self, data: bytes) -> Picture:
        if self.encoding == "raw":
            return np.frombuffer(data, np.uint8).reshape(self.shape)
        with Image.open(io.BytesIO(data)) as image:
            return np.array(image)


def overhead(frames: int) -> int:
    """Bytes of a file that keeps none of so many frames."""
    return _HEADER + frames * _ROW.itemsize


def content_of(picture: Picture, size: int) -> Picture:
    """What is kept of a frame: all that :func:`letterbox` needs to make the same square again.

    That is the frame shrunk to ``size``, without the grey around it; one that is no larger than
    that is kept as it is.
    """
    if max(picture.shape[:2]) <= size:
        return picture
    square, place = letterbox(picture, size)
    # As letterbox has it; test_frame_store.py compares every size of a side.
    height, width = (max(1, int(side * place.scale + 1e-6)) for side in picture.shape[:2])
    return square[place.pad_y : place.pad_y + height, place.pad_x : place.pad_x + width]


def encode(content: Picture, encoding: Encoding) -> bytes:
    """The bytes that are kept of a frame."""
    if encoding == "raw":
        return content.tobytes()
    file = io.BytesIO()
    Image.fromarray(content).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


@dataclass(frozen=True)
class _Draft:
    """What the header says before the frames are there."""

    frames: int
    size: int
    encoding: Encoding
    made_from: Mapping[str, Any]


def write_frame_file(
    path: Path,
    pictures: Iterable[tuple[int, Picture]],
    *,
    frames: int,
    size: int,
    encoding: Encoding,
    made_from: Mapping[str, Any],
) -> FrameFile:
    """Write the pictures until ``made_from["share"]`` bytes are reached; it appears when complete.

    Args:
        path: where; what is there is replaced.
        pictures: frames of the video as they are decoded, with their indices, ascending.
        frames: of the video.
        size: side of the squares.
        encoding: see :data:`Encoding`.
        made_from: for the next one who looks; JSON.

    Raises:
        OSError: the disk does not take it. Nothing is left behind.
    """
    draft = _Draft(frames, size, encoding, made_from)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            header, table = _write_frames(file, pictures, draft)
            file.seek(0)
            file.write(_MAGIC + json.dumps(header).encode().ljust(_HEADER - len(_MAGIC)))
            file.write(table.tobytes())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    made = FrameFile.open(path)
    if made is None:
        raise OSError(f"{path} is not what was written to it")
    return made


def _write_frames(
    file: io.BufferedWriter, pictures: Iterable[tuple[int, Picture]], draft: _Draft
) -> tuple[dict[str, Any], NDArray[Any]]:
    table = np.zeros(draft.frames, _ROW)
    place, shape = Letterbox(1.0, 0, 0), (0, 0, 0)
    end = file.seek(_HEADER + table.nbytes)
    for index, picture in pictures:
        content = content_of(picture, draft.size)
        if not shape[0]:
            shape, place = content.shape, letterbox(picture, draft.size)[1]
        data = encode(content, draft.encoding)
        if end + len(data) > draft.made_from["share"]:
            break
        table[index] = (end, len(data), zlib.crc32(data))
        end += file.write(data)
    file.truncate(end)
    header = asdict(draft) | {
        "kept": int((table["length"] > 0).sum()),
        "bytes": end,
        "place": asdict(place),
        "shape": shape,
        "table_crc": zlib.crc32(table.tobytes()),
    }
    return header, table
