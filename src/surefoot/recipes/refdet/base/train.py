"""``surefoot train refdet --stage 1``: labelled images in, a network for the next stage out.

surefoot train refdet --stage 1 --data instances_train.json --val-data instances_val.json
surefoot train refdet --stage 1 --data data.yaml
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO, cast

from surefoot.checkpoint.signals import Interruption
from surefoot.data import DetectionBatch
from surefoot.guard.halves import Halves
from surefoot.guard.out_of_memory import Halved
from surefoot.models import RefDet
from surefoot.recipes.hardware import seed_everything
from surefoot.recipes.parts import Measured
from surefoot.recipes.program import Program
from surefoot.recipes.ranks import ALONE, Ranks
from surefoot.recipes.refdet.base.data import BaseSources, ImageFeed, cut_images
from surefoot.recipes.refdet.base.learner import BaseLearner
from surefoot.recipes.refdet.base.measure import BaseDetector, mean_precision
from surefoot.recipes.refdet.build import Plan, place_of
from surefoot.recipes.refdet.config import TrainConfig
from surefoot.recipes.running import running

__all__ = ["BaseOutcome", "BaseRun", "train_base"]


@dataclass(frozen=True, kw_only=True)
class BaseOutcome:
    """What stage 1 came to."""

    folder: Path
    measured: Measured | None
    """The last measurement; None where nothing is held out."""
    seconds: float


def train_base(
    config: TrainConfig, sources: BaseSources, *, stream: TextIO | None = None
) -> BaseOutcome:
    """Train from the settings, or go on where ``config.run.resume`` stopped.

    Args:
        config: the settings; they are kept in the run folder, with the data's number of classes.
        sources: images to learn from, and to measure on.
        stream: where progress is written; standard output where it is not given.

    Raises:
        ConfigError: settings that cannot work, or a folder that holds another run.
        CheckpointError: nothing whole to start from or to go on with.
        TrainingDiverged: too many steps in a row were refused; a note says where to go on.
        Interrupted: SIGTERM, SIGINT or SIGUSR1 came, and the run is saved; it is a ``SystemExit``.
    """
    started = time.monotonic()
    with running(config.run) as (ranks, stop):
        run = BaseRun(config, sources, stream or sys.stdout, stop, ranks)
        run.train()
    return BaseOutcome(folder=run.folder, measured=run.measured, seconds=time.monotonic() - started)


class BaseRun(Program[BaseLearner, DetectionBatch]):
    """A training run of the scene's network."""

    recipe = "refdet"

    def __init__(
        self,
        config: TrainConfig,
        sources: BaseSources,
        stream: TextIO,
        stop: Interruption,
        ranks: Ranks = ALONE,
    ) -> None:
        place = place_of(config, ranks)
        config = replace(config, model=replace(config.model, classes=len(sources.classes)))
        super().__init__(config, config.run, place, stream, stop)
        self.config, self._sources = config, sources
        seed_everything(config.run.seed)
        self.feed = ImageFeed(config, sources.training, place.device)
        self.plan = plan = Plan.of(config, len(self.feed.order))
        self.learner = BaseLearner(config, plan, place.device, place.amp, ranks)
        ranks.seed(config.run.seed)

    def headline(self) -> list[str]:
        """See :class:`Program`."""
        count, plan = sum(p.numel() for p in self.learner.model.parameters()), self.learner.plan
        return [
            *self._sources.report.splitlines(),
            f"RefDet {self.config.model.preset}, stage 1, {count / 1e6:.2f} M parameters, on "
            f"{self.device} in {self.amp or 'fp32'} ({self._why}): {plan.epochs} epochs, "
            f"{plan.total_steps} optimizer steps ({plan.warmup_steps} of warm-up), into "
            f"{self.folder}",
        ]

    def halves(self, on_halved: Callable[[Halved], object]) -> Halves:
        """See :class:`Program`."""
        return Halves(self.learner.guarded, split=cut_images, on_halved=on_halved)

    def measure(self, epoch: int) -> Measured | None:
        """mAP on the held-out images."""
        held_out = self._sources.held_out
        if held_out is None:
            return None
        name, module = list(self.learner.candidates.items())[-1]
        detector = BaseDetector(
            model=cast(RefDet, module),
            device=self.device,
            amp=self.amp,
            batch_size=self.config.hardware.batch_size,
        )
        found = mean_precision(detector, held_out, self.ranks)
        return Measured(
            metric=found.map,
            weights=name,
            fields=asdict(found),
            lines=(
                f"  held out, {name}: mAP50-95 {found.map:.3f}, mAP50 {found.map50:.3f}, mAP75 "
                f"{found.map75:.3f}",
            ),
        )
