"""Stories of the segmenter: memory, processes, data, and errors that name themselves."""

from __future__ import annotations

import numpy as np
from consoles import Lines, camo_bars, camo_epochs, camo_start, falling, flat, traceback
from telling import Story

__all__ = ["STORIES"]

_OOM = (
    "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 600.00 MiB. GPU 0 has a "
    "total capacity of 14.74 GiB of which 378.00 MiB is free. 12.77 GiB is allocated"
)


def _trained(epochs: int = 30, **flags: object) -> Lines:
    iou = 0.548 - falling(epochs, 0.44, 0.0, 0.01)
    return camo_start(**flags) + camo_epochs(falling(epochs, 5.6, 2.4), iou)


def _dies(error: str, where: str = "train_ultimate.py", before: Lines | None = None) -> Lines:
    return [*(camo_start() if before is None else before), *traceback(where, error)]


def second_stage() -> Lines:
    stage = ["=" * 70, "STAGE 2: all layers unfrozen", "=" * 70]
    return _dies(_OOM, before=[*_trained(), *stage, *camo_bars([2.4], 31)])


def too_large_a_batch() -> Lines:
    return _dies(_OOM, before=[*camo_start(batch_size=32), *camo_bars([5.6], 1)])


def frozen() -> Lines:
    watchdog = (
        "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7211, "
        "OpType=ALLREDUCE) ran for 1800000 milliseconds before timing out."
    )
    return [*_trained(24), *camo_bars(flat(70, 2.4, 0.03), 25), watchdog]


def filling_device() -> Lines:
    memory = np.linspace(10.2, 14.7, 300) + 0.05 * np.random.default_rng(1).standard_normal(300)
    loss = falling(300, 5.6, 4.2)
    rows = [
        f"iter {i * 10} | loss {loss[i]:.4f} | gpu memory {memory[i]:.2f} GB" for i in range(300)
    ]
    return _dies(_OOM, before=[*camo_start(), *rows])


def cached_images() -> Lines:
    lines = [*camo_start(), "Caching 6000 images in RAM, 416 px: 3.87 GiB", "Caching: 71%"]
    return [*lines, "Killed"]


def channels() -> Lines:
    return _dies(
        "RuntimeError: Given groups=1, weight of size [64, 1024, 1, 1], expected input[2, 80, 104, "
        "104] to have 1024 channels, but got 80 channels instead"
    )


def splits() -> Lines:
    return _dies(
        "RuntimeError: split_with_sizes expects split_sizes to sum exactly to 80 (input tensor's "
        "size at dimension 1), but got split_sizes=[26, 26, 26]"
    )


def autocast_arguments() -> Lines:
    return _dies("TypeError: autocast.__init__() got multiple values: enabled must be a bool")


def unsafe_to_autocast() -> Lines:
    return _dies(
        "RuntimeError: torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe "
        "to autocast."
    )


def numpy_2() -> Lines:
    return [
        "A module that was compiled using NumPy 1.x cannot be run in NumPy 2.0.2",
        "AttributeError: _ARRAY_API not found",
    ]


def weights_only() -> Lines:
    return _dies(
        "_pickle.UnpicklingError: Weights only load failed. Unsupported global: GLOBAL "
        "numpy._core.multiarray.scalar was not an allowed global by default."
    )


def unfinished_reduction() -> Lines:
    return _dies(
        "RuntimeError: Expected to have finished reduction in the prior iteration before starting "
        "a new one. This error indicates that your module has parameters that were not used",
        before=[*camo_start(use_ddp=""), *camo_bars([5.6], 1)],
    )


def same_batches() -> Lines:
    loss, iou = falling(30, 3.1, 2.2), 0.6 - falling(30, 0.2, 0.0, 0.01)
    lines = camo_start(use_ddp="", stage2_batch_size=12)
    for epoch in range(30):
        for rank in (0, 1):
            lines += [f"[rank{rank}] epoch {epoch + 31} train_loss {loss[epoch]:.6f}"]
        lines += [f"epoch {epoch + 31} IoU {iou[epoch]:.4f}"]
    return lines


def misaligned() -> Lines:
    return _dies("RuntimeError: CUDA error: misaligned address", before=_trained(3))


def waiting_for_data() -> Lines:
    loss, wait = falling(200, 5.6, 3.9), flat(200, 0.22, 0.1)
    rows = [
        f"iter {i} loss {loss[i]:.4f} data_time: {wait[i]:.4f} time: {wait[i] + 0.11:.4f}"
        for i in range(200)
    ]
    return [*camo_start(num_workers=4), *rows]


def one_sample_at_a_time() -> Lines:
    loss = falling(300, 5.6, 3.9)
    return camo_start() + [
        f"iter {i} loss {loss[i]:.4f} time: {18.7 + 0.01 * (i % 9):.3f}" for i in range(300)
    ]


def stale_code() -> Lines:
    return ["train_ultimate.py: error: unrecognized arguments: --resume-from best_model.pth"]


def port_in_use() -> Lines:
    return _dies(
        "torch.distributed.DistNetworkError: The server socket has failed to listen on any local "
        "network address. port: 29500, EADDRINUSE: address already in use"
    )


def other_architecture() -> Lines:
    return _dies(
        "RuntimeError: Error(s) in loading state_dict for CamoXpertCOD: Missing key(s) in "
        'state_dict: "search_module.conv.weight"',
        before=[*camo_start(resume_from="best.pth")],
    )


def old_gpu() -> Lines:
    return _dies(
        "RuntimeError: Found Tesla P100-PCIE-16GB which is too old to be supported by the triton "
        "GPU compiler, which is used as the backend."
    )


def slip() -> Lines:
    return _dies("TypeError: __init__() got an unexpected keyword argument 'out_channels'")


def tight_tolerance() -> Lines:
    return _dies("AssertionError: Routing weights don't sum to 1.0", before=_trained(2))


STORIES = (
    Story(
        "camouflage F9",
        "CUDA runs out of memory at the first step of stage 2, after 30 good epochs",
        "more layers are trained from there on: the same batch no longer fits. No leak",
        "unknown",
        "SF602",
        second_stage,
    ),
    Story(
        "camouflage F10",
        "CUDA runs out of memory at the first batch, of 32 in float32",
        "the batch does not fit",
        "unknown",
        "SF602",
        too_large_a_batch,
    ),
    Story(
        "camouflage F11",
        "the bar stands at 56 % of epoch 25 until a collective times out",
        "the processes were out of step; memory was not short",
        "unknown",
        "SF910",
        frozen,
    ),
    Story(
        "camouflage F12",
        "device memory grows from 10 to 15 GB over three epochs, then none is left",
        "something is kept from step to step: emptying a cache does not mend it",
        "memory_leak",
        "SF601",
        filling_device,
    ),
    Story(
        "camouflage F13",
        "killed while images are cached in memory, before the first step",
        "images at full size do not fit: no leak",
        "unknown",
        "SF602",
        cached_images,
    ),
    Story(
        "camouflage F14",
        "expected 1024 channels, but got 80",
        "widths typed by hand for another backbone",
        "unknown",
        "SF910",
        channels,
    ),
    Story(
        "camouflage F15",
        "split sizes that do not sum to 80",
        "a width divided by three with a rest",
        "unknown",
        "SF910",
        splits,
    ),
    Story(
        "camouflage F16",
        "a TypeError of autocast",
        "an argument in the place of another, of another version",
        "unknown",
        "SF910",
        autocast_arguments,
    ),
    Story(
        "camouflage F17",
        "binary_cross_entropy is unsafe to autocast",
        "a logarithm of probabilities in float16: it needs logits",
        "numerically_unsafe_op",
        "SF910",
        unsafe_to_autocast,
    ),
    Story(
        "camouflage F18",
        "_ARRAY_API not found",
        "a module built for NumPy 1 under NumPy 2",
        "unknown",
        "SF910",
        numpy_2,
    ),
    Story(
        "camouflage F19",
        "weights only load failed",
        "a NumPy number was saved among the weights",
        "unknown",
        "SF910",
        weights_only,
    ),
    Story(
        "camouflage F20",
        "expected to have finished reduction",
        "parameters that the loss does not reach, in a model of several processes",
        "unknown",
        "SF910",
        unfinished_reduction,
    ),
    Story(
        "camouflage F20b",
        "both ranks print the same loss to the last digit",
        "no distributed sampler: every process trains on the same batches",
        "bad_data_or_labels",
        "SF707",
        same_batches,
    ),
    Story(
        "camouflage F21",
        "CUDA error: misaligned address",
        "never found: no minimal example was made",
        "unknown",
        "SF905",
        misaligned,
        "errors of CUDA name a later line than the one at fault",
    ),
    Story(
        "camouflage F25",
        "two thirds of each step are spent waiting for data",
        "too few workers and images decoded anew each time; the training is sound",
        "healthy",
        "SF606",
        waiting_for_data,
    ),
    Story(
        "camouflage F26",
        "a step takes 18.7 s from the first to the last",
        "experts were run sample by sample",
        "healthy",
        "SF001",
        one_sample_at_a_time,
        "a pace that never changes cannot be told from a slow machine; a profile tells",
    ),
    Story(
        "camouflage F27",
        "unrecognized arguments: --resume-from",
        "an older version of the code was run",
        "unknown",
        "SF910",
        stale_code,
    ),
    Story(
        "camouflage F28",
        "address already in use",
        "another run holds the port",
        "unknown",
        "SF910",
        port_in_use,
    ),
    Story(
        "camouflage F29",
        "missing keys in state_dict",
        "a checkpoint of another architecture",
        "unknown",
        "SF910",
        other_architecture,
    ),
    Story(
        "camouflage F30",
        "the GPU is too old for the triton compiler",
        "torch.compile on a card that it does not support",
        "unknown",
        "SF910",
        old_gpu,
    ),
    Story(
        "camouflage F31",
        "an unexpected keyword argument",
        "a name that the called code does not know",
        "unknown",
        "SF910",
        slip,
    ),
    Story(
        "camouflage F34",
        "weights don't sum to 1.0",
        "float16 holds three decimals: the tolerance was too tight, the weights were right",
        "numerically_unsafe_op",
        "SF910",
        tight_tolerance,
    ),
)
