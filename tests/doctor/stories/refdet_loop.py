"""Stories of the detector: errors, memory and the machine."""

from __future__ import annotations

import numpy as np
from consoles import (
    REFDET_START,
    Lines,
    amid,
    falling,
    refdet_bars,
    refdet_block,
    refdet_start,
    traceback,
)
from telling import Story

__all__ = ["STORIES"]


def swallowed() -> Lines:
    lines = [*REFDET_START]
    for i in range(22):
        lines += refdet_block(i, "Batch Contents", Shape="[8, 3, 640, 640]")
        lines += refdet_block(i, "Detection Forward Pass", matched_anchors=452.0 + 11 * (i % 9))
        lines += [f"DETAILED ERROR at batch {i}/500"]
        lines += traceback(
            "src/training/trainer.py",
            "TypeError: forward() got an unexpected keyword argument 'diagnostic_data'",
        )
        lines += [f"SKIPPING batch {i}"]
    return lines


def caches_of_workers() -> Lines:
    ram = 1.12 + np.linspace(0, 60.9, 200) + 0.2 * np.random.default_rng(0).standard_normal(200)
    bars = refdet_bars(falling(200, 9.0, 6.5, 0.02))
    told = amid(bars, lambda i: [f"RAM usage: {ram[i]:.2f} GB"])
    return [*refdet_start(num_workers=8, n_way=4, n_query=8), *told, "Killed"]


def worker_killed() -> Lines:
    error = "RuntimeError: DataLoader worker (pid 48213) is killed by signal: Killed."
    bars = refdet_bars(falling(580, 9.0, 6.5, 0.02), total=1000)
    return REFDET_START + bars + traceback("torch/utils/data/dataloader.py", error)


def first_batch_too_large() -> Lines:
    error = (
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 200.00 MiB. GPU 0 has a "
        "total capacity of 3.63 GiB of which 98.00 MiB is free."
    )
    return [*REFDET_START, *refdet_bars([9.4], total=500), *traceback("train.py", error)]


def _dies(error: str, batches: int = 0, where: str = "train.py") -> Lines:
    bars = refdet_bars(falling(batches, 9.0, 7.0)) if batches else []
    return REFDET_START + bars + traceback(where, error)


def dtypes() -> Lines:
    return _dies("RuntimeError: Input type (c10::Half) and bias type (float) should be the same")


def no_weights() -> Lines:
    lines = ["HTTP Error 403: Forbidden", "wandb not installed, logging is off"]
    error = "FileNotFoundError: [Errno 2] No such file or directory: './models/base/yolov8-n.pt'"
    return lines + _dies(error)


def renamed() -> Lines:
    return traceback(
        "tests/test_model.py", "ModuleNotFoundError: No module named 'models.yolo_refdet'"
    )


def empty_cache() -> Lines:
    return _dies("KeyError: 'popitem(): dictionary is empty'", 0, "src/datasets/cache.py")


def no_such_flag() -> Lines:
    return [
        "usage: train.py [-h] [--data_root DATA_ROOT] [--stage {1,2,3}] [--epochs EPOCHS]",
        "train.py: error: unrecognized arguments: --no-mixed_precision --warmup_epochs 3",
    ]


STORIES = (
    Story(
        "refdet F16",
        "22 forward passes, an unexpected keyword at each, and not one loss",
        "a broad except passed over a TypeError at every batch: no step was ever taken",
        "swallowed_exceptions",
        "SF901",
        swallowed,
    ),
    Story(
        "refdet F17",
        "host memory grows from 1.12 to 62 GB, then the process is killed",
        "the frame caches of eight workers, each with its own; the lists of the validation were "
        "5 MB",
        "memory_leak",
        "SF601",
        caches_of_workers,
    ),
    Story(
        "refdet F18",
        "a data worker is killed at batch 580",
        "the same caches: the host's memory was full",
        "memory_leak",
        "SF603",
        worker_killed,
    ),
    Story(
        "refdet F20",
        "CUDA runs out of memory at batch 1",
        "it does not fit into 4 GB at all: no leak",
        "unknown",
        "SF602",
        first_batch_too_large,
    ),
    Story(
        "refdet F26",
        "input of type Half and bias of type float",
        "a tensor that left autocast: a cast was missing",
        "unknown",
        "SF910",
        dtypes,
    ),
    Story(
        "refdet F28",
        "a log named fixed that ends in FileNotFoundError",
        "the weights could not be downloaded: nothing was trained, so nothing was fixed",
        "unknown",
        "SF910",
        no_weights,
    ),
    Story(
        "refdet F29",
        "No module named 'models.yolo_refdet'",
        "scripts that were left behind by a renaming",
        "unknown",
        "SF910",
        renamed,
    ),
    Story(
        "refdet F33",
        "popitem(): dictionary is empty",
        "a cache of capacity 0 that evicts before it holds anything",
        "unknown",
        "SF910",
        empty_cache,
    ),
    Story(
        "refdet F34",
        "unrecognized arguments: --no-mixed_precision",
        "a flag that never existed: mixed precision could not be switched off",
        "unknown",
        "SF910",
        no_such_flag,
    ),
)
