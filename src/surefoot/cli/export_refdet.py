"""``surefoot export refdet``."""

from __future__ import annotations

from collections.abc import Sequence

from surefoot.cli.from_flags import read_flags
from surefoot.recipes.refdet.engines import references_file
from surefoot.recipes.refdet.export import ExportConfig, export

__all__ = ["run"]


def run(arguments: Sequence[str]) -> int:
    """Export and compare; returns the exit status."""
    config = read_flags(ExportConfig, arguments, prog="surefoot export refdet")
    found = export(config)
    kind = "pictures of noise" if config.video is None else f"frames of {config.video}"
    print(f"{config.out} and {references_file(config.out).name}: on {found.frames} {kind}, the")
    print(f"largest difference of a probability {found.score:.2g}, of a box {found.box:.2g} px")
    return 0
