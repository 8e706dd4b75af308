"""Videos in and out: frames with their times from a file or a folder, and a file that plays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import av
import av.error
import numpy as np
from av.codec import Codec
from av.codec.codec import UnknownCodecError
from numpy.typing import NDArray
from PIL import Image

from surefoot.data.video import FrameFolder, FrameSource, VideoFile
from surefoot.errors import ConfigError, DataError

__all__ = ["VIDEO_SUFFIXES", "FolderWriter", "Frames", "Timing", "VideoWriter", "open_frames"]

Picture = NDArray[np.uint8]

VIDEO_SUFFIXES = frozenset({".mp4", ".mkv", ".mov"})
_CODECS: tuple[tuple[str, dict[str, str]], ...] = (
    ("libx264", {"crf": "18", "preset": "veryfast"}),
    ("mpeg4", {"qscale": "3"}),
)
_RATE = Fraction(25)


@dataclass(frozen=True)
class Timing:
    """When frames are shown."""

    rate: Fraction
    """Frames per second, on average."""
    base: Fraction
    """Seconds of one tick."""
    ticks: Sequence[int]
    """Of every frame, from 0."""


class Frames(Protocol):
    """Takes frames one after the other."""

    def write(self, picture: Picture) -> None:
        """H W 3, RGB bytes."""
        ...


def open_frames(path: Path) -> FrameSource:
    """A video file, or a folder of its frames.

    Raises:
        DataError: it is missing, no video, holds no frame, or cannot be decoded.
    """
    if not path.exists():
        raise DataError(f"--video {path}: there is no such file or folder.", path=path)
    return FrameFolder(path) if path.is_dir() else VideoFile(path)


def timing_of(source: FrameSource, rate: Fraction | None = None) -> Timing:
    """When the frames of a source are shown.

    Args:
        source: a video keeps the times that are written in it.
        rate: frames per second of a folder of frames; 25 where it is not given.
    """
    if not isinstance(source, VideoFile):
        rate = rate or _RATE
        return Timing(rate, 1 / rate, range(source.count))
    with av.open(source.path) as container:
        stream = container.streams.video[0]
        average = stream.average_rate or stream.guessed_rate or _RATE
        base = stream.time_base
    if base is None:  # a container without times
        return Timing(Fraction(average), 1 / Fraction(average), range(source.count))
    ticks = source._times - source._times[0]
    return Timing(Fraction(average), Fraction(base), ticks.tolist())


class VideoWriter:
    """A video file of drawn frames: H.264 where the encoder is there, else MPEG-4.

    Players expect even sides of a frame: of an odd one the last row or column is shown twice.

    Args:
        path: file to write; its suffix names the container.
        size: width and height in pixels.
        timing: of the frames, in the order they are written.
        codecs: names of encoders, the preferred first.

    Raises:
        ConfigError: no encoder is there, or the file cannot be written.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        timing: Timing,
        codecs: Sequence[str] = tuple(name for name, _ in _CODECS),
    ) -> None:
        self.path, self._timing, self._written = path, timing, 0
        self.codec = _first_codec(codecs)
        width, height = (side + side % 2 for side in size)
        self._size = size
        try:
            self._container: Any = av.open(path, "w")
            options = dict(_CODECS).get(self.codec, {})
            self._stream: Any = self._container.add_stream(
                self.codec, rate=timing.rate, options=options
            )
        except (av.error.FFmpegError, OSError, ValueError) as problem:
            raise ConfigError(f"--out {path}: cannot be written ({problem}).") from problem
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = "yuv420p"
        # MPEG-4 has 16 bits for a tick; H.264 has no such limit.
        fine = self.codec != "mpeg4" or timing.base.denominator < 2**16
        self._base = timing.base if fine else 1 / timing.rate
        self._ticks = timing.ticks if fine else range(len(timing.ticks))
        self._stream.codec_context.time_base = self._base

    def write(self, picture: Picture) -> None:
        """Append a frame of the video's size."""
        width, height = self._size
        padded = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(padded), format="rgb24")
        frame.pts, frame.time_base = int(self._ticks[self._written]), self._base
        self._written += 1
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self._container.mux(self._stream.encode(None))
        self._container.close()
        if error is not None:
            self.path.unlink(missing_ok=True)


def _first_codec(names: Sequence[str]) -> str:
    for name in names:
        try:
            Codec(name, "w")
        except UnknownCodecError:
            continue
        return name
    raise ConfigError(
        f"writing a video: PyAV has none of the encoders {', '.join(names)} here; give a folder as "
        "--out, which takes the frames as pictures."
    )


class FolderWriter:
    """A folder of drawn frames, 000000.jpg and on."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._written = folder, 0

    def write(self, picture: Picture) -> None:
        """Append a frame."""
        path = self.folder / f"{self._written:06}.jpg"
        Image.fromarray(picture).save(path, quality=92)
        self._written += 1

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is open."""
