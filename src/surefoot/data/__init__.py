"""Where samples come from: AeroEyes videos, procedural scenes, and the episodes drawn from both."""

from surefoot.data.aeroeyes import AeroEyes, Video
from surefoot.data.episodes import Episodes
from surefoot.data.synthetic import Scene, Split, SyntheticScenes
from surefoot.data.synthetic_episodes import SceneConfig, SceneEpisodes
from surefoot.data.synthetic_objects import HELD_OUT_SHAPES, SHAPES
from surefoot.data.synthetic_video import write_aeroeyes
from surefoot.data.synthetic_world import WorldConfig
from surefoot.data.transforms import Letterbox, letterbox

__all__ = [
    "HELD_OUT_SHAPES",
    "SHAPES",
    "AeroEyes",
    "Episodes",
    "Letterbox",
    "Scene",
    "SceneConfig",
    "SceneEpisodes",
    "Split",
    "SyntheticScenes",
    "Video",
    "WorldConfig",
    "letterbox",
    "write_aeroeyes",
]
