"""Where samples come from: AeroEyes videos, procedural scenes, and the episodes drawn from both."""

from surefoot.data.episodes import Episodes
from surefoot.data.synthetic import Scene, Split, SyntheticScenes
from surefoot.data.synthetic_episodes import SceneConfig, SceneEpisodes
from surefoot.data.synthetic_objects import HELD_OUT_SHAPES, SHAPES

__all__ = [
    "HELD_OUT_SHAPES",
    "SHAPES",
    "Episodes",
    "Scene",
    "SceneConfig",
    "SceneEpisodes",
    "Split",
    "SyntheticScenes",
]
