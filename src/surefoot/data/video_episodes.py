"""Episodes drawn from videos: frames of several objects, each asked for in all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from surefoot.data.aeroeyes import AeroEyes, Video
from surefoot.data.cache import ByteCache
from surefoot.data.episodes import MIN_VISIBLE, Episodes, images_to_tensor
from surefoot.data.frame_store import FrameStore
from surefoot.data.transforms import Augmentation, Letterbox, augment, letterbox
from surefoot.errors import ConfigError
from surefoot.shapes import Episode

__all__ = ["EpisodeConfig", "VideoEpisodes"]

Picture = NDArray[np.uint8]
_NO_BOXES = np.zeros((0, 4), dtype=np.float32)
_REFERENCE_CACHE_MB = 64.0
_GONE = 0.02


@dataclass(frozen=True, kw_only=True)
class EpisodeConfig:
    """How episodes are drawn from a set of videos."""

    n_way: int = 2
    """Objects of an episode: as many videos."""
    n_query: int = 4
    """Frames taken from each video."""
    k_shot: int = 3
    """Reference photos of each object."""
    image_size: int = 640
    """Side frames are letterboxed to, in pixels."""
    support_size: int = 224
    """Side reference photos are letterboxed to, in pixels."""
    background_share: float = 0.35
    """Share of the frames that show the video without its object."""
    guard_band: int = 5
    """Frames this near to one with a box are not taken for empty, where a video is long enough."""
    episodes: int = 200
    """Episodes of an epoch."""
    augment: bool = True
    """Whether pictures are changed at random; never so in validation."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """How far frames may be changed."""
    support_augmentation: Augmentation = field(
        default_factory=lambda: Augmentation(scale=(0.85, 1.2), shift=0.05)
    )
    """How far reference photos may be changed."""
    seed: int = 0
    """Which episodes."""

    def __post_init__(self) -> None:
        for name in ("n_way", "n_query", "k_shot", "image_size", "support_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"EpisodeConfig.{name} is {getattr(self, name)}; at least 1.")
        if not 0 <= self.background_share <= 1:
            raise ConfigError(
                f"EpisodeConfig.background_share is {self.background_share}; expected 0 to 1."
            )
        if self.guard_band < 0:
            raise ConfigError(f"EpisodeConfig.guard_band is {self.guard_band}; at least 0.")


@dataclass(frozen=True)
class _Query:
    """A frame of an episode, letterboxed, and the boxes of its video's own object."""

    image: Picture
    boxes: NDArray[np.float32]
    left: NDArray[np.float32]
    name: str


class VideoEpisodes(Episodes):
    """Episodes of ``n_way`` videos with ``n_query`` frames each; see :class:`EpisodeConfig`.

    Every frame is asked for every object of the episode. The videos annotate their own object only,
    so another's is taken to be absent; therefore no two videos of one category (Backpack_0 and
    Backpack_1) meet in an episode while there are categories enough. When there are not, they do,
    and count as different objects.

    About ``background_share`` of the frames are without the object and further than ``guard_band``
    from every frame that has it, for the frames around an annotated interval often still show a
    little of it. In a short video the band narrows until it leaves half of the frames without a
    box. A video that always shows its object gives frames with it instead; with ``n_query`` above 1
    every video gives at least one of those.

    Of fewer photos than ``k_shot`` some are used again; of more, the first are taken, or any when
    ``augment`` is set. Of a box that augmentation cuts, ``ignore`` is set when less than 35 % of it
    is left, and nothing remains of it below 2 %.

    Args:
        dataset: the videos.
        config: how they are drawn from.
        store: decoded frames on disk, of ``image_size``; what it does not keep, and everything
            where it is not given, is decoded from the videos.

    Raises:
        ConfigError: the data set has fewer videos than ``n_way``, or the store another size.
    """

    def __init__(
        self, dataset: AeroEyes, config: EpisodeConfig, *, store: FrameStore | None = None
    ) -> None:
        super().__init__(episodes=config.episodes, seed=config.seed)
        self.dataset, self.config, self.store = dataset, config, store
        if store is not None and store.size != config.image_size:
            raise ConfigError(
                f"image_size is {config.image_size}, but the store keeps frames of {store.size}; "
                "build it with the size that is trained on."
            )
        if len(dataset.videos) < config.n_way:
            raise ConfigError(
                f"n_way is {config.n_way}, but {dataset.root} has {len(dataset.videos)} videos, "
                "each with one object. Ask for fewer at a time (--n-way), or add videos."
            )
        self._categories: defaultdict[str, list[Video]] = defaultdict(list)
        for video in dataset.videos:
            self._categories[video.category].append(video)
        self._absent = {v.id: _empty_frames(v, config.guard_band) for v in dataset.videos}
        self._photos = ByteCache[Picture](_REFERENCE_CACHE_MB, size=attrgetter("nbytes"))

    @property
    def photo_cache_bytes(self) -> int:
        """Budget of reference photos that each process may hold in memory."""
        return self._photos.budget

    def _episode(self, random: np.random.Generator, name: str) -> Episode:
        videos = self._draw_videos(random)
        queries = [self._queries(random, video) for video in videos]
        supports = np.stack([self._supports(random, video) for video in videos])
        flat = [query for of_video in queries for query in of_video]
        counts = [len(query.boxes) for query in flat]
        owners = np.repeat(np.arange(len(videos)), [len(of_video) for of_video in queries])
        return Episode(
            images=images_to_tensor(np.stack([query.image for query in flat])),
            sample_ids=tuple(query.name for query in flat),
            supports=images_to_tensor(supports),
            boxes=torch.from_numpy(np.concatenate([query.boxes for query in flat])),
            box_image=torch.from_numpy(np.repeat(np.arange(len(flat)), counts)),
            box_object=torch.from_numpy(np.repeat(owners, counts)),
            ignore=torch.from_numpy(np.concatenate([query.left for query in flat]) < MIN_VISIBLE),
        )

    def _draw_videos(self, random: np.random.Generator) -> list[Video]:
        """One video of each of ``n_way`` categories; more of them only where categories run out."""
        order = random.permutation(len(self._categories)).tolist()
        groups = [list(self._categories.values())[i] for i in order]
        shuffled = [[group[i] for i in random.permutation(len(group))] for group in groups]
        rounds = range(max(map(len, shuffled)))
        dealt = [group[turn] for turn in rounds for group in shuffled if turn < len(group)]
        return dealt[: self.config.n_way]

    def _queries(self, random: np.random.Generator, video: Video) -> list[_Query]:
        frames = self._draw_frames(random, video)
        squares = self._squares(video, frames)
        return [
            self._query(random, video, frame, square)
            for frame, square in zip(frames, squares, strict=True)
        ]

    def _squares(self, video: Video, frames: list[int]) -> Iterator[tuple[Picture, Letterbox]]:
        """The frames, letterboxed: from the store, or from the video in one pass."""
        store = self.store
        kept = [store.read(video.id, frame) if store else None for frame in frames]
        missing = [frame for frame, square in zip(frames, kept, strict=True) if square is None]
        decoded = video.frames(missing)
        for square in kept:
            yield square or letterbox(next(decoded), self.config.image_size)

    def _draw_frames(self, random: np.random.Generator, video: Video) -> list[int]:
        """Frames in ascending order, which is the order they decode fastest in."""
        config, present, absent = self.config, video.present, self._absent[video.id]
        wanted = config.n_query * config.background_share
        empty = int(wanted) + int(random.uniform() < wanted - int(wanted))
        empty = min(empty, config.n_query - 1) if config.n_query > 1 else empty
        empty = empty if len(absent) else 0
        shown = _draw(random, present, config.n_query - empty)
        return sorted([*shown, *_draw(random, absent, empty)])

    def _query(
        self,
        random: np.random.Generator,
        video: Video,
        frame: int,
        square: tuple[Picture, Letterbox],
    ) -> _Query:
        image, place = square
        boxes = place.apply(video.boxes.get(frame, _NO_BOXES))
        left = np.ones(len(boxes), dtype=np.float32)
        if self.config.augment:
            image, boxes, left = augment(image, boxes, random, self.config.augmentation)
            boxes, left = boxes[left > _GONE], left[left > _GONE]
        return _Query(image, boxes, left, f"{video.id}/frame {frame}")

    def _supports(self, random: np.random.Generator, video: Video) -> Picture:
        """K h w 3."""
        count, shots = len(video.references), self.config.k_shot
        order = random.permutation(count) if self.config.augment else np.arange(count)
        photos = [self._photo(video, int(i)) for i in np.resize(order, shots)]
        if self.config.augment:
            how = self.config.support_augmentation
            photos = [augment(photo, _NO_BOXES, random, how)[0] for photo in photos]
        return np.stack(photos)

    def _photo(self, video: Video, number: int) -> Picture:
        path: Path = video.references[number]

        def read() -> Picture:
            return letterbox(video.read_reference(number), self.config.support_size)[0]

        return self._photos.get(path, read)


def _empty_frames(video: Video, guard_band: int) -> NDArray[np.int64]:
    """Frames without the object, ``guard_band`` or as far from it as leaves half of them."""
    half = len(video.absent()) / 2
    bands = (video.absent(band) for band in range(guard_band, 0, -1))
    return next((frames for frames in bands if len(frames) >= half), video.absent())


def _draw(random: np.random.Generator, frames: NDArray[np.int64], count: int) -> list[int]:
    """``count`` of the frames; none twice while there are enough."""
    return random.choice(frames, count, replace=count > len(frames)).tolist() if count else []
