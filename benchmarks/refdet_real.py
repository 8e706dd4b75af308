"""RefDet on real clips, one clip left out at a time.

    python -m benchmarks.refdet_real --data ../shared/data/video --checkpoint runs/demo

Each clip in turn is held out: a model that starts from ``--checkpoint`` (procedural scenes; left
out: random weights) trains on the other clips, its threshold is chosen on those, and the clip is
measured with its own references and with another clip's. What is reached on the training clips says
nothing and is not printed.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.interleave import machine
from surefoot.data import AeroEyes
from surefoot.recipes.refdet.config import TrainConfig
from surefoot.recipes.refdet.options import (
    DataOptions,
    EpisodeOptions,
    HardwareOptions,
    ModelOptions,
    OptimizerOptions,
    RunOptions,
)
from surefoot.recipes.refdet.train import Outcome, train_on_folders


def leave_out(clip: str, options: argparse.Namespace, folder: Path) -> Outcome:
    """Train on every clip but one, measure that one."""
    return train_on_folders(
        TrainConfig(
            run=RunOptions(
                epochs=1,
                max_steps=options.steps,
                checkpoint=options.checkpoint,
                save_dir=folder,
                seed=options.seed,
            ),
            data=DataOptions(
                data_root=options.data,
                held_out=(clip,),
                num_workers=1,
                calibration_frames=options.calibration_frames,
            ),
            episode=EpisodeOptions(
                n_way=4,
                n_query=3,
                n_episodes=max(options.steps, 1),
                image_size=options.image_size,
                support_size=64,
            ),
            model=ModelOptions(preset="pocket"),
            optimizer=OptimizerOptions(
                lr=options.lr, weight_decay=0.02, beta2=0.99, warmup_epochs=0.1, ema_decay=0.98
            ),
            hardware=HardwareOptions(device="cpu", batch_size=16),
        ),
        stream=io.StringIO(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data/video"))
    parser.add_argument("--checkpoint", type=Path, default=None)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--calibration-frames", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(machine())
    start = options.checkpoint or "random weights"
    print(f"{options.steps} steps from {start}, {options.image_size} px, seed {options.seed}")
    print(
        f"{'clip left out':18}{'ST-IoU':>8}{'swapped':>9}{'mAP50':>8}{'swapped':>9}{'seconds':>9}"
    )
    rows: list[tuple[float, float, float, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for video in AeroEyes.open(options.data).videos:
            outcome = leave_out(video.id, options, Path(scratch) / video.id)
            measured = outcome.evaluation
            assert measured is not None
            right, swapped = measured.right, measured.swapped
            rows.append((right.st_iou, swapped.st_iou, right.map50, swapped.map50))
            st, st_swapped, ap, ap_swapped = rows[-1]
            print(
                f"{video.id:18}{st:8.3f}{st_swapped:9.3f}{ap:8.3f}{ap_swapped:9.3f}"
                f"{outcome.seconds:9.0f}",
                flush=True,
            )
    st, st_swapped, ap, ap_swapped = np.mean(rows, axis=0)
    print(f"{'mean':18}{st:8.3f}{st_swapped:9.3f}{ap:8.3f}{ap_swapped:9.3f}")


if __name__ == "__main__":
    main()
