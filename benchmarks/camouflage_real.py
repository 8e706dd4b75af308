"""What procedural camouflage teaches about real images.

    python -m benchmarks.camouflage_real --checkpoint runs/demo-camouflage --folds 4

Real pairs are divided into folds. For each, a segmenter goes on from the checkpoint's weights on
the other folds and is scored on the one it has not seen, beside the mean of the masks that it was
trained on: a model that does not beat that row has learnt nothing of the images. ``--scratch``
starts from random weights instead, ``--steps 0`` scores the checkpoint as it is.
"""

from __future__ import annotations

import argparse
import io
import os
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path

import torch

from surefoot.data.camouflage import Augment, CamouflageDataset, PairList, find_pairs
from surefoot.metrics.segmentation import SegmentationScores
from surefoot.metrics.segmentation_table import difference, score_table
from surefoot.recipes.camouflage.config import CamouflageConfig
from surefoot.recipes.camouflage.evaluate import EvalConfig, evaluate_items
from surefoot.recipes.camouflage.options import HardwareOptions, OptimizerOptions, RunOptions
from surefoot.recipes.camouflage.segmenter import Segmenter
from surefoot.recipes.camouflage.sources import Sources
from surefoot.recipes.camouflage.train import train
from surefoot.recipes.run_folder import CONFIG, run_folder_of


def _options() -> argparse.Namespace:
    shared = Path(os.environ.get("SUREFOOT_SHARED", "../shared"))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.camouflage_real")
    parser.add_argument("--checkpoint", type=Path, required=True, help="a run of the demo")
    parser.add_argument("--data", type=Path, default=shared / "data" / "segment" / "CAMO")
    parser.add_argument("--folds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=150, help="optimizer steps on real images")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--scratch", action="store_true", help="start from random weights")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def _segmenter(options: argparse.Namespace, learn: PairList, folder: Path) -> Segmenter:
    """Trained on the pairs, or as it was where there are no steps."""
    if not options.steps:
        return Segmenter.load(options.checkpoint)
    saved = CamouflageConfig.load(run_folder_of(options.checkpoint) / CONFIG)
    batches = len(learn) // saved.data.batch_size
    config = replace(
        saved,
        run=RunOptions(
            epochs=1 + options.steps // batches,
            stage1_epochs=0,
            max_steps=options.steps,
            checkpoint=None if options.scratch else options.checkpoint,
            save_dir=folder,
            seed=options.seed,
        ),
        data=replace(saved.data, procedural=0, images=Path("."), masks=Path("."), num_workers=1),
        optimizer=OptimizerOptions(
            lr=options.lr,
            stage2_lr=options.lr,
            backbone_lr_scale=1.0,
            weight_decay=0.01,
            accumulation_steps=1,
            grad_clip=5.0,
            ema_decay=0.99,
        ),
        hardware=HardwareOptions(device="cpu"),
    )
    items = CamouflageDataset(
        learn, size=saved.data.img_size, augment=Augment(), seed=options.seed, cache_mb=500
    )
    train(config, Sources(items), stream=io.StringIO())
    return Segmenter.load(folder, weights="ema")


def main() -> None:
    """Train, score, print."""
    options = _options()
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
    pairs = find_pairs(options.data, split="train")
    ids = sorted((pair.id for pair in pairs), key=lambda name: hash_of(name, options.seed))
    ours, rows = SegmentationScores(), dict[str, SegmentationScores]()
    for fold in range(options.folds):
        held = set(ids[fold :: options.folds])
        learn, test = pairs.only(set(ids) - held), pairs.only(held)
        with tempfile.TemporaryDirectory() as folder:
            segmenter = _segmenter(options, learn, Path(folder) / "run")
            asked = EvalConfig(checkpoint=options.checkpoint, dataset_path=options.data)
            done = evaluate_items(
                segmenter,
                CamouflageDataset(test, size=segmenter.size, augment=None),
                config=asked,
                name=f"fold {fold}",
                training=CamouflageDataset(learn, size=96, augment=None),
            )
        _merge(ours, done.scores, fold)
        for name, scores in done.baselines.items():
            _merge(rows.setdefault(name, SegmentationScores()), scores, fold)
        print(f"fold {fold}: S {done.scores.summary().s_measure:.3f}", flush=True)
    start = "random weights" if options.scratch else str(options.checkpoint)
    print(f"\n{len(ids)} pairs of {options.data}, {options.folds} folds, {options.steps} steps")
    print(f"from {start}, seed {options.seed}\n")
    print(score_table({"model": ours.summary()} | {n: s.summary() for n, s in rows.items()}))
    print(f"\nS above the mean mask: {difference(ours, rows['mean mask'], 's_measure')}")


def hash_of(name: str, seed: int) -> int:
    """A number that depends on the name and the seed alone."""
    return zlib.crc32(f"{seed} {name}".encode())


def _merge(all_of_them: SegmentationScores, fold: SegmentationScores, number: int) -> None:
    all_of_them.merge(replace(row, index=number * 1_000_000 + row.index) for row in fold.per_image)


if __name__ == "__main__":
    main()
