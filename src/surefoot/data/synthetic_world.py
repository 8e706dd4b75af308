"""A procedural world: a target among other objects, and the camera that wanders over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from surefoot.data.synthetic import (
    Exposure,
    Placed,
    SyntheticScenes,
    cut_ground,
    free_place,
    paste,
    rotation,
)
from surefoot.data.synthetic_grounds import make_ground
from surefoot.data.synthetic_objects import SHAPES
from surefoot.errors import ConfigError

__all__ = ["World", "WorldConfig"]

_GROUND_SIDES = 4
_REACH = 1.1
_Point = NDArray[np.float64]
_Random = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """What a procedural video shows."""

    distractors: int = 9
    """Other objects around the target."""
    object_px: tuple[float, float] = (18.0, 52.0)
    """Smallest and largest side of the target's sprite in pixels, at zoom 1."""
    reference_size: int = 64
    """Side of a reference photo in pixels."""
    objects: int = 3000
    """How many objects of the split the videos draw from."""
    grounds: int = 60
    """How many grounds of the split they draw from."""
    families: tuple[str, ...] = SHAPES
    """Shape families the objects are made of."""
    image_format: Literal["jpg", "png"] = "jpg"
    """File format of the frames; jpg is written at quality 95."""

    def __post_init__(self) -> None:
        if self.distractors < 0 or min(self.reference_size, self.grounds) < 1:
            raise ConfigError(
                f"WorldConfig: distractors {self.distractors}, reference_size "
                f"{self.reference_size}, grounds {self.grounds}; expected at least 0, 1 and 1."
            )
        if not 4 <= self.object_px[0] <= self.object_px[1]:
            raise ConfigError(
                f"WorldConfig.object_px is {self.object_px}; expected 4 <= smallest <= largest."
            )
        if self.image_format not in ("jpg", "png"):
            raise ConfigError(
                f"WorldConfig.image_format is {self.image_format!r}; expected 'jpg' or 'png'."
            )


@dataclass(frozen=True)
class _Thing:
    """An object on the ground: the target is number 0 of its world."""

    seed: int
    place: _Point
    side: float
    aspect: float
    angle: float
    spin: float

    @classmethod
    def draw(cls, random: _Random, seed: int, place: _Point, side: float) -> _Thing:
        return cls(
            seed=seed,
            place=place,
            side=side,
            aspect=math.sqrt(random.uniform(0.9, 1.1)),
            angle=random.uniform(0, 2 * math.pi),
            spin=random.uniform(-1.5, 1.5),
        )

    def shape(self, time: float) -> NDArray[np.floating[Any]]:
        """2 2, from the sprite's unit square to the world."""
        sides = np.diag([self.side * self.aspect, self.side / self.aspect])
        return rotation(self.angle + self.spin * time) @ sides


@dataclass(frozen=True)
class _Camera:
    """A Lissajous path over the target, breathing zoom and a slow turn; time runs from 0 to 1."""

    reach: _Point
    cycles: _Point
    phase: _Point
    zoom: float
    turn: float
    heading: float

    @classmethod
    def draw(cls, random: _Random, size: int) -> _Camera:
        return cls(
            reach=random.uniform(0.42, 0.62, 2) * size,
            cycles=random.uniform(0.7, 1.8, 4),
            phase=random.uniform(0, 2 * math.pi, 4),
            zoom=random.uniform(0.1, 0.3),
            turn=random.uniform(0.1, 0.8),
            heading=random.uniform(0, 2 * math.pi),
        )

    def at(self, time: float) -> tuple[_Point, NDArray[np.float64]]:
        """Where the camera looks at, and the 2 2 matrix from world to picture."""
        waves = np.sin(2 * math.pi * self.cycles * time + self.phase)
        zoom = (1 + self.zoom) ** float(waves[2])
        return self.reach * waves[:2], zoom * rotation(self.heading + self.turn * float(waves[3]))

    def sees(self, times: NDArray[np.float64], size: int) -> NDArray[np.bool_]:
        """At which of these times the world's origin is in the picture."""
        views = [self.at(float(time)) for time in times]
        return np.array([np.abs(matrix @ place).max() < size / 2 for place, matrix in views])


class World:
    """One video: its objects, ground, light and camera. The first object is the target.

    Args:
        random: where every choice comes from.
        scenes: draws the objects.
        seeds: the objects, the target first.
        ground: seed of the ground.
        size: side of a frame in pixels.
        frames: how many frames the camera's path is cut into.
        object_px: smallest and largest side of the target's sprite.
    """

    def __init__(
        self,
        random: _Random,
        scenes: SyntheticScenes,
        *,
        seeds: Sequence[int],
        ground: int,
        size: int,
        frames: int,
        object_px: tuple[float, float],
    ) -> None:
        self._random, self._scenes, self.size = random, scenes, size
        self._times = np.arange(frames) / max(frames, 32)
        self._camera = self._choose_camera()
        self._light = Exposure.draw(random)
        self._ground = make_ground(ground, _GROUND_SIDES * size)
        self._things = self._lay_out(seeds, object_px)

    def frame(self, index: int) -> tuple[NDArray[np.uint8], Placed]:
        """The picture at a frame, and where the target lies in it."""
        time = float(self._times[index])
        camera, matrix = self._camera.at(time)
        middle = np.full(2, self._ground.width / 2)
        picture = cut_ground(self._ground, self.size, np.linalg.inv(matrix), middle + camera)
        placed = [
            paste(
                picture,
                self._scenes.sprite(thing.seed),
                matrix @ thing.shape(time),
                matrix @ (thing.place - camera) + self.size / 2,
            )
            for thing in self._things
        ]
        return self._light.apply(picture, self._random), placed[0]

    def _choose_camera(self) -> _Camera:
        """The first path that shows the target neither nearly always nor hardly ever."""
        paths = [_Camera.draw(self._random, self.size) for _ in range(20)]
        shares = (path.sees(self._times, self.size).mean() for path in paths)
        found = (p for p, s in zip(paths, shares, strict=True) if 0.5 <= s <= 0.8)
        return next(found, paths[0])

    def _lay_out(self, seeds: Sequence[int], object_px: tuple[float, float]) -> list[_Thing]:
        """The target at the origin and the others around it, none over another."""
        random, span = self._random, 2 * _REACH * self.size
        base = math.exp(random.uniform(*np.log(object_px)))
        taken: list[tuple[_Point, float]] = []
        things: list[_Thing] = []
        for number, seed in enumerate(seeds):
            side = base * (random.uniform(0.75, 1.35) if number else 1.0)
            place = free_place(random, taken, 1.15 * side, span) if number else np.full(2, span / 2)
            if place is None:
                continue
            taken.append((place, 1.15 * side))
            things.append(_Thing.draw(random, seed, place - span / 2, side))
        return things
