"""``surefoot train camouflage``: images and masks in, a segmenter out, in two stages.

    surefoot train camouflage --dataset-path COD10K-v3 --batch-size 2 --accumulation-steps 4 \\
        --lr 0.00025 --epochs 140 --stage1-epochs 30

Stage 1 trains the decoder on a frozen backbone, stage 2 everything, at half the rate and the
backbone at a twentieth.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO, cast

from surefoot.checkpoint.signals import Interruption
from surefoot.metrics.segmentation import SegmentationSummary
from surefoot.models.camouflage import CamouflageNet
from surefoot.recipes.camouflage.build import Batch, CamouflageLearner
from surefoot.recipes.camouflage.config import CamouflageConfig
from surefoot.recipes.camouflage.feed import CamouflageFeed
from surefoot.recipes.camouflage.schedule import Plan
from surefoot.recipes.camouflage.sources import Sources, open_sources
from surefoot.recipes.camouflage.validate import Masks, score
from surefoot.recipes.hardware import choose_amp, choose_device, seed_everything
from surefoot.recipes.parts import Measured, Place
from surefoot.recipes.program import Program
from surefoot.recipes.ranks import ALONE, Ranks
from surefoot.recipes.running import running
from surefoot.records import StepRecord

__all__ = ["CamouflageRun", "Outcome", "train", "train_on_folders"]

_HIGH = 5.0
"""A gradient so many times longer than the clip is told."""
_MOST_TOLD = 5


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run came to."""

    folder: Path
    masks: Masks
    """The network as it was measured last."""
    measured: Measured | None
    seconds: float


def train_on_folders(config: CamouflageConfig, *, stream: TextIO | None = None) -> Outcome:
    """Train on what ``config.data`` names; see :func:`train`."""
    return train(config, open_sources(config), stream=stream)


def train(config: CamouflageConfig, sources: Sources, *, stream: TextIO | None = None) -> Outcome:
    """Train from the settings, or go on where ``config.run.resume`` stopped.

    Args:
        config: the settings; they are kept in the run folder.
        sources: items to learn from, and to validate on.
        stream: where progress is written; standard output where it is not given.

    Raises:
        ConfigError: settings that cannot work, or a folder that holds another run.
        CheckpointError: nothing whole to start from or to go on with.
        TrainingDiverged: too many steps in a row were refused; a note says where to go on.
        Interrupted: SIGTERM, SIGINT or SIGUSR1 came, and the run is saved; it is a ``SystemExit``.
    """
    started = time.monotonic()
    with running(config.run) as (ranks, stop):
        run = CamouflageRun(config, sources, stream or sys.stdout, stop, ranks)
        run.train()
    name = "model" if run.measured is None else run.measured.weights
    return Outcome(
        folder=run.folder,
        masks=run.masks(name),
        measured=run.measured,
        seconds=time.monotonic() - started,
    )


class CamouflageRun(Program[CamouflageLearner, Batch]):
    """A training run of the segmenter."""

    recipe = "camouflage"

    def __init__(
        self,
        config: CamouflageConfig,
        sources: Sources,
        stream: TextIO,
        stop: Interruption,
        ranks: Ranks = ALONE,
    ) -> None:
        device = ranks.device(choose_device(config.hardware.device))
        amp, why = choose_amp(config.hardware.wanted, device)
        place = Place(
            device=device,
            amp=amp,
            why=why,
            check=config.hardware.check_precision,
            ranks=ranks,
            divided=config.hardware.fsdp,
        )
        super().__init__(config, config.run, place, stream, stop)
        self.config, self._sources = config, sources
        seed_everything(config.run.seed)
        self.feed = CamouflageFeed(config, sources.training, device)
        self.plan = plan = Plan.of(config, len(self.feed.order))
        self.learner = CamouflageLearner(config, plan, device, amp, ranks)
        ranks.seed(config.run.seed)
        self._stage = self._told = 0

    def headline(self) -> list[str]:
        """See :class:`Program`."""
        count = sum(p.numel() for p in self.learner.model.parameters())
        report, plan = self._sources.report, self.learner.plan
        return [
            *([] if report is None else str(report).splitlines()),
            f"Camouflage, {self.config.model.backbone}, {count / 1e6:.2f} M parameters, on "
            f"{self.device} in {self.amp or 'fp32'} ({self._why}): {plan.epochs} epochs, "
            f"{plan.total_steps} optimizer steps ({plan.first_steps} of stage 1) on "
            f"{len(self._sources.training)} images, into {self.folder}",
        ]

    def begin_epoch(self, epoch: int) -> None:
        """See :class:`Program`."""
        stage, self._told = self.learner.enter_stage(epoch), 0
        if stage != self._stage:
            self._stage = stage
            frozen = "the backbone is frozen" if stage == 1 else "everything learns"
            self.session.journal.event("stage", stage=stage, epoch=epoch + 1)
            self.say(f"Stage {stage}: {frozen}")

    def stepped(self, record: StepRecord) -> None:
        """Tell of gradients far above the clip, some times an epoch."""
        clip = self.config.optimizer.grad_clip
        if clip and _HIGH * clip < record.grad_norm < float("inf") and self._told < _MOST_TOLD:
            self._told += 1
            self.interject(
                f"  step {record.step}: gradient norm {record.grad_norm:.3g}, clipped to {clip:g}"
            )

    def masks(self, name: str) -> Masks:
        """The weights of this name, to be asked for masks."""
        model = cast(CamouflageNet, self.learner.candidates[name])
        return Masks(model, self.device, self.amp, workers=self.config.data.workers)

    def measure(self, epoch: int) -> Measured | None:
        """Validate the raw weights and their average; the better of the two counts."""
        items = self._sources.validation
        if items is None:
            return None
        names, ranks = self.learner.candidates, self.ranks
        found = {name: score(self.masks(name), items, ranks=ranks).summary() for name in names}
        metrics = {name: summary.s_measure or 0.0 for name, summary in found.items()}
        best = max(metrics, key=metrics.__getitem__)
        return Measured(
            metric=metrics[best],
            weights=best,
            fields={name: asdict(summary) for name, summary in found.items()},
            lines=tuple(f"  validation, {name}: {_line(one)}" for name, one in found.items()),
        )


def _line(summary: SegmentationSummary) -> str:
    scores = {
        "S": summary.s_measure,
        "E": summary.e_mean,
        "wF": summary.weighted_f,
        "MAE": summary.mae,
        "IoU": summary.iou,
        "Dice": summary.dice,
    }
    return " | ".join(f"{n}: {'-' if v is None else f'{v:.4f}'}" for n, v in scores.items())
