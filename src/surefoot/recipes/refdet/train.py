"""``surefoot train refdet``: photos and videos in, a detector out.

    surefoot train refdet --stage 2 --data_root datasets/train --val_data_root datasets/val \\
        --n_way 4 --n_query 4 --gradient_clip_norm 10

The nano preset is a GPU's work; ``--preset pocket`` trains on two CPU cores.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from surefoot.checkpoint.signals import Interruption
from surefoot.guard.halves import Halves
from surefoot.guard.out_of_memory import Halved
from surefoot.recipes.hardware import seed_everything
from surefoot.recipes.parts import Measured
from surefoot.recipes.program import Program
from surefoot.recipes.ranks import ALONE, Ranks
from surefoot.recipes.refdet.build import Plan, place_of
from surefoot.recipes.refdet.config import TrainConfig
from surefoot.recipes.refdet.feed import EpisodeFeed
from surefoot.recipes.refdet.halves import halves_of
from surefoot.recipes.refdet.learner import Learner
from surefoot.recipes.refdet.measuring import Outcome, detector_of, measure
from surefoot.recipes.refdet.sources import Sources, open_sources
from surefoot.recipes.refdet.validate import Detector, Evaluation
from surefoot.recipes.running import running
from surefoot.shapes import Episode

__all__ = ["Outcome", "Run", "train", "train_on_folders"]


def train_on_folders(config: TrainConfig, *, stream: TextIO | None = None) -> Outcome:
    """Train on the folders that ``config.data`` names; see :func:`train`."""
    return train(config, open_sources(config), stream=stream)


def train(config: TrainConfig, sources: Sources, *, stream: TextIO | None = None) -> Outcome:
    """Train from the settings, or go on where ``config.run.resume`` stopped.

    Args:
        config: the settings; they are kept in the run folder.
        sources: episodes to learn from, and videos to calibrate and measure on.
        stream: where progress is written; standard output where it is not given.

    Raises:
        ConfigError: settings that cannot work, or a folder that holds another run.
        CheckpointError: nothing whole to start from or to go on with.
        TrainingDiverged: too many steps in a row were refused; a note says where to go on.
        Interrupted: SIGTERM, SIGINT or SIGUSR1 came, and the run is saved; it is a ``SystemExit``.
    """
    started = time.monotonic()
    with running(config.run) as (ranks, stop):
        run = Run(config, sources, stream or sys.stdout, stop, ranks)
        run.train()
    return Outcome(
        folder=run.folder,
        detector=run.detector(),
        evaluation=run.evaluation,
        seconds=time.monotonic() - started,
        first=ranks.first,
    )


class Run(Program[Learner, Episode]):
    """A training run of the detector."""

    recipe, unit = "refdet", "episodes"

    def __init__(
        self,
        config: TrainConfig,
        sources: Sources,
        stream: TextIO,
        stop: Interruption | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        place = place_of(config, ranks)
        super().__init__(config, config.run, place, stream, stop or Interruption())
        self.config, self.sources = config, sources
        seed_everything(config.run.seed)
        self.feed = EpisodeFeed(config, sources.episodes, place.device)
        self.plan = plan = Plan.of(config, len(self.feed.order))
        self.learner = Learner(config, plan, place.device, place.amp, ranks)
        ranks.seed(config.run.seed)
        self.evaluation: Evaluation | None = None

    def headline(self) -> list[str]:
        """See :class:`Program`."""
        count, plan = sum(p.numel() for p in self.learner.model.parameters()), self.learner.plan
        return [
            f"RefDet {self.config.model.preset}, stage {self.config.run.stage}, {count / 1e6:.2f} "
            f"M parameters, on {self.device} in {self.amp or 'fp32'} ({self._why}): {plan.epochs} "
            f"epochs, {plan.total_steps} optimizer steps ({plan.warmup_steps} of warm-up), into "
            f"{self.folder}",
            *(f"  {note}" for note in self.sources.notes),
        ]

    def halves(self, on_halved: Callable[[Halved], object]) -> Halves:
        """See :class:`Program`."""
        return halves_of(self.learner, on_halved)

    def detector(self) -> Detector:
        """The model as it is measured: its average, where there is one."""
        return detector_of(self.config, self.learner.evaluated[1], self.device, self.amp)

    def measure(self, epoch: int) -> Measured | None:
        """Detect on the held-out videos."""
        held_out, calibration = self.sources.held_out, self.sources.calibration
        if not held_out:
            return None
        self.evaluation = found = measure(
            self.detector(), calibration, held_out, self.config.data, self.ranks
        )
        return Measured(
            metric=found.right.st_iou,
            weights=self.learner.evaluated[0],
            fields=found.to_dict(),
            lines=(found.line(),),
        )

    def told(self, measured: Measured, took: str) -> list[str]:
        """See :class:`Program`."""
        return [f"  held out ({measured.weights} weights, {took}): {measured.lines[0]}"]
