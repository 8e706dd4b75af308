"""Episodes of procedural scenes: the training set that needs no download."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from surefoot.data.episodes import MIN_VISIBLE, Episodes, images_to_tensor
from surefoot.data.synthetic import (
    SEEDS_PER_SPLIT,
    Scene,
    Split,
    SyntheticScenes,
    split_seed,
)
from surefoot.data.synthetic_objects import SHAPES
from surefoot.errors import ConfigError
from surefoot.shapes import Episode

__all__ = ["SceneConfig", "SceneEpisodes"]


@dataclass(frozen=True, kw_only=True)
class SceneConfig:
    """What the scenes show and how many there are."""

    n_way: int = 16
    """Objects asked for in an episode."""
    k_shot: int = 3
    """Reference photos of each."""
    scenes: int = 32
    """Scenes of an episode; each is scored against all its objects."""
    scene_size: int = 128
    """Side of a scene in pixels."""
    support_size: int = 64
    """Side of a reference photo in pixels."""
    objects_per_scene: tuple[int, int] = (1, 6)
    """Fewest and most of the episode's objects put into one scene."""
    object_px: tuple[float, float] = (16.0, 64.0)
    """Smallest and largest side of a sprite in a scene, in pixels, before its own 0.75 to 1.35."""
    episodes: int = 500
    """Episodes of an epoch."""
    seed: int = 0
    """Which episodes."""
    split: Split = "train"
    """Whose objects and grounds; no two splits share one."""
    objects: int = 3000
    """How many different objects there are."""
    first_object: int = 0
    """Number of the first one within its split."""
    grounds: int = 60
    """How many different grounds there are."""
    first_ground: int = 0
    """Number of the first one within its split."""
    families: tuple[str, ...] = SHAPES
    """Shape families the objects are made of."""
    cache_mb: float = 128.0
    """Memory for sprites and grounds, per process."""

    def __post_init__(self) -> None:
        for name in ("n_way", "k_shot", "scenes", "scene_size", "support_size", "grounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"SceneConfig.{name} is {getattr(self, name)}; at least 1.")
        if self.objects < self.n_way:
            raise ConfigError(
                f"SceneConfig: n_way is {self.n_way}, but there are only {self.objects} objects. "
                "Ask for fewer at a time, or raise `objects`."
            )
        low, high = self.objects_per_scene
        if not 1 <= low <= high <= self.n_way:
            raise ConfigError(
                f"SceneConfig.objects_per_scene is {self.objects_per_scene}; expected "
                f"1 <= fewest <= most <= n_way ({self.n_way})."
            )
        if not 4 <= self.object_px[0] <= self.object_px[1]:
            raise ConfigError(
                f"SceneConfig.object_px is {self.object_px}; expected 4 <= smallest <= largest."
            )
        for name in ("object", "ground"):
            first, count = getattr(self, f"first_{name}"), getattr(self, f"{name}s")
            if first < 0 or first + count > SEEDS_PER_SPLIT:
                raise ConfigError(
                    f"SceneConfig: {name}s {first} to {first + count - 1} of a split, which has "
                    f"those from 0 to {SEEDS_PER_SPLIT - 1}."
                )


class SceneEpisodes(Episodes):
    """Episodes drawn as they are asked for; see :class:`SceneConfig`.

    An object of which less than 35 % shows has a box with ``ignore`` set.

    >>> config = SceneConfig(n_way=4, scenes=2, scene_size=64, objects_per_scene=(1, 3), episodes=1)
    >>> episode = SceneEpisodes(config)[0]
    >>> episode.images.shape, episode.supports.shape
    (torch.Size([2, 3, 64, 64]), torch.Size([4, 3, 3, 64, 64]))
    """

    def __init__(self, config: SceneConfig) -> None:
        super().__init__(episodes=config.episodes, seed=config.seed)
        self.config = config
        self._scenes = SyntheticScenes(families=config.families, cache_mb=config.cache_mb)
        split_seed(config.split, 0)

    def _episode(self, random: np.random.Generator, name: str) -> Episode:
        config = self.config
        picks = random.choice(config.objects, config.n_way, replace=False)
        seeds = [split_seed(config.split, config.first_object + int(pick)) for pick in picks]
        scenes = [self._scene(random, seeds) for _ in range(config.scenes)]
        supports = [[self._reference(random, seed) for _ in range(config.k_shot)] for seed in seeds]
        return Episode(
            images=images_to_tensor(np.stack([scene.image for scene in scenes])),
            sample_ids=tuple(f"{name}/scene {i}" for i in range(len(scenes))),
            supports=images_to_tensor(np.array(supports, dtype=np.uint8)),
            boxes=torch.from_numpy(np.concatenate([scene.boxes for scene in scenes])),
            box_image=torch.from_numpy(
                np.repeat(np.arange(len(scenes)), [len(scene.boxes) for scene in scenes])
            ),
            box_object=torch.from_numpy(np.concatenate([scene.objects for scene in scenes])),
            ignore=torch.from_numpy(
                np.concatenate([scene.visible for scene in scenes]) < MIN_VISIBLE
            ),
        )

    def _scene(self, random: np.random.Generator, seeds: list[int]) -> Scene:
        low, high = self.config.objects_per_scene
        present = random.choice(len(seeds), int(random.integers(low, high + 1)), replace=False)
        scene = self._scenes.scene(
            random,
            objects=[seeds[i] for i in present],
            ground=self._ground(random),
            size=self.config.scene_size,
            object_px=self.config.object_px,
        )
        return Scene(scene.image, scene.boxes, present[scene.objects], scene.visible)

    def _reference(self, random: np.random.Generator, seed: int) -> np.ndarray:
        size = self.config.support_size
        return self._scenes.reference(random, obj=seed, ground=self._ground(random), size=size)

    def _ground(self, random: np.random.Generator) -> int:
        index = self.config.first_ground + int(random.integers(self.config.grounds))
        return split_seed(self.config.split, index)
