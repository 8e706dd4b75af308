"""``surefoot replay RUN --step N``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

__all__ = ["ReplayOptions", "run"]


@dataclass(frozen=True, kw_only=True)
class ReplayOptions:
    """Run a refused step of a run again, alone: module by module, term by term, and in float32."""

    path: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """A run folder, or one of the folders in its failures/."""
    step: int | None = None
    """The optimizer step; without it the kept ones are listed."""
    device: str = "auto"
    """Where to run it: auto, cpu, cuda or cuda:1."""


def run(arguments: Sequence[str]) -> int:
    """List what is kept, or replay; returns the exit status."""
    options = tyro.cli(ReplayOptions, args=arguments, prog="surefoot replay")
    from rich.console import Console
    from rich.table import Table

    from surefoot.recipes.hardware import choose_device
    from surefoot.recipes.replay import kept_steps, replay_run, run_and_step

    folder, step = run_and_step(options.path, options.step)
    if step is not None:
        print(replay_run(folder, step, choose_device(options.device)))
        return 0
    lines = kept_steps(folder)
    if not lines:
        print(f"{folder}: no step was refused, or none was kept.")
        return 0
    table = Table("step", "size", "what happened", box=None, pad_edge=False)
    for line in lines:
        table.add_row(*line)
    Console().print(table)
    print(f"\nOne of them again: surefoot replay {options.path} --step {lines[0][0]}")
    return 0
