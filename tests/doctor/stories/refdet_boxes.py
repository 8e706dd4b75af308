"""Stories of the detector: boxes, targets, features and what is measured of them."""

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
    traceback,
)
from telling import Story

__all__ = ["STORIES"]


def never_decoded() -> Lines:
    lines = [*REFDET_START]
    box, cls = flat(300, 2.45, 0.012), falling(300, 1.03, 0.6)
    supcon = falling(300, 0.76, 0.4, seed=2)
    for i in range(0, 300, 3):
        total = 2 * box[i] + 0.5 * cls[i] + supcon[i]
        lines += refdet_losses(i, total, bbox=box[i], cls=cls[i], supcon=supcon[i], triplet=0.0)
    zero = [0.0] * 6
    return lines + refdet_epochs(
        falling(6, 6.4, 6.0, 0.002), **{"Val_ST-IoU": zero, "Val_mAP@0.5": zero}
    )


def without_the_anchor() -> Lines:
    lines = [*REFDET_START]
    for i in range(0, 200, 10):
        box, cls, supcon = 2.5 + 0.01 * (i % 7), 1.0 - 0.002 * i, 0.7 - 0.002 * (i % 9)
        lines += refdet_losses(i, 2 * box + 0.5 * cls + supcon, bbox=box, cls=cls, supcon=supcon)
        lines += [f"[Step {i}] BBOX STATISTICS", "  Predicted boxes:"]
        lines += ["    x range: [-1.2, 9.5]", "    y range: [0.0, 5.9]", "  Target boxes:"]
        lines += ["    x range: [99.4, 543.8]", "    y range: [0.6, 469.0]", "  Mean IoU: 0.0000"]
    return lines


def rectified_distances() -> Lines:
    lines = [*REFDET_START]
    for i in range(0, 300, 10):
        box, cls, supcon = 2.42 + 0.01 * (i % 7), 1.0 - 0.002 * i, 0.7 - 0.002 * (i % 9)
        lines += refdet_losses(i, 2 * box + 0.5 * cls + supcon, bbox=box, cls=cls, supcon=supcon)
        lines += [f"[Step {i}] BBOX STATISTICS", "  Valid x: 100.0 %", "  Valid y: 100.0 %"]
        lines += ["  Mean width: 0.0001", "  Mean height: 0.0001", "  Mean IoU: 0.0000"]
    return lines


def dead_terms() -> Lines:
    lines = refdet_start(cpe_weight=0.5, triplet_weight=0.2)
    box, cls = falling(60, 1.7, 1.3, 0.02), falling(60, 1.1, 0.9, 0.02, seed=1)
    supcon = flat(60, 0.76, 0.03, seed=2)
    for i in range(60):
        total = 2 * box[i] + 0.5 * cls[i] + supcon[i]
        terms = {"bbox": box[i], "cls": cls[i], "supcon": supcon[i]}
        lines += refdet_losses(i, total, **terms, cpe=0.0, triplet=0.0)
    return lines


def features_of_two_sizes() -> Lines:
    lines = [*REFDET_START]
    triplet = flat(60, 13.4, 0.02)
    anchor, positive = flat(60, 15.95, 0.01), flat(60, 2.7, 0.02, seed=1)
    for i in range(60):
        lines += refdet_losses(i, triplet[i] * 0.2 + 5, bbox=1.6 - 0.01 * i, triplet=triplet[i])
        norms = {"Anchor feature norm (DINO)": anchor[i], "Positive feature norm": positive[i]}
        lines += refdet_block(i, "Triplet Diagnostics", **norms)
    return lines


def indices_out_of_bounds() -> Lines:
    error = "IndexError: Class indices out of bounds: got 5, prototypes are 2"
    bars = refdet_bars(falling(40, 9.0, 7.5))
    return REFDET_START + bars + traceback("src/training/trainer.py", error)


def no_gradient_of_references() -> Lines:
    bars = refdet_bars(falling(300, 9.4, 6.1, 0.01))
    return REFDET_START + bars


def watching_none() -> Lines:
    error = "AttributeError: 'NoneType' object has no attribute 'detach' in gradient hook of watch"
    return [*REFDET_START, *refdet_bars([9.4]), *traceback("wandb/torch_watch.py", error)]


def validation_keys() -> Lines:
    bars = refdet_bars(falling(200, 9.4, 7.0, 0.01))
    return REFDET_START + bars + traceback("src/training/trainer.py", "KeyError: 'pred_bboxes'")


def empty_boxes() -> Lines:
    warned = [
        "albumentations/core/bbox_utils.py:388: RuntimeWarning: divide by zero encountered in "
        "divide",
        "  transformed_areas / box_areas",
    ]
    return REFDET_START + amid(refdet_bars(falling(200, 9.0, 7.0, 0.02)), lambda _: warned, 25)


def inflated_evaluation() -> Lines:
    metrics = {"Val_ST-IoU": [0.31, 0.44, 0.52, 0.57, 0.6, 0.62, 0.63, 0.64]}
    return REFDET_START + refdet_epochs(falling(8, 9.4, 6.0, 0.01), **metrics)


def noise_in_the_export() -> Lines:
    return [
        "Exporting to yolov8n_refdet.onnx, opset 18",
        "Simplified: 30.45 MB -> 28.87 MB",
        "Maximum error: 1.23e-06",
        "Mean error: 3.45e-07",
        "Export complete",
    ]


def quarter_of_the_schedule() -> Lines:
    rates = 1e-4 * (0.5 + 0.5 * np.cos(np.pi * np.linspace(0.0, 0.25, 400)))
    losses = falling(400, 9.0, 6.0, 0.01)
    lines = refdet_start(1e-4, "CosineAnnealingLR", gradient_accumulation=4, epochs=4)
    for epoch in range(4):
        part = slice(100 * epoch, 100 * epoch + 100)
        lines += refdet_bars(losses[part], [float(r) for r in rates[part]], epoch=epoch + 1)
    return [*lines, "Training complete"]


STORIES = (
    Story(
        "refdet F10",
        "bbox stays at 2.40 to 2.55 for hundreds of steps while the rest falls; metrics are 0",
        "boxes that were never decoded: the IoU is 0, and the loss of a box that overlaps nothing "
        "lies below e. No weight changes that",
        "wrong_decoding_or_targets",
        "SF309",
        never_decoded,
    ),
    Story(
        "refdet F11",
        "predictions within ten pixels, targets up to 544; the IoU is 0",
        "multiplied by the stride, and the anchor not added",
        "wrong_decoding_or_targets",
        "SF305",
        without_the_anchor,
    ),
    Story(
        "refdet F12",
        "all boxes are valid, none has a size, the IoU is 0",
        "ReLU on distances: half of the outputs have no gradient",
        "dead_loss",
        "SF304",
        rectified_distances,
    ),
    Story(
        "refdet F13",
        "cpe and triplet are 0.000000 on every line",
        "what these losses need never reached them",
        "dead_loss",
        "SF301",
        dead_terms,
    ),
    Story(
        "refdet F19",
        "the first validation dies of KeyError: 'pred_bboxes'",
        "outputs that were not decoded; training itself was sound that far",
        "unknown",
        "SF910",
        validation_keys,
    ),
    Story(
        "refdet F21",
        "divide by zero in the augmentation, again and again",
        "boxes without an area, left by the augmentation: images without a target",
        "bad_data_or_labels",
        "SF706",
        empty_boxes,
    ),
    Story(
        "refdet F22",
        "features of norm 15.95 are compared with features of norm 2.7",
        "two networks' features at different scales, cut to one width: their distance says nothing",
        "wrong_decoding_or_targets",
        "SF310",
        features_of_two_sizes,
    ),
    Story(
        "refdet F23",
        "class indices out of bounds",
        "class numbers of the whole set in an episode of two",
        "bad_data_or_labels",
        "SF702",
        indices_out_of_bounds,
    ),
    Story(
        "refdet F24",
        "a loss that falls",
        "the encoder of the references ran without gradients and stayed random",
        "healthy",
        "SF001",
        no_gradient_of_references,
        "parameters without a gradient are in no line; the guard tells of them, and a test with "
        "another reference would",
    ),
    Story(
        "refdet F25",
        "the gradient watch of a logger fails at None",
        "the same parameters without a gradient: the crash told it, and was switched off",
        "dead_loss",
        "SF910",
        watching_none,
    ),
    Story(
        "refdet F30",
        "the cosine ends at 0.85 of its peak",
        "the schedule counted batches, and was stepped once in four of them",
        "schedule_error",
        "SF507",
        quarter_of_the_schedule,
    ),
    Story(
        "refdet F31",
        "a metric that rises",
        "labels leaked into the model, and frames without a detection were left out",
        "healthy",
        "SF001",
        inflated_evaluation,
        "a number that is computed too well looks like a good one; a null reference and per-image "
        "scores would tell",
    ),
    Story(
        "refdet F32",
        "an export that ends with a tiny error",
        "prototypes of random noise were baked into the file",
        "healthy",
        "SF904",
        noise_in_the_export,
        "there is no training in it, which is said; parity has to be shown on real images",
    ),
)
