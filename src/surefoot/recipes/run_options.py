"""What every recipe is set to: length, folder and start of its run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import arg

from surefoot.errors import ConfigError
from surefoot.recipes.run_folder import AUTO
from surefoot.recipes.settings import need

__all__ = ["RunOptions"]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Length, folder and start of the run.

    >>> RunOptions(keep_last=0)
    Traceback (most recent call last):
    surefoot.errors.ConfigError: --keep-last 0: has to be at least 1.
    """

    AT_LEAST_ONE: ClassVar[tuple[str, ...]] = (
        "epochs",
        "save_interval",
        "val_interval",
        "keep_last",
    )
    AT_LEAST_ZERO: ClassVar[tuple[str, ...]] = ("max_steps", "save_steps", "keep_every")

    epochs: int = 100
    """Epochs; the schedule ends with the last one."""
    max_steps: int = 0
    """End after so many optimizer steps, and let the schedule end there; 0 = after --epochs."""
    checkpoint: Path | None = None
    """Start from the weights of this checkpoint (of an earlier stage, or another run); nothing else
    of it is used."""
    resume: Annotated[Path | None, arg(aliases=["--resume-from"])] = None
    """Go on with this run, from any step: its folder, or one of its checkpoints. Settings that are
    not given again are the run's own. auto: the run in --save-dir where it has saved anything, else
    start it."""
    save_dir: Annotated[Path | None, arg(aliases=["--checkpoint-dir"])] = None
    """Run folder for settings, journal and checkpoints; runs/<recipe>-<date>-<time> where it is not
    given."""
    save_interval: int = 1
    """Epochs between checkpoints; the last epoch and a new best are saved anyway, and an epoch's
    middle whenever the last one is ten minutes old."""
    save_steps: int = 0
    """Optimizer steps between checkpoints within an epoch, beside those; 0 = none."""
    keep_last: int = 3
    """Newest checkpoints that are kept, beside the best."""
    keep_every: int = 0
    """Steps between checkpoints that are kept for good: the first at or after each multiple; 0 =
    none are."""
    save_in_background: bool = False
    """Write checkpoints in a thread while the training goes on, from a copy in host memory as large
    as a checkpoint. The last one, and that of a run that is stopped, are waited for."""
    val_interval: int = 1
    """Epochs between measurements on what is held out; the last epoch is measured anyway."""
    seed: int = 0
    """Start of every random sequence."""
    debug_mode: Annotated[bool, arg(aliases=["--debug"])] = False
    """Name the operation that made a NaN (slow), and show where an error was raised."""

    def __post_init__(self) -> None:
        for names, least, expected in (
            (self.AT_LEAST_ONE, 1, "at least 1"),
            (self.AT_LEAST_ZERO, 0, ">= 0"),
        ):
            for name in names:
                value = getattr(self, name)
                need(value >= least, f"--{name.replace('_', '-')}", value, expected)
        need(0 <= self.seed < 2**32, "--seed", self.seed, "from 0 to 2^32 - 1")
        if self.resume not in (None, AUTO) and self.checkpoint is not None:
            raise ConfigError(
                "--resume and --checkpoint together: --resume takes weights and everything else "
                "from its run, --checkpoint the weights alone; leave one out."
            )
