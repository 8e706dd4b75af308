"""The objects that ``--references`` asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from surefoot.data.video import IMAGE_SUFFIXES
from surefoot.errors import ConfigError

__all__ = ["objects_of", "pictures_in"]


def objects_of(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Photos by the name of their object.

    Files are photos of one object. A folder is an object of its own, or, where it holds no photo,
    a folder of such folders.

    Raises:
        ConfigError: a path that is not there, a folder without photos, files and folders mixed, or
            two objects of one name.
    """
    for path in paths:
        if not path.exists():
            raise ConfigError(f"--references {path}: there is no such photo or folder.")
    files = [path for path in paths if not path.is_dir()]
    if files and len(files) < len(paths):
        raise ConfigError(
            "--references: photos and folders are mixed. Give the photos of one object, or a "
            "folder for each of several."
        )
    if files:
        return {_name(files[0].parent): files}
    found: dict[str, list[Path]] = {}
    for folder in paths:
        own = pictures_in(folder)
        inner = [(folder, own)] if own else [(f, pictures_in(f)) for f in sorted(folder.iterdir())]
        inner = [(home, photos) for home, photos in inner if photos]
        if not inner:
            raise ConfigError(f"--references {folder}: there are no photos in it {_kinds()}.")
        for home, photos in inner:
            name = _name(home)
            if name in found:
                raise ConfigError(
                    f"--references: two objects are called {name!r}; rename one of the folders."
                )
            found[name] = photos
    if not found:
        raise ConfigError("--references: nothing is given; give photos of an object.")
    return found


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in a folder, by name; none for what is no folder."""
    if not folder.is_dir():
        return []
    inside = sorted(folder.iterdir())
    return [p for p in inside if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]


def _name(folder: Path) -> str:
    """The folder's, or that of the video whose object_images it is."""
    whole = folder.absolute()
    return whole.parent.name if whole.name == "object_images" else whole.name


def _kinds() -> str:
    return f"({', '.join(sorted(IMAGE_SUFFIXES))})"
