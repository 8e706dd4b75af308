"""The AeroEyes layout: a video per object, three photos of it, and a box where it shows.

    root/
      samples/<video_id>/
        drone_video.mp4             or frames/000000.jpg, 000001.jpg, ...
        object_images/img_1.jpg ... photos of the object
      annotations/annotations.json  boxes; frames without one show the background alone

The name of a video is ``<category>_<number>``: Backpack_0 and Backpack_1 are two backpacks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from operator import attrgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from surefoot.data.annotations import (
    FrameBoxes,
    Problems,
    check_boxes,
    find_annotations,
    read_annotations,
)
from surefoot.data.cache import ByteCache
from surefoot.data.video import (
    IMAGE_SUFFIXES,
    FrameFolder,
    FrameSource,
    VideoFile,
    check_image,
    read_image,
)
from surefoot.errors import ConfigError, DataError, UsageError

__all__ = ["AeroEyes", "Video"]

Picture = NDArray[np.uint8]


class Video:
    """A video of one object, with its boxes and its reference photos.

    Pictures are H W 3, RGB bytes, and read-only: the cache gives the same one to everybody.
    """

    def __init__(
        self,
        video_id: str,
        source: FrameSource,
        *,
        boxes: FrameBoxes,
        references: tuple[Path, ...],
        cache: ByteCache[Picture],
    ) -> None:
        self.id = video_id
        self.boxes = boxes
        """Frame index to boxes, n 4, float32, x1 y1 x2 y2 in pixels; only frames that have one."""
        self.references = references
        """Photos of the object, in the order of their names."""
        self._source = source
        self._cache = cache

    def __repr__(self) -> str:
        width, height = self.size
        return f"Video({self.id!r}, {self.frame_count} frames of {width}x{height})"

    @property
    def path(self) -> Path:
        """The video's file, or the folder of its frames."""
        return self._source.path

    @property
    def category(self) -> str:
        """The name up to its last underscore."""
        return self.id.rpartition("_")[0] or self.id

    @property
    def frame_count(self) -> int:
        """How many frames there are."""
        return self._source.count

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of a frame in pixels."""
        return self._source.size

    @property
    def present(self) -> NDArray[np.int64]:
        """Frames that have a box, ascending."""
        return np.array(sorted(self.boxes), dtype=np.int64)

    def absent(self, guard_band: int = 0) -> NDArray[np.int64]:
        """Frames without a box and more than ``guard_band`` frames from every one that has."""
        blocked = np.zeros(self.frame_count, dtype=bool)
        for frame in self.boxes:
            blocked[max(frame - guard_band, 0) : frame + guard_band + 1] = True
        return np.flatnonzero(~blocked)

    def frame(self, index: int) -> Picture:
        """One frame. See :meth:`frames`."""
        return next(self.frames([index]))

    def frames(self, indices: Sequence[int]) -> Iterator[Picture]:
        """The frames asked for, in that order; ascending order is decoded in one pass.

        Raises:
            UsageError: an index the video does not have.
            DataError: a frame cannot be decoded.
        """
        for index in indices:
            if not 0 <= index < self.frame_count:
                raise UsageError(
                    f"{self.id}: frame {index} was asked for; the video has frames 0 to "
                    f"{self.frame_count - 1}."
                )
        return self._frames(indices)

    def decode(self, indices: Iterable[int]) -> Iterator[Picture]:
        """Frames that the video has, in the order asked for, past the cache.

        Raises:
            DataError: a frame cannot be decoded.
        """
        return self._source.read(indices)

    def _frames(self, indices: Sequence[int]) -> Iterator[Picture]:
        # The source takes an index from the queue when it is asked for a picture: what the cache
        # holds is never decoded, and what it drops meanwhile is.
        queue: deque[int] = deque()
        decoded = self._source.read(iter(queue.popleft, -1))

        def decode(index: int) -> Picture:
            queue.append(index)
            picture = next(decoded)
            picture.setflags(write=False)
            return picture

        for index in indices:
            yield self._cache.get((self.id, index), partial(decode, index))

    def read_reference(self, number: int) -> Picture:
        """Photo ``number``, from 0, upright.

        Raises:
            DataError: the file cannot be read.
        """
        return read_image(self.references[number])


class AeroEyes:
    """A data set in the AeroEyes layout.

    Opening it checks all of it that can be checked without decoding every frame, and reports all
    problems together.

    Example:
        data = AeroEyes.open("datasets/train")
        video = data.videos[0]
        for picture in video.frames(range(video.frame_count)): ...
    """

    def __init__(self, root: Path, videos: Iterable[Video]) -> None:
        self.root = root
        self.videos = tuple(videos)

    def __repr__(self) -> str:
        return f"AeroEyes({str(self.root)!r}, {len(self.videos)} videos)"

    @property
    def cache_bytes(self) -> int:
        """Budget of decoded frames that each process may hold in memory."""
        caches = {id(video._cache): video._cache.budget for video in self.videos}
        return sum(caches.values())

    @classmethod
    def open(
        cls, root: Path | str, annotations: Path | str | None = None, *, cache_mb: float = 256
    ) -> AeroEyes:
        """Open the data set in ``root``.

        Args:
            root: the folder that holds samples/, or samples/ itself.
            annotations: the annotations file, where it is in neither of its usual places.
            cache_mb: memory for decoded frames, per process and data set.

        Raises:
            DataError: the folder or annotations are missing, or the data are not as they have to
                be: a video without boxes, boxes without a video, a box that is inverted or outside
                its frame, an unreadable image or video, no reference photos.
        """
        root = Path(root)
        samples = _samples_folder(root)
        problems = Problems(root)
        file = Path(annotations) if annotations else find_annotations(root, samples)
        truth = read_annotations(file, problems)
        folders = {path.name: path for path in sorted(samples.iterdir()) if path.is_dir()}
        for name in sorted(set(truth) - set(folders)):
            problems.add(f"{name}: annotated in {file.name}, but {samples / name} does not exist")
        cache = ByteCache[Picture](cache_mb, size=attrgetter("nbytes"))
        videos: list[Video] = []
        for name, folder in folders.items():
            references = _references(folder, problems)
            source = _source(folder, problems)
            if not truth.get(name):
                problems.add(f"{name}: no boxes in {file}; annotate the video, or remove it")
            if source is not None:
                checked = check_boxes(
                    name,
                    truth.get(name, {}),
                    count=source.count,
                    size=source.size,
                    problems=problems,
                )
                video = Video(name, source, boxes=checked, references=references, cache=cache)
                videos.append(video)
        if not folders:
            problems.add(f"no videos: {samples} holds no folders")
        problems.raise_if_any()
        return cls(root, videos)

    def subset(self, names: Iterable[str]) -> AeroEyes:
        """The data set with only the videos named, in its own order.

        Raises:
            ConfigError: a name it does not have.
        """
        wanted = set(names)
        unknown = sorted(wanted - {video.id for video in self.videos})
        if unknown:
            have = ", ".join(video.id for video in self.videos)
            raise ConfigError(f"{self.root} has no videos {', '.join(unknown)}; it has {have}.")
        return AeroEyes(self.root, [video for video in self.videos if video.id in wanted])


def _samples_folder(root: Path) -> Path:
    if not root.is_dir():
        raise DataError(
            f"Reading the data set {root}: no such folder; expected one that holds "
            "samples/<video_id>/ and annotations/annotations.json.",
            path=root,
        )
    if (root / "samples").is_dir():
        return root / "samples"
    if root.name == "samples":
        return root
    raise DataError(
        f"Reading the data set {root}: it holds no samples/ folder; expected "
        "samples/<video_id>/{drone_video.mp4 or frames/, object_images/}.",
        path=root,
    )


def _references(folder: Path, problems: Problems) -> tuple[Path, ...]:
    home = folder / "object_images"
    files = sorted(home.iterdir()) if home.is_dir() else []
    photos = tuple(file for file in files if file.suffix.lower() in IMAGE_SUFFIXES)
    if not photos:
        problems.add(f"{folder.name}: no reference photos; expected some in {home}")
    for fault in filter(None, map(check_image, photos)):
        problems.add(f"{folder.name}: {fault}")
    return photos


def _source(folder: Path, problems: Problems) -> FrameSource | None:
    video, frames = folder / "drone_video.mp4", folder / "frames"
    try:
        if video.is_file():
            return VideoFile(video)
        if frames.is_dir():
            return FrameFolder(frames)
    except DataError as error:
        problems.add(f"{folder.name}: {error}")
        return None
    problems.add(f"{folder.name}: no video; expected {video} or a folder {frames}")
    return None
