"""Frames decoded once and kept on disk, as many as a budget holds."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from surefoot.data.aeroeyes import Video
from surefoot.data.frame_file import (
    Encoding,
    FrameFile,
    content_of,
    encode,
    overhead,
    write_frame_file,
)
from surefoot.data.transforms import Letterbox
from surefoot.errors import ConfigError, DataError

try:
    import fcntl
except ImportError:  # Windows: two processes may then make the same file, and the last one stays
    fcntl = None

__all__ = ["FrameStore"]

Picture = NDArray[np.uint8]
_SAMPLES = 8
_SPARE = 1.1
_JPEG_SHARE = 0.12


def _silent(line: str) -> None:
    return None


class FrameStore:
    """Frames of a set of videos, letterboxed and kept in a folder: one file for each video.

    A random frame of a video costs the decoding of all frames since the key frame before it; one of
    the store costs a read. Any number of processes may read, and none holds a frame in memory. What
    is not kept is decoded from the video, so that a store changes how long it takes and, with raw
    frames, nothing else.

    A budget that does not hold all frames is spent on those with a box first, in all videos, and on
    an even choice of the others then. At 640 pixels a frame of 16:9 takes 0.69 MB raw and about a
    tenth of that as JPEG.

    A video's file is made once for a side and an encoding, and made anew when the video has
    changed, or where the file is damaged; one that does not hold all frames also when the boxes
    are others, or the video's part of the budget. Two processes that build at the same time wait
    for each other. An interrupted build leaves the videos it was done with, and a ``.partial`` that
    the next one removes. Files of videos that are no longer used stay, beyond the budget, until
    somebody deletes them; so do those of other sides.

    Example:
        data = AeroEyes.open("datasets/train")
        store = FrameStore.build("cache", data.videos, size=640, budget_mb=20_000)
        episodes = VideoEpisodes(data, EpisodeConfig(image_size=640), store=store)
    """

    def __init__(self, size: int, frames: int, files: dict[str, FrameFile]) -> None:
        self.size = size
        """Side of the squares, in pixels."""
        self.frames = frames
        """Of all the videos."""
        self._files = files

    def __str__(self) -> str:
        """What is kept, in one line."""
        rest = "" if self.kept == self.frames else "; the others are decoded from their videos"
        return f"{self.kept} of {self.frames} frames on disk, {self.bytes / 1e6:.0f} MB{rest}"

    @property
    def kept(self) -> int:
        """How many frames are on disk."""
        return sum(file.kept for file in self._files.values())

    @property
    def bytes(self) -> int:
        """Of all files."""
        return sum(file.bytes for file in self._files.values())

    def read(self, video_id: str, frame: int) -> tuple[Picture, Letterbox] | None:
        """A frame as :func:`letterbox` gives it, or None where it is not kept."""
        file = self._files.get(video_id)
        square = file.read(frame) if file else None
        return (square, file.place) if file and square is not None else None

    @classmethod
    def build(
        cls,
        folder: Path | str,
        videos: Iterable[Video],
        *,
        size: int,
        budget_mb: float,
        encoding: Encoding = "raw",
        say: Callable[[str], None] = _silent,
    ) -> FrameStore:
        """Decode what is not there yet, each video once from its start to its end.

        Args:
            folder: where the files lie; made where it does not exist.
            videos: whose frames.
            size: side that frames are letterboxed to, in pixels.
            budget_mb: space on disk for the files of these videos.
            encoding: ``raw`` gives the very pixels of the video, ``jpeg`` takes less space and
                changes them a little.
            say: is given a line for each video that is decoded.

        Raises:
            ConfigError: a setting outside its range.
            DataError: the folder cannot be written to.
        """
        if size < 1 or not 0 <= budget_mb < float("inf"):
            raise ConfigError(
                f"FrameStore: size {size} and budget_mb {budget_mb}; expected a side of at least "
                "1 pixel and a finite budget of at least 0."
            )
        if encoding not in get_args(Encoding):
            raise ConfigError(
                f"FrameStore: encoding {encoding!r}; expected one of "
                f"{', '.join(get_args(Encoding))}."
            )
        folder, videos = Path(folder), tuple(videos)
        per_frame = [_frame_bytes(video, size, encoding) for video in videos]
        shares = _shares(videos, per_frame, int(budget_mb * 1e6))
        files: dict[str, FrameFile] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for video, share in zip(videos, shares, strict=True):
                order = _Order(video, size, encoding, share)
                if order.room > 0:
                    files[video.id] = order.file_in(folder, say)
        except OSError as error:
            raise DataError(
                f"Keeping decoded frames in {folder}: {error}. Make room or name another folder, "
                "or do without: frames are decoded from their videos then.",
                path=folder,
            ) from error
        return cls(size, sum(video.frame_count for video in videos), files)


@dataclass(frozen=True)
class _Order:
    """The file that is wanted of a video."""

    video: Video
    size: int
    encoding: Encoding
    share: int

    @property
    def room(self) -> int:
        """Bytes of the share that frames may take."""
        return self.share - overhead(self.video.frame_count)

    def file_in(self, folder: Path, say: Callable[[str], None]) -> FrameFile:
        """The file, made where it is not there."""
        # Two data sets may have a video of the same name.
        place = zlib.crc32(str(self.video.path.absolute()).encode())
        name = re.sub(r"[^\w.-]", "_", self.video.id)
        path = folder / f"{name}-{place:08x}-{self.size}-{self.encoding}.frames"
        with _alone(path):
            wanted = self._made_from()
            found = FrameFile.open(path)
            if found is not None and self._will_do(found, wanted):
                return found
            frames = self._chosen()
            say(
                f"{self.video.id}: decoding {len(frames)} of {self.video.frame_count} frames "
                f"into {path}"
            )
            return write_frame_file(
                path,
                self._pictures(frames, say),
                frames=self.video.frame_count,
                size=self.size,
                encoding=self.encoding,
                made_from=wanted,
            )

    def _made_from(self) -> dict[str, Any]:
        video = self.video
        return {
            "video": video.id,
            "source": _identity(video.path),
            "present": zlib.crc32(video.present.astype("<i8").tobytes()),
            "share": self.share,
        }

    def _will_do(self, found: FrameFile, wanted: dict[str, Any]) -> bool:
        if found.kept < found.frames:
            return found.made_from == wanted
        same_video = found.made_from["source"] == wanted["source"]
        return same_video and found.bytes <= self.share  # whatever the budget was

    def _chosen(self) -> list[int]:
        """The frames that the share holds, ascending; those with a box before the others."""
        count = int(self.room / max(self._one_frame(), 1))
        present = _even(self.video.present, count)
        return sorted([*present, *_even(self.video.absent(), count - len(present))])

    def _one_frame(self) -> float:
        """Bytes of a frame; of encoded ones, the mean of a few and some more."""
        if self.encoding == "raw":
            return _frame_bytes(self.video, self.size, "raw")
        frames = _even(np.arange(self.video.frame_count), _SAMPLES)
        try:
            contents = [content_of(picture, self.size) for picture in self.video.decode(frames)]
        except DataError:
            return _frame_bytes(self.video, self.size, self.encoding)
        return _SPARE * float(np.mean([len(encode(c, self.encoding)) for c in contents]))

    def _pictures(
        self, frames: list[int], say: Callable[[str], None]
    ) -> Iterator[tuple[int, Picture]]:
        try:
            yield from zip(frames, self.video.decode(frames), strict=True)
        except DataError as error:  # whoever asks for such a frame hears of it then
            say(f"{self.video.id}: kept up to there: {error}")


@contextmanager
def _alone(path: Path) -> Generator[None]:
    """No other process makes this file meanwhile; what a killed one left is removed."""
    if fcntl is None:
        yield
        return
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # ends with the process that holds it, however that ends
        for left in path.parent.glob(f"{path.name}.*.partial"):
            with suppress(OSError):
                left.unlink()
        yield


def _identity(path: Path) -> list[int]:
    """What tells a video from the one that replaces it: files, bytes, and the last change."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [file.stat() for file in files]
    return [len(stats), sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)]


def _frame_bytes(video: Video, size: int, encoding: Encoding) -> int:
    """Of one kept frame; of encoded ones roughly."""
    scale = min(1.0, size / max(video.size))
    width, height = (max(1, int(side * scale + 1e-6)) for side in video.size)
    return int(3 * width * height * (1 if encoding == "raw" else _JPEG_SHARE))


def _shares(videos: tuple[Video, ...], per_frame: list[int], budget: int) -> list[int]:
    """Bytes for each video: what frames with a box need first, then what the others do."""
    counts = [len(video.boxes) for video in videos]
    tables = np.array([overhead(video.frame_count) for video in videos], dtype=np.float64)
    present = np.multiply(counts, per_frame).astype(np.float64)
    rest = [v.frame_count - n for v, n in zip(videos, counts, strict=True)]
    absent = np.multiply(rest, per_frame).astype(np.float64)
    room = budget - tables.sum()
    if room <= present.sum():
        shares = tables + room * present / max(present.sum(), 1)
    elif room <= (present + absent).sum():
        shares = tables + present + (room - present.sum()) * absent / max(absent.sum(), 1)
    else:
        shares = tables + room * (present + absent) / max((present + absent).sum(), 1)
    return [int(share) for share in shares]


def _even(frames: NDArray[np.int64], count: int) -> list[int]:
    """``count`` of the frames, evenly spread; all where there are no more."""
    if count >= len(frames):
        return frames.tolist()
    return frames[np.linspace(0, len(frames) - 1, max(count, 0)).round().astype(int)].tolist()
