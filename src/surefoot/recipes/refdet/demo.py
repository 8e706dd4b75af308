"""``surefoot demo refdet``: the whole program on procedural scenes, from random weights, on a CPU.

    surefoot demo refdet --out runs/demo

Training objects, calibration objects and held-out objects are three sets without an element in
common; grounds as well. The demo goes through the same :func:`~surefoot.recipes.refdet.train.train`
as ``surefoot train refdet``; only its scenes are drawn instead of decoded.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table

from surefoot.data import AeroEyes, SceneConfig, SceneEpisodes, write_aeroeyes
from surefoot.errors import ConfigError
from surefoot.metrics import bootstrap_interval
from surefoot.recipes.demo import begin_demo, begins_anew
from surefoot.recipes.progress import clock
from surefoot.recipes.refdet.config import TrainConfig
from surefoot.recipes.refdet.options import (
    DataOptions,
    EpisodeOptions,
    HardwareOptions,
    LossOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
)
from surefoot.recipes.refdet.pictures import draw_run
from surefoot.recipes.refdet.sources import Sources
from surefoot.recipes.refdet.train import Outcome, train
from surefoot.recipes.refdet.validate import Evaluation, Measured

__all__ = ["DemoConfig", "run_demo"]


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """Make a procedural video set, train a small RefDet on it, measure it and draw it."""

    out: Path
    """Run folder; an earlier demo in it is replaced."""
    seed: int = 0
    """Start of every random sequence: scenes, weights, videos."""
    steps: int = 1200
    """Optimizer steps; 1200 take about six minutes on two cores with bfloat16."""
    videos: int = 20
    """Held-out videos, and as many again to calibrate on, each with an object of its own."""
    frames: int = 32
    """Frames of each video; about a third of them are without the object."""
    n_way: int = 16
    """Objects of a training episode."""
    epoch_steps: int = 200
    """Steps between two checkpoints."""

    def __post_init__(self) -> None:
        for name in ("steps", "frames", "epoch_steps"):
            if getattr(self, name) < 1:
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{flag} {getattr(self, name)}: has to be at least 1.")
        for name in ("videos", "n_way"):
            if getattr(self, name) < 2:
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{flag} {getattr(self, name)}: has to be at least 2.")

    def train_config(self) -> TrainConfig:
        """The settings of the training run."""
        return TrainConfig(
            run=RunOptions(
                epochs=-(-self.steps // self.epoch_steps),
                max_steps=self.steps,
                val_interval=self.steps,
                save_dir=self.out,
                seed=self.seed,
            ),
            data=DataOptions(num_workers=1, calibration_frames=0),
            episode=EpisodeOptions(
                n_way=self.n_way, n_query=2, n_episodes=self.epoch_steps, val_image_size=192
            ),
            model=ModelOptions(preset="pocket"),
            loss=LossOptions(),
            optimizer=OptimizerOptions(
                lr=3e-3,
                weight_decay=0.02,
                beta2=0.99,
                warmup_epochs=40 / self.epoch_steps,
                gradient_clip_norm=5.0,
                ema_decay=0.99,
            ),
            hardware=HardwareOptions(device="cpu", batch_size=16),
        )


def run_demo(config: DemoConfig, *, stream: TextIO | None = None) -> Outcome:
    """Make the data, train, measure, draw.

    Args:
        config: the settings.
        stream: where progress and the table are written; standard output where not given.

    Raises:
        ConfigError: ``config.out`` holds something that is no earlier demo.
        Interrupted: a signal asked it to stop; it is a ``SystemExit``.
        TrainingDiverged: too many steps in a row were refused.
    """
    out = stream or sys.stdout
    begin_demo(config.out, command="surefoot demo refdet")
    sources = _make_sources(config)
    with begins_anew(config, "refdet", out) as said:
        outcome = train(config.train_config(), sources, stream=said)
    assert outcome.evaluation is not None
    assert sources.held_out is not None
    _print_table(outcome.evaluation, out)
    drawn = draw_run(config.out, outcome.detector, sources.held_out.videos, outcome.evaluation)
    out.write("\n".join([f"run folder: {config.out}, {clock(outcome.seconds)}", *drawn]) + "\n")
    return outcome


def _make_sources(config: DemoConfig) -> Sources:
    """Scenes to learn from are drawn as they are asked for; videos are written and read back."""
    data = config.out / "data"
    scenes = SceneConfig(
        n_way=config.n_way,
        scenes=2 * config.n_way,
        objects_per_scene=(1, min(6, config.n_way)),
        episodes=config.epoch_steps,
        seed=config.seed,
    )
    folders = {
        split: write_aeroeyes(
            data / split, videos=config.videos, frames=config.frames, seed=config.seed, split=split
        )
        for split in ("calibration", "validation")
    }
    return Sources(
        episodes=SceneEpisodes(scenes),
        calibration=AeroEyes.open(folders["calibration"]),
        held_out=AeroEyes.open(folders["validation"]),
    )


def _print_table(evaluation: Evaluation, stream: TextIO) -> None:
    table = Table(title="Held-out videos, objects never trained on", title_justify="left")
    table.add_column("references")
    for name in ("ST-IoU", "mAP50", "mAP75", "recall", "fires on empty frames", "on all"):
        table.add_column(name, justify="right")
    table.add_row("of the object", *_figures(evaluation.right))
    table.add_row("of another object", *_figures(evaluation.swapped))
    console = Console(file=stream, width=None if stream.isatty() else 100)
    console.print(table)
    spread = bootstrap_interval(list(evaluation.right.per_video.values()), seed=0)
    console.print(
        f"Threshold {evaluation.threshold:.3f}, chosen on the calibration videos. ST-IoU of other "
        f"videos of this kind: {spread.low:.3f} to {spread.high:.3f} (95 %, bootstrap over "
        f"{spread.count} videos)."
    )


def _figures(measured: Measured) -> list[str]:
    values = (
        measured.st_iou,
        measured.map50,
        measured.map75,
        measured.recall,
        measured.false_alarms,
        measured.fires,
    )
    return [f"{value:.3f}" for value in values]
