"""``surefoot demo camouflage``: the whole program on procedural camouflage, from random weights.

    surefoot demo camouflage --out runs/demo-camouflage

Objects are hidden in the texture that lies around them. Training, validation and held-out images
share no seed. The demo goes through the same :func:`~surefoot.recipes.camouflage.train.train` as
``surefoot train camouflage``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from surefoot.data.camouflage import ProceduralCamouflage
from surefoot.recipes.camouflage.config import CamouflageConfig
from surefoot.recipes.camouflage.evaluate import EvalConfig, Evaluated, evaluate_items
from surefoot.recipes.camouflage.options import (
    DataOptions,
    HardwareOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
)
from surefoot.recipes.camouflage.segmenter import Segmenter
from surefoot.recipes.camouflage.sources import Sources
from surefoot.recipes.camouflage.train import train
from surefoot.recipes.demo import begin_demo, begins_anew
from surefoot.recipes.progress import clock
from surefoot.recipes.settings import need

__all__ = ["CamouflageDemo", "run_camouflage_demo"]


@dataclass(frozen=True, kw_only=True)
class CamouflageDemo:
    """Make procedural camouflage, train a small segmenter on it, score it and draw its masks."""

    out: Path
    """Run folder; an earlier demo in it is replaced."""
    seed: int = 0
    """Start of every random sequence: images and weights."""
    steps: int = 600
    """Optimizer steps."""
    size: int = 96
    """Side of the images, in pixels."""
    batch_size: int = 16
    """Images of a step."""
    images: int = 60
    """Held-out images that are scored."""
    epoch_steps: int = 100
    """Steps between two checkpoints."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "images", "epoch_steps"):
            value = getattr(self, name)
            need(value >= 1, f"--{name.replace('_', '-')}", value, "at least 1")
        need(self.size >= 32, "--size", self.size, "at least 32 pixels")

    def train_config(self) -> CamouflageConfig:
        """The settings of the training run."""
        return CamouflageConfig(
            run=RunOptions(
                epochs=-(-self.steps // self.epoch_steps),
                stage1_epochs=0,
                max_steps=self.steps,
                val_interval=self.steps,
                save_dir=self.out,
                seed=self.seed,
            ),
            data=DataOptions(
                procedural=self.batch_size * self.epoch_steps,
                img_size=self.size,
                batch_size=self.batch_size,
                num_workers=1,
                augment=False,
            ),
            model=ModelOptions(backbone="tiny", channels=24),
            optimizer=OptimizerOptions(
                lr=4e-3,
                stage2_lr=4e-3,
                backbone_lr_scale=1.0,
                weight_decay=0.01,
                accumulation_steps=1,
                grad_clip=5.0,
                ema_decay=0.99,
            ),
            hardware=HardwareOptions(device="cpu"),
        )

    def held_out(self) -> ProceduralCamouflage:
        """Images of no training seed."""
        return ProceduralCamouflage(
            length=self.images, size=self.size, seed=self.seed, split="test"
        )


def run_camouflage_demo(config: CamouflageDemo, *, stream: TextIO | None = None) -> Evaluated:
    """Make the data, train, score, draw.

    Args:
        config: the settings.
        stream: where progress and the table are written; standard output where not given.

    Raises:
        ConfigError: ``config.out`` holds something that is no earlier demo.
        Interrupted: a signal asked it to stop; it is a ``SystemExit``.
        TrainingDiverged: too many steps in a row were refused.
    """
    out = stream or sys.stdout
    begin_demo(config.out, command="surefoot demo camouflage")
    settings = config.train_config()
    made = ProceduralCamouflage(
        length=settings.data.procedural, size=config.size, seed=config.seed, fresh=True
    )
    validation = ProceduralCamouflage(
        length=40, size=config.size, seed=config.seed, split="validation"
    )
    with begins_anew(config, "camouflage", out) as said:
        outcome = train(settings, Sources(made, validation), stream=said)
    seen = ProceduralCamouflage(length=300, size=config.size, seed=config.seed)
    asked = EvalConfig(checkpoint=config.out, images=config.out, masks=config.out, out=config.out)
    evaluated = evaluate_items(
        Segmenter.load(config.out),
        config.held_out(),
        config=asked,
        name="held-out",
        training=seen,
    )
    scores = asdict(evaluated.scores.summary())
    (config.out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    out.write(
        f"\n{evaluated.table()}\n\ntrained in {clock(outcome.seconds)}; best and worst masks: "
        f"{config.out / 'held-out.png'}\n"
    )
    return evaluated
