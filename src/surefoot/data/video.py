"""Frames by index: from a video file through PyAV, or from a folder of images."""

from __future__ import annotations

import itertools
import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Protocol

import av
import av.error
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from numpy.typing import NDArray
from PIL import Image, ImageOps

from surefoot.errors import DataError

__all__ = ["FrameFolder", "FrameSource", "VideoFile", "check_image", "read_image"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})

# What Pillow raises for files that are no images, cut short or damaged.
_DAMAGE = (OSError, SyntaxError, ValueError)


class FrameSource(Protocol):
    """Frames that can be read by their index."""

    @property
    def path(self) -> Path:
        """The file or folder."""
        ...

    @property
    def count(self) -> int:
        """How many frames there are."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        ...

    def read(self, indices: Iterable[int]) -> Iterator[NDArray[np.uint8]]:
        """The frames, H W 3 RGB, in the order asked for; ascending order is the fastest."""
        ...


def read_image(path: Path) -> NDArray[np.uint8]:
    """An image as H W 3 RGB bytes, turned upright as its EXIF orientation says.

    Raises:
        DataError: the file is missing, no image, or damaged.
    """
    try:
        with Image.open(path) as image:
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except _DAMAGE as error:
        raise DataError(_unreadable(path, error), path=path) from error


def check_image(path: Path) -> str | None:
    """What is wrong with an image, or None; JPEG is decoded at an eighth of its size."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (image.width // 8, image.height // 8))
            image.load()
    except _DAMAGE as error:
        return _unreadable(path, error)
    return None


def _unreadable(path: Path, error: Exception) -> str:
    return f"unreadable image {path}: {error}. Replace the file, or remove it from the data set."


def _number(path: Path) -> int | None:
    digits = re.findall(r"\d+", path.stem)
    return int(digits[-1]) if digits else None


class FrameFolder:
    """A video kept as a folder of images.

    A frame's index is its position, from 0, when the files are sorted by the last number in their
    names (by name where one has none). So ``000001.jpg`` is frame 0 when the numbers start at 1, as
    they do when ffmpeg writes them. Numbers must be consecutive: with a frame missing, every later
    index would silently mean another moment.

    Raises:
        DataError: no images, a gap in the numbers, an unreadable header, or sizes that differ.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        files = [p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES]
        if not files:
            raise DataError(f"no images in {path}; expected 000000.jpg, 000001.jpg, ...", path=path)
        self._files = self._in_order(files)
        self.count = len(files)
        self.size = self._one_size()

    def read(self, indices: Iterable[int]) -> Iterator[NDArray[np.uint8]]:
        """See :meth:`FrameSource.read`."""
        return (read_image(self._files[index]) for index in indices)

    def _in_order(self, files: list[Path]) -> list[Path]:
        numbered = [(number, p) for p in files if (number := _number(p)) is not None]
        if len(numbered) < len(files):
            return sorted(files)
        numbered.sort()
        for (before, _), (number, file) in itertools.pairwise(numbered):
            if number != before + 1:
                raise DataError(
                    f"{self.path}: {file.name} follows number {before}; expected {before + 1}. "
                    "Frame indices are positions in the folder, so it must hold every frame once.",
                    path=file,
                )
        return [file for _, file in numbered]

    def _one_size(self) -> tuple[int, int]:
        sizes: dict[tuple[int, int], Path] = {}
        for file in self._files:
            try:
                with Image.open(file) as image:
                    turned = image.getexif().get(0x0112, 1) >= 5
                    width, height = image.size
                    sizes.setdefault((height, width) if turned else (width, height), file)
            except _DAMAGE as error:
                raise DataError(_unreadable(file, error), path=file) from error
        if len(sizes) > 1:
            named = ", ".join(f"{w}x{h} ({file.name})" for (w, h), file in sizes.items())
            raise DataError(f"{self.path}: frames differ in size: {named}.", path=self.path)
        return next(iter(sizes))


class VideoFile:
    """A video file; frame ``i`` is the ``i``-th picture shown, from 0.

    Opening reads the packets once (without decoding them) to know every frame's time and the key
    frames, so that a single frame costs one seek and the frames since its key frame. No handle
    stays open: the object can be sent to worker processes.

    Raises:
        DataError: the file is missing, no video, holds no frame, or cannot be decoded.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._index()
        except (av.error.FFmpegError, OSError) as error:
            raise self._damaged(error) from error
        with closing(self.read([0])) as frames:
            height, width, _ = next(frames).shape
        self.size = (width, height)

    def read(self, indices: Iterable[int]) -> Generator[NDArray[np.uint8], None, None]:
        """See :meth:`FrameSource.read`; decodes on from frame to frame and seeks where it pays."""
        try:
            with av.open(self.path) as container:
                # One thread: data workers are the parallelism, and frames are asked for singly.
                container.streams.video[0].codec_context.thread_count = 1
                yield from self._read(container, indices)
        except (av.error.FFmpegError, OSError) as error:
            raise self._damaged(error) from error

    def _read(
        self, container: InputContainer, indices: Iterable[int]
    ) -> Generator[NDArray[np.uint8], None, None]:
        at, frame = self.count, None
        following: Iterator[tuple[int, VideoFrame]] = iter(())
        for index in indices:
            key = int(self._keys[np.searchsorted(self._keys, index, side="right") - 1])
            if index < at or key > at:
                following = self._decode_from(container, key)
            if index != at:
                found = (pair for pair in following if pair[0] >= index)
                at, frame = next(found, (self.count, None))
            if frame is None or at != index:
                raise DataError(
                    f"unreadable video {self.path}: frame {index} of {self.count} cannot be "
                    "decoded. Encode the file anew, or remove it from the data set.",
                    path=self.path,
                )
            yield np.asarray(frame.to_ndarray(format="rgb24"), dtype=np.uint8)

    def _decode_from(
        self, container: InputContainer, key: int
    ) -> Generator[tuple[int, VideoFrame], None, None]:
        """Frames and their indices from a key frame on."""
        stream = container.streams.video[0]
        container.seek(int(self._times[key]), stream=stream)
        for frame in container.decode(stream):
            at = int(np.searchsorted(self._times, frame.pts if frame.pts is not None else -1))
            if at < self.count and self._times[at] == frame.pts:
                yield at, frame

    def _index(self) -> None:
        """Presentation times of all frames, in their order, and which of them are key frames."""
        with av.open(self.path) as container:
            if not container.streams.video:
                raise DataError(f"unreadable video {self.path}: no video stream.", path=self.path)
            packets = sorted(
                (packet.pts, packet.is_keyframe)
                for packet in container.demux(container.streams.video[0])
                if packet.pts is not None and not packet.is_discard
            )
        if not packets:
            raise DataError(f"unreadable video {self.path}: it holds no frame.", path=self.path)
        self._times = np.array([pts for pts, _ in packets], dtype=np.int64)
        keys = [i for i, (_, is_key) in enumerate(packets) if is_key or i == 0]
        self._keys = np.array(keys, dtype=np.int64)
        self.count = len(packets)

    def _damaged(self, error: Exception) -> DataError:
        return DataError(
            f"unreadable video {self.path}: {error}. Replace the file, or remove it from the data "
            "set.",
            path=self.path,
        )
