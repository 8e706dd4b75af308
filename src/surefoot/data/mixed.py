"""Episodes of two sources in one epoch: what is being learnt, and what is not to be forgotten."""

from __future__ import annotations

import numpy as np

from surefoot.data.episodes import Episodes
from surefoot.errors import ConfigError
from surefoot.shapes import Episode

__all__ = ["MixedEpisodes"]


class MixedEpisodes(Episodes):
    """``first``, with a share of its episodes replaced by episodes of ``second``.

    Fine-tuning on a few objects forgets the many it began with; replaying some of those keeps them
    (Rolnick et al. 2019, arXiv:1811.11682). An epoch has as many episodes as ``first``. Those of
    ``second`` are spread evenly: of the first i episodes, floor(i share) are its own, in its own
    order. Every other episode is the one that ``first`` alone would give at that place. So item
    ``index`` of epoch ``epoch`` depends on the two sources, ``share``, ``epoch`` and ``index``
    alone.

    ``set_epoch`` reaches both sources.

    Args:
        first: what is learnt.
        second: what is replayed; frames, photos and k-shot of the same size, any n-way.
        share: of the episodes, in [0, 1].

    Raises:
        ConfigError: a share outside its range, more episodes asked of ``second`` than it has, or
            pictures of different sizes. One episode of each is drawn to see that.

    Example:
        MixedEpisodes(VideoEpisodes(mine, config), SceneEpisodes(scenes), share=0.25)
    """

    def __init__(self, first: Episodes, second: Episodes, share: float) -> None:
        if not 0 <= share <= 1:
            raise ConfigError(f"MixedEpisodes: share {share}; a part of the whole is from 0 to 1.")
        super().__init__(episodes=len(first), seed=0)
        self.first, self.second, self.share = first, second, share
        wanted = self._replayed(len(first))
        if wanted > len(second):
            raise ConfigError(
                f"MixedEpisodes: a share of {share} of {len(first)} episodes is {wanted}, but the "
                f"second source has {len(second)} in an epoch. Ask for less, or let it have more."
            )
        _check_alike(first[0], second[0])

    def set_epoch(self, epoch: int) -> None:
        """Give out the episodes of ``epoch`` from now on; call it between two passes."""
        super().set_epoch(epoch)
        self.first.set_epoch(epoch)
        self.second.set_epoch(epoch)

    def __getitem__(self, index: int) -> Episode:
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index}: an epoch has {len(self)}, numbered from 0")
        before, after = self._replayed(index), self._replayed(index + 1)
        return self.second[before] if after > before else self.first[index]

    def _episode(self, random: np.random.Generator, name: str) -> Episode:
        raise NotImplementedError("an episode of a mixture is one of its sources'")

    def _replayed(self, index: int) -> int:
        """How many of the episodes before ``index`` are of the second source."""
        return int(index * self.share + 1e-9)


def _check_alike(first: Episode, second: Episode) -> None:
    for what, a, b in (
        ("frames", first.images.shape[1:], second.images.shape[1:]),
        ("reference photos (k-shot, channels, height, width)", *_photos(first, second)),
    ):
        if a != b:
            raise ConfigError(
                f"MixedEpisodes: {what} of {tuple(a)} in the first source and {tuple(b)} in the "
                "second; give both the same sizes and the same k-shot."
            )


def _photos(first: Episode, second: Episode) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(first.supports.shape[1:]), tuple(second.supports.shape[1:])
