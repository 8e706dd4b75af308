"""Writes procedural drone videos as a data set that the AeroEyes reader reads."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from surefoot.data.episodes import MIN_VISIBLE
from surefoot.data.synthetic import Split, SyntheticScenes, split_seed
from surefoot.data.synthetic_world import World, WorldConfig
from surefoot.errors import ConfigError, UsageError

__all__ = ["write_aeroeyes"]

_TAG = 0x51DE0
_PHOTOS = 3
_Random = np.random.Generator


def write_aeroeyes(
    root: Path | str,
    *,
    videos: int,
    frames: int = 32,
    size: int = 192,
    seed: int = 0,
    split: Split = "train",
    world: WorldConfig | None = None,
) -> Path:
    """Write a procedural data set in the AeroEyes layout, the same to the byte for a seed.

    Every video has its own target, which is in no other video. About 65 % of the frames show it;
    where less than 35 % of it is inside the frame it has no box. Videos are named ``Object12_0``:
    each target is a category of its own. Frames are images in frames/; each visible interval is one
    group of annotations.json.

    The set appears under ``root`` when it is complete: an interrupted call leaves only
    ``<root>.partial``, which the next one replaces.

    Args:
        root: folder to make; it must not exist, or be empty.
        videos: how many.
        frames: frames of each.
        size: side of a frame in pixels.
        seed: which videos.
        split: whose objects and grounds; no two splits share one.
        world: what the videos show.

    Returns:
        ``root``.

    Raises:
        ConfigError: settings that cannot work.
        UsageError: ``root`` is not empty.
    """
    root = Path(root)
    plan = _Plan(videos, frames, size, seed, split, world or WorldConfig())
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UsageError(f"write_aeroeyes: {root} is not empty; remove it or name another folder.")
    partial = root.with_name(f"{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    entries = plan.write_samples(partial / "samples")
    (partial / "annotations").mkdir()
    text = json.dumps(entries, indent=1)
    (partial / "annotations" / "annotations.json").write_text(text, encoding="utf-8")
    if root.exists():
        root.rmdir()
    return partial.rename(root)


@dataclass(frozen=True)
class _Plan:
    """The settings of one data set."""

    videos: int
    frames: int
    size: int
    seed: int
    split: Split
    world: WorldConfig

    def __post_init__(self) -> None:
        others = self.world.distractors
        if min(self.videos, self.frames) < 1 or self.size < 32 or self.seed < 0:
            raise ConfigError(
                f"write_aeroeyes: {self.videos} videos of {self.frames} frames of {self.size} px, "
                f"seed {self.seed}; expected at least 1, 1, 32 and 0."
            )
        if self.world.objects < self.videos + others:
            raise ConfigError(
                f"write_aeroeyes: {self.videos} targets and {others} distractors need as many "
                f"objects; WorldConfig.objects is {self.world.objects}."
            )

    def write_samples(self, samples: Path) -> list[dict[str, Any]]:
        """Write all videos; returns what belongs in annotations.json."""
        stream = [_TAG, self.seed, split_seed(self.split, 0)]
        objects = np.arange(self.world.objects)
        targets = np.random.default_rng(stream).choice(objects, self.videos, replace=False)
        others = np.setdiff1d(objects, targets)
        scenes = SyntheticScenes(families=self.world.families)
        entries: list[dict[str, Any]] = []
        for number, target in enumerate(targets.tolist()):
            random = np.random.default_rng([*stream, number])
            around = random.choice(others, self.world.distractors, replace=False).tolist()
            seeds = [split_seed(self.split, pick) for pick in (target, *around)]
            name = f"Object{number}_0"
            self._write_references(samples / name / "object_images", random, scenes, seeds[0])
            groups = self._write_frames(samples / name / "frames", random, scenes, seeds)
            entries.append({"video_id": name, "annotations": groups})
        return entries

    def _write_references(
        self, folder: Path, random: _Random, scenes: SyntheticScenes, target: int
    ) -> None:
        folder.mkdir(parents=True)
        for number in range(1, _PHOTOS + 1):
            photo = scenes.reference(
                random, obj=target, ground=self._ground(random), size=self.world.reference_size
            )
            Image.fromarray(photo).save(folder / f"img_{number}.jpg", quality=95)

    def _write_frames(
        self, folder: Path, random: _Random, scenes: SyntheticScenes, seeds: list[int]
    ) -> list[dict[str, Any]]:
        """Write the frames; returns one group of boxes for each interval that shows the target."""
        folder.mkdir(parents=True)
        world = World(
            random,
            scenes,
            seeds=seeds,
            ground=self._ground(random),
            size=self.size,
            frames=self.frames,
            object_px=self.world.object_px,
        )
        boxes: list[dict[str, int]] = []
        for index in range(self.frames):
            picture, target = world.frame(index)
            path = folder / f"{index:06d}.{self.world.image_format}"
            Image.fromarray(picture).save(path, quality=95)
            if target.visible >= MIN_VISIBLE:
                corners = map(int, target.box)
                boxes.append({"frame": index, **dict(zip(_CORNERS, corners, strict=True))})
        return _intervals(boxes)

    def _ground(self, random: _Random) -> int:
        return split_seed(self.split, int(random.integers(self.world.grounds)))


_CORNERS = ("x1", "y1", "x2", "y2")


def _intervals(boxes: list[dict[str, int]]) -> list[dict[str, Any]]:
    """Boxes of consecutive frames in groups, as the annotators of real videos leave them."""
    starts = [i for i, (a, b) in enumerate(pairwise(boxes), 1) if b["frame"] > a["frame"] + 1]
    cuts = [0, *starts, len(boxes)]
    return [{"bboxes": boxes[a:b]} for a, b in pairwise(cuts) if b > a]
