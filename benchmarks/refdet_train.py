"""Images a second through RefDet's stage 1 and through Ultralytics' trainer, on the same images.

    python -m benchmarks.refdet_train --data ../shared/data/detect/bccd_blood_cells
    OMP_NUM_THREADS=1 python -m benchmarks.refdet_train --data ... --rounds 2      # does it run

YOLOv8n from random weights in both, on the images of a COCO file over and over until there are
``--images`` of them. Each round trains two epochs with each trainer, by its own loop, loader and
augmentations; the second epoch is timed, from its first batch on its way to its last step. Nothing
is validated. Ultralytics runs with the threads it gives itself (one fewer than there are cores),
and in a row of its own with as many as ours.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.interleave import add_options, interleave, machine, print_table, save_rows
from surefoot.checkpoint.signals import Interruption
from surefoot.data import read_coco
from surefoot.data.labelled import LabelledImages
from surefoot.models import RefDet, RefDetConfig, YoloV8Config
from surefoot.recipes.refdet.base.data import open_base_sources
from surefoot.recipes.refdet.base.train import BaseRun
from surefoot.recipes.refdet.config import TrainConfig
from surefoot.recipes.refdet.options import ModelOptions

RIVAL = "Ultralytics' trainer"
EPOCHS = 2


def write_set(source: LabelledImages, folder: Path, count: int) -> Path:
    """A YOLO set of ``count`` images; those of the source come again and again."""
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for number in range(count):
        image = source[number % len(source)]
        shutil.copy(image.path, folder / "images" / f"{number}{image.path.suffix}")
        low, high = image.boxes[:, :2], image.boxes[:, 2:]
        rows = [
            f"{label} {x / image.width:.6f} {y / image.height:.6f} {w / image.width:.6f} "
            f"{h / image.height:.6f}"
            for label, (x, y), (w, h) in zip(
                image.labels, (low + high) / 2, high - low, strict=True
            )
        ]
        (folder / "labels" / f"{number}.txt").write_text("\n".join(rows), encoding="utf-8")
    path = folder / "data.yaml"
    names = "".join(f"  {i}: {name}\n" for i, name in enumerate(source.classes))
    path.write_text(f"path: {folder}\ntrain: images\nval: images\nnames:\n{names}", "utf-8")
    return path


def plain_yolo(options: ModelOptions, **_: object) -> RefDet:
    """YOLOv8n as it is, without RefDet's level of stride 4."""
    nano = RefDetConfig.nano(mode="standard", classes=options.classes)
    return RefDet(replace(nano, backbone=YoloV8Config.scaled("n")))


def ours(data: Path, options: argparse.Namespace) -> float:
    """Seconds of the last epoch of our loop."""
    torch.set_num_threads(options.threads)
    config = TrainConfig.for_stage(1)
    folder = Path(tempfile.mkdtemp())
    config = replace(
        config,
        run=replace(config.run, epochs=EPOCHS, save_dir=folder / "run", val_interval=EPOCHS),
        data=replace(config.data, data=str(data), num_workers=options.workers, mosaic=1.0),
        episode=replace(config.episode, image_size=options.image),
        optimizer=replace(config.optimizer, gradient_accumulation=options.accumulate),
        hardware=replace(config.hardware, batch_size=options.batch, device="cpu", precision="fp32"),
    )
    sources = replace(open_base_sources(config), held_out=None)
    started: list[float] = []
    with (
        mock.patch("surefoot.recipes.refdet.learner.build_model", plain_yolo),
        Interruption() as stop,
    ):
        run = BaseRun(config, sources, io.StringIO(), stop)
        run.begin_epoch = lambda epoch: started.append(time.perf_counter())  # type: ignore[method-assign]
        finish, ended = run.end_epoch, list[float]()

        def end(epoch: int) -> None:
            ended.append(time.perf_counter())
            if epoch + 1 < EPOCHS:
                finish(epoch)

        run.end_epoch = end  # type: ignore[method-assign]
        run.train()
    shutil.rmtree(folder)
    return ended[-1] - started[-1]


def theirs(data: Path, options: argparse.Namespace, threads: int | None) -> float:
    """Seconds of the last epoch of Ultralytics' loop."""
    from ultralytics.models.yolo.detect import DetectionTrainer
    from ultralytics.utils import LOGGER

    LOGGER.setLevel("ERROR")
    torch.set_num_threads(options.threads)
    folder = tempfile.mkdtemp()
    trainer = DetectionTrainer(
        overrides={
            "model": "yolov8n.yaml", "data": str(data), "imgsz": options.image, "epochs": EPOCHS,
            "batch": options.batch, "workers": options.workers, "device": "cpu", "amp": False,
            "val": False, "plots": False, "save": False, "project": folder, "verbose": False,
            "close_mosaic": 0, "nbs": options.batch * options.accumulate, "seed": 0,
        }
    )  # fmt: skip
    times: dict[str, float] = {}

    def mark(name: str) -> Callable[[Any], None]:
        def now(_: Any) -> None:
            if threads is not None:
                torch.set_num_threads(threads)
            times[name] = time.perf_counter()

        return now

    trainer.add_callback("on_train_epoch_start", mark("start"))
    trainer.add_callback("on_train_batch_end", mark("end"))
    trainer.train()
    shutil.rmtree(folder, ignore_errors=True)
    return times["end"] - times["start"]


def main() -> None:
    """Train by turns, and print images a second."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add_options(parser)
    parser.add_argument("--data", type=Path, required=True, help="folder of a COCO set")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--image", type=int, default=320, help="side in pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--accumulate", type=int, default=8, help="batches of an optimizer step")
    parser.add_argument("--workers", type=int, default=0)
    options = parser.parse_args()
    options.threads, options.rounds = torch.get_num_threads(), options.rounds or 5
    source = read_coco(options.data / "annotations" / "instances.json", options.data / "images")
    with tempfile.TemporaryDirectory() as folder:
        data = write_set(source, Path(folder) / "set", options.images)
        seconds: dict[str, list[float]] = {}

        def way(name: str, run: Callable[[], float]) -> tuple[Callable[[], object], ...]:
            return (lambda: None), lambda: seconds.setdefault(name, []).append(run())

        same = f"{RIVAL}, {options.threads} threads"
        ways = {
            RIVAL: way(RIVAL, lambda: theirs(data, options, None)),
            same: way(same, lambda: theirs(data, options, options.threads)),
            "surefoot": way("surefoot", lambda: ours(data, options)),
        }
        rows = interleave(ways, rival=RIVAL, rounds=options.rounds, warmup=0)  # type: ignore[arg-type]
    # What counts is the second epoch alone, which each way has timed itself.
    base = seconds[RIVAL]
    rows = [
        replace(
            row,
            milliseconds=1e3 * torch.tensor(seconds[row.name]).numpy(),
            ratios=(torch.tensor(seconds[row.name]) / torch.tensor(base)).numpy(),
        )
        for row in rows
    ]
    title = (
        f"YOLOv8n, an epoch of {options.images} images of {options.image} px, batch "
        f"{options.batch}, {options.workers} workers"
    )
    print(machine())
    print_table(title, rows, rival=RIVAL)
    for row in rows:
        rate = options.images / (float(torch.tensor(seconds[row.name]).median()))
        print(f"{row.name:46}{rate:10.2f} images/s")
    save_rows(options.json, title, rows)


if __name__ == "__main__":
    main()
