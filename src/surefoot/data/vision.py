"""The parts of this package that need ``surefoot[vision]``, and what is there without it.

The loader that survives its data is for every training, also where no decoder of pictures and
videos is installed. There, a name from here can be imported, and says when used what it needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from surefoot.errors import ConfigError

if TYPE_CHECKING:
    from surefoot.data.aeroeyes import AeroEyes, Video
    from surefoot.data.coco import read_coco
    from surefoot.data.detection import (
        DetectionAugmentation,
        DetectionBatch,
        DetectionDataset,
        collate_detection,
    )
    from surefoot.data.forecast import MemoryForecast, predicted_memory
    from surefoot.data.frame_store import FrameStore
    from surefoot.data.synthetic import Scene, Split, SyntheticScenes
    from surefoot.data.synthetic_episodes import SceneConfig, SceneEpisodes
    from surefoot.data.synthetic_objects import HELD_OUT_SHAPES, SHAPES
    from surefoot.data.synthetic_video import write_aeroeyes
    from surefoot.data.synthetic_world import WorldConfig
    from surefoot.data.transforms import Augmentation, Letterbox, augment, letterbox
    from surefoot.data.video_episodes import EpisodeConfig, VideoEpisodes
    from surefoot.data.yolo_format import read_yolo

__all__ = [
    "HELD_OUT_SHAPES",
    "SHAPES",
    "AeroEyes",
    "Augmentation",
    "DetectionAugmentation",
    "DetectionBatch",
    "DetectionDataset",
    "EpisodeConfig",
    "FrameStore",
    "Letterbox",
    "MemoryForecast",
    "Scene",
    "SceneConfig",
    "SceneEpisodes",
    "Split",
    "SyntheticScenes",
    "Video",
    "VideoEpisodes",
    "WorldConfig",
    "augment",
    "collate_detection",
    "letterbox",
    "predicted_memory",
    "read_coco",
    "read_yolo",
    "write_aeroeyes",
]

_HOME = {
    "HELD_OUT_SHAPES": "synthetic_objects",
    "SHAPES": "synthetic_objects",
    "AeroEyes": "aeroeyes",
    "Augmentation": "transforms",
    "DetectionAugmentation": "detection",
    "DetectionBatch": "detection",
    "DetectionDataset": "detection",
    "EpisodeConfig": "video_episodes",
    "FrameStore": "frame_store",
    "Letterbox": "transforms",
    "MemoryForecast": "forecast",
    "Scene": "synthetic",
    "SceneConfig": "synthetic_episodes",
    "SceneEpisodes": "synthetic_episodes",
    "Split": "synthetic",
    "SyntheticScenes": "synthetic",
    "Video": "aeroeyes",
    "VideoEpisodes": "video_episodes",
    "WorldConfig": "synthetic_world",
    "augment": "transforms",
    "collate_detection": "detection",
    "letterbox": "transforms",
    "predicted_memory": "forecast",
    "read_coco": "coco",
    "read_yolo": "yolo_format",
    "write_aeroeyes": "synthetic_video",
}


class _Missing:
    """Stands for a name whose libraries are not installed."""

    def __init__(self, name: str, library: str | None) -> None:
        self._said = f"surefoot.data.{name} needs {library}: pip install 'surefoot[vision]'."

    def __call__(self, *given: Any, **named: Any) -> NoReturn:
        raise ConfigError(self._said)

    def __iter__(self) -> NoReturn:
        raise ConfigError(self._said)

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ConfigError(self._said)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"surefoot.data.{_HOME[name]}"), name)
    except ModuleNotFoundError as missing:
        if str(missing.name).startswith("surefoot"):
            raise
        return _Missing(name, missing.name)
