"""Where samples come from: AeroEyes videos, procedural scenes, and the episodes drawn from both."""

from surefoot.data.aeroeyes import AeroEyes, Video
from surefoot.data.episodes import Episodes, images_to_tensor
from surefoot.data.synthetic import Scene, Split, SyntheticScenes
from surefoot.data.synthetic_episodes import SceneConfig, SceneEpisodes
from surefoot.data.synthetic_objects import HELD_OUT_SHAPES, SHAPES
from surefoot.data.synthetic_video import write_aeroeyes
from surefoot.data.synthetic_world import WorldConfig
from surefoot.data.transforms import Augmentation, Letterbox, augment, letterbox
from surefoot.data.video_episodes import EpisodeConfig, VideoEpisodes

__all__ = [
    "HELD_OUT_SHAPES",
    "SHAPES",
    "AeroEyes",
    "Augmentation",
    "EpisodeConfig",
    "Episodes",
    "Letterbox",
    "Scene",
    "SceneConfig",
    "SceneEpisodes",
    "Split",
    "SyntheticScenes",
    "Video",
    "VideoEpisodes",
    "WorldConfig",
    "augment",
    "images_to_tensor",
    "letterbox",
    "write_aeroeyes",
]
