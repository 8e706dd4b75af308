"""The refused steps that a run has kept: which there are, and one of them run again."""

from __future__ import annotations

from pathlib import Path

import torch

from surefoot.errors import CheckpointError, ConfigError
from surefoot.guard import Replay
from surefoot.guard.bundle import Bundle
from surefoot.guard.failures import kept_failures
from surefoot.journal import JournalReader
from surefoot.recipes.refdet.replay import replay_refdet
from surefoot.recipes.run_folder import CONFIG, FAILURES, JOURNAL

__all__ = ["kept_steps", "replay_run", "run_and_step"]

_RECIPES = {"refdet": replay_refdet}


def run_and_step(path: Path, step: int | None) -> tuple[Path, Path | None]:
    """The run folder, and the kept step in it that is meant; None where none was named.

    Args:
        path: a run folder, its folder of failures, or one of them.
        step: number of the optimizer step; None with a path that names one already, or for none.

    Raises:
        ConfigError: no run folder, or no such step in it.
    """
    path = path.resolve()
    if path.parent.name == FAILURES:
        return path.parent.parent, path
    run = path.parent if path.name == FAILURES else path
    if not (run / CONFIG).is_file():
        raise ConfigError(f"{path}: is no run folder: there is no {CONFIG} in it.")
    if step is None:
        return run, None
    found = [kept for kept in kept_failures(run / FAILURES) if int(kept.name[5:13]) == step]
    if not found:
        there = ", ".join(str(int(k.name[5:13])) for k in kept_failures(run / FAILURES)) or "none"
        raise ConfigError(
            f"--step {step}: {run / FAILURES} holds no such step; the kept ones are: {there}. Of "
            "the refusals that are looked into, the first eight and the latest are kept."
        )
    return run, found[0]


def kept_steps(run: Path) -> list[tuple[str, str, str]]:
    """Of each kept step its number, size and record in a line."""
    lines: list[tuple[str, str, str]] = []
    for folder in kept_failures(run / FAILURES):
        size = sum(file.stat().st_size for file in folder.iterdir()) / 2**20
        try:
            record = Bundle.load(folder).record
            said = str(record).partition("everything is as it was before it: ")
            lines.append((str(record.step), f"{size:.1f} MB", said[2] or said[0]))
        except CheckpointError as damage:
            lines.append((folder.name, f"{size:.1f} MB", str(damage)))
    return lines


def replay_run(run: Path, step: Path, device: torch.device) -> Replay:
    """Run a kept step again with the recipe that its run was of.

    Raises:
        ConfigError: a recipe that cannot be replayed.
        CheckpointError, JournalError: step or journal are damaged.
    """
    recipe = JournalReader(run / JOURNAL).run.get("recipe")
    if recipe not in _RECIPES:
        raise ConfigError(
            f"{run}: is a run of {recipe!r}, whose model cannot be built here; the recipes that "
            f"can be replayed: {', '.join(_RECIPES)}. For others there is "
            "surefoot.guard.replay(path, model, compute)."
        )
    return _RECIPES[recipe](run, step, device)
