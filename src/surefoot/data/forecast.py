"""How much memory the workers of a run will hold, before they hold it."""

from __future__ import annotations

from dataclasses import dataclass

from surefoot.data.video_episodes import VideoEpisodes
from surefoot.errors import ConfigError

__all__ = ["MemoryForecast", "predicted_memory"]

_FLOAT = 4
_COPIES = 3
_DECODED = 3


@dataclass(frozen=True, kw_only=True)
class MemoryForecast:
    """Host memory of loading episodes, in bytes: an upper bound, beside what programs take."""

    processes: int
    """That load: the workers, or the training process itself."""
    episodes: int
    """In flight at the most: made, being made, or being trained on."""
    episode: int
    """Pictures of one episode, float32."""
    caches: int
    """Budgets of a process's caches, as far as they can fill."""
    making: int
    """What a process needs beside while it makes an episode: frames decoded, bytes of pictures."""

    @property
    def total(self) -> int:
        """Of all processes together."""
        return self.episodes * self.episode + self.processes * (self.caches + self.making)

    def __str__(self) -> str:
        """One line."""
        return (
            f"loading takes up to {self.total / 1e9:.2f} GB of host memory: {self.episodes} "
            f"episodes of {self.episode / 1e6:.1f} MB, and in {self.processes} "
            f"process{'es' * (self.processes > 1)} caches of {self.caches / 1e6:.0f} MB and "
            f"{self.making / 1e6:.0f} MB to work in each"
        )


def predicted_memory(source: VideoEpisodes, *, workers: int, prefetch: int = 4) -> MemoryForecast:
    """What loading episodes will hold at the most, from the settings alone.

    A worker makes one episode at a time; a loader keeps ``prefetch`` of each worker's, and the
    training loop one. Every process has its own caches. Not counted is what Python and the
    libraries take in each process (about 0.3 GB, most of it shared where workers are forked), and
    the boxes (about 40 bytes each).

    Args:
        source: the episodes.
        workers: processes of the loader; 0: episodes are made in the training process.
        prefetch: episodes that the loader asks of each worker beforehand (``prefetch_factor``).

    Raises:
        ConfigError: a number below 0, or a ``prefetch`` of 0 with workers.
    """
    if workers < 0 or prefetch < (1 if workers else 0):
        raise ConfigError(
            f"predicted_memory: workers {workers} and prefetch {prefetch}; expected at least 0, "
            "and at least 1 where there are workers."
        )
    config, dataset = source.config, source.dataset
    frame, photo = 3 * config.image_size**2, 3 * config.support_size**2
    pictures = config.n_way * (config.n_query * frame + config.k_shot * photo)
    photos = sum(len(video.references) for video in dataset.videos)
    largest = max(3 * width * height for width, height in (video.size for video in dataset.videos))
    return MemoryForecast(
        processes=max(workers, 1),
        episodes=workers * prefetch + 1 if workers else 1,
        episode=_FLOAT * pictures,
        caches=dataset.cache_bytes + min(source.photo_cache_bytes, photos * photo),
        making=_COPIES * pictures + _DECODED * largest,
    )
