"""``surefoot export camouflage``."""

from __future__ import annotations

from collections.abc import Sequence

from surefoot.cli.from_flags import read_flags
from surefoot.recipes.camouflage.export import ExportConfig, export

__all__ = ["run"]


def run(arguments: Sequence[str]) -> int:
    """Export and compare; returns the exit status."""
    config = read_flags(ExportConfig, arguments, prog="surefoot export camouflage")
    worst = export(config)
    print(f"{config.out}: largest difference of a probability from the network {worst:.2g}")
    return 0
