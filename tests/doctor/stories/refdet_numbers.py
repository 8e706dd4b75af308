"""Stories of the detector: gradients, loss scale, numbers and terms."""

from __future__ import annotations

import numpy as np
from consoles import (
    REFDET_START,
    Lines,
    amid,
    falling,
    flat,
    refdet_bars,
    refdet_block,
    refdet_epochs,
    refdet_losses,
    refdet_start,
)
from telling import Story

__all__ = ["STORIES"]


def zero_loss() -> Lines:
    error = "AssertionError: No inf checks were recorded for this optimizer."
    bars = refdet_bars(np.zeros(80))
    terms = dict.fromkeys(("bbox", "cls", "dfl", "supcon", "cpe", "triplet"), 0.0)
    return REFDET_START + amid(bars, lambda i: [error, *refdet_losses(i, 0.0, **terms)])


def never_unscaled() -> Lines:
    norms = flat(80, 75.8 * 65536, 0.2)
    bars = refdet_bars(flat(80, 6.5, 0.02))
    return REFDET_START + amid(
        bars, lambda i: refdet_block(i, "Gradient Norms", **{"Total Grad Norm": norms[i]})
    )


def sum_of_scaled_norms() -> Lines:
    clipped = flat(120, 8.0, 0.1, seed=2)
    norms = 621_000 * clipped
    totals = falling(120, 26.19, 6.49, 0.1)

    def block(i: int) -> Lines:
        size = totals[i] / 26.19
        terms = {"bbox": 0.7 * size, "cls": 0.98 * size, "dfl": 11.86 * size}
        losses = refdet_losses(i, totals[i], **terms, supcon=1.62 * size, triplet=1.67 * size)
        before = refdet_block(i, "Gradient Norms", **{"Total Grad Norm": norms[i]})
        after = {"Norm after clip": clipped[i], "Threshold": 1.0}
        return losses + before + refdet_block(i, "Gradient Clipping", **after)

    return REFDET_START + amid(refdet_bars(totals), block)


def scaler_thrown_away() -> Lines:
    bars = refdet_bars(falling(400, 9.0, 6.2))
    name = "prototype_head.cv2.0.2.weight"

    def skip(i: int) -> Lines:
        return [
            f"2025-11-16 01:27:{i % 60:02d} | WARNING  | NaN/Inf gradient in {name}",
            "2025-11-16 01:27:09 | DEBUG    |   Grad stats: min=-inf, max=inf, mean=nan",
            f"2025-11-16 01:27:09 | ERROR    | NaN/Inf gradients detected at batch {i}. "
            "Skipping optimizer step.",
        ]

    return REFDET_START + amid(bars, skip, 14)


def unscaled_each_batch() -> Lines:
    error = (
        "RuntimeError: unscale_() has already been called on this optimizer since the last "
        "update()."
    )
    bars = refdet_bars(flat(100, 20.7, 0.01))
    return REFDET_START + amid(
        bars,
        lambda i: [f"DETAILED ERROR at batch {i}/100", error, f"SKIPPING batch {i}"][: 3 * (i % 2)],
    )


def box_branch_of_a_gtx_1650() -> Lines:
    lines = ["Device: NVIDIA GeForce GTX 1650, 3.63 GB", *REFDET_START]
    nan = float("nan")
    cls, supcon = (1.2756, 0.9009, 0.8734, 0.9298, 0.9648), (0.7444, 0.6938, 0.0, 0.7672, 0.8115)
    for i in range(5):
        lines += refdet_block(i, "Batch Contents", query="Has NaN False, Has Inf False")
        lines += refdet_losses(i, nan, bbox=nan, cls=cls[i], dfl=nan, supcon=supcon[i], cpe=nan)
    return lines


def nan_gradient_at_once() -> Lines:
    lines = [*REFDET_START, *refdet_losses(0, 16.97, bbox=0.88, cls=0.94, dfl=11.82, supcon=0.67)]
    for i in range(12):
        lines += [
            "2025-11-16 02:16:00 | WARNING  | NaN/Inf gradient in backbone.model.model.0.conv.w",
            f"2025-11-16 02:16:00 | ERROR    | NaN/Inf gradients detected at batch {i}. "
            "Skipping optimizer step.",
        ]
    return lines


def distances_summed() -> Lines:
    dfl, box, cls = flat(60, 6.6, 0.08), flat(60, 0.45, 0.08, seed=3), flat(60, 0.65, 0.03, seed=4)
    supcon, triplet = flat(60, 0.45, 0.1, seed=5), flat(60, 0.3, 0.1, seed=6)

    def block(i: int) -> Lines:
        total = 7.5 * box[i] + 0.5 * (cls[i] + dfl[i]) + 1.2 * supcon[i] + 0.3 * triplet[i]
        terms = {"bbox": box[i], "cls": cls[i], "dfl": dfl[i]}
        return refdet_losses(i, total, **terms, supcon=supcon[i], triplet=triplet[i])

    return REFDET_START + amid(refdet_bars(flat(60, 7.0, 0.02)), block)


def at_the_clamp() -> Lines:
    lines = [*REFDET_START]
    box = falling(80, 1.9, 0.8)
    for i in range(80):
        total = 7.5 * box[i] + 0.5 * 0.8 + 1.0 * 10.0
        lines += refdet_losses(i, total, bbox=box[i], cls=0.8 - 0.004 * i, dfl=10.0)
    metrics = {"Val_mAP@0.5": [0.0006] * 13}
    return lines + refdet_epochs(falling(13, 20.0, 16.5, 0.005), **metrics)


def misread_rate() -> Lines:
    config = refdet_start(2e-6, lr=2e-5, gradient_accumulation=1)
    return config + refdet_bars(falling(200, 6.2, 4.7, 0.01), 2e-6)


def small_term() -> Lines:
    cpe = flat(80, 0.12, 0.1)
    box, cls = falling(80, 1.9, 1.0911), falling(80, 1.2, 0.8353, seed=4)
    supcon = falling(80, 1.0, 0.7653, seed=5)
    lines = [*REFDET_START]
    for i in range(80):
        total = 2 * box[i] + 0.5 * cls[i] + supcon[i] + 0.5 * cpe[i]
        lines += refdet_losses(i, total, bbox=box[i], cls=cls[i], supcon=supcon[i], cpe=cpe[i])
    return lines


def hooks_before_unscaling() -> Lines:
    norms = flat(150, 0.0889, 0.02)
    return REFDET_START + amid(
        refdet_bars(flat(150, 12.93, 0.004)),
        lambda i: refdet_block(i, "Gradient Norms", **{"Total Grad Norm": norms[i]}),
    )


def guards_of_constants() -> Lines:
    lines = [*REFDET_START]
    cls = falling(100, 1.4, 0.5)
    for i in range(100):
        total = 2.5 * 0.1 + 0.5 * cls[i] + 0.7
        lines += refdet_losses(i, total, bbox=0.1, cls=cls[i], supcon=0.7 - 0.001 * (i % 7))
    return lines


STORIES = (
    Story(
        "refdet F1",
        "every loss is 0.0, and GradScaler finds no inf checks at each batch",
        "the loss code looked for keys that the model does not return: nothing matched, so the "
        "losses were constants without a gradient",
        "dead_loss",
        "SF302",
        zero_loss,
    ),
    Story(
        "refdet F2",
        "a gradient norm of millions at each step, and a loss that does not move",
        "clipping before unscale_(): the norm still had the loss scale of 65,536 in it",
        "scaler_misuse",
        "SF205",
        never_unscaled,
    ),
    Story(
        "refdet F3",
        "a gradient of 4.97 million that is 8.0 after clipping to 1.0, and falls with the loss",
        "a sum of the norms of 546 tensors, still multiplied by the loss scale; the 8.0 is the "
        "true norm. Nothing exploded",
        "scaler_misuse",
        "SF205",
        sum_of_scaled_norms,
    ),
    Story(
        "refdet F4",
        "infinite gradients every fourteen batches, for ever, at a loss scale of 65,536",
        "an overflow is routine; the handler put a new scaler in place of the one that would have "
        "halved its scale",
        "scaler_misuse",
        "SF203",
        scaler_thrown_away,
    ),
    Story(
        "refdet F5",
        "every odd batch fails: unscale_() has already been called",
        "unscale_() at each micro-batch, update() at every fourth",
        "scaler_misuse",
        "SF204",
        unscaled_each_batch,
    ),
    Story(
        "refdet F6",
        "bbox, dfl and cpe are NaN at batch 0, cls and supcon are not; the GPU is a GTX 1650",
        "only what uses the box branch is NaN, and float16 is broken on that family of GPUs",
        "fp16_overflow",
        "SF209",
        box_branch_of_a_gtx_1650,
    ),
    Story(
        "refdet F7",
        "gradients that are not finite at batch 0, with losses that are",
        "the first overflows of float16, which a scaler left alone would have answered",
        "fp16_overflow",
        "SF104",
        nan_gradient_at_once,
    ),
    Story(
        "refdet F8",
        "dfl is 5.9 to 7.3, ten times the other terms",
        "summed over four sides where the others are means: four times too large",
        "loss_term_dominates",
        "SF303",
        distances_summed,
    ),
    Story(
        "refdet F9",
        "dfl is exactly 10.0 on every line; mAP is 0.0006 after 13 epochs",
        "wrong targets, and a clamp below 4 ln 16 = 11.09: at the clamp there is no gradient",
        "dead_loss",
        "SF308",
        at_the_clamp,
    ),
    Story(
        "refdet F14",
        "the bar shows lr=0.000002 where 0.00002 was asked for",
        "the bar shows the first group's rate, a tenth of the others'",
        "healthy",
        "SF508",
        misread_rate,
    ),
    Story(
        "refdet F15",
        "cpe is 2 to 4 % of the loss",
        "nothing was wrong with it; it was taken out for its size",
        "healthy",
        "SF001",
        small_term,
        "whether a term helps is told by two runs, one without it",
    ),
    Story(
        "refdet F27",
        "the loss does not fall, and the norm is 0.089",
        "hooks clamped the gradients while they still had the loss scale in them",
        "plateau_or_collapse",
        "SF805",
        hooks_before_unscaling,
        "a hook leaves no line: that nothing is learnt is seen, not why",
    ),
    Story(
        "refdet F35",
        "bbox is exactly 0.1 on every line while cls falls",
        "a guard returned a constant in place of NaN: box learning was off, unseen",
        "dead_loss",
        "SF308",
        guards_of_constants,
    ),
)
