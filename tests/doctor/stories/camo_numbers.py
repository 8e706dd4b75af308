"""Stories of the segmenter: numbers, the loss scale, schedules, averages and collapse."""

from __future__ import annotations

import numpy as np
from consoles import Lines, camo_bars, camo_epochs, camo_start, falling, flat
from telling import Story

__all__ = ["STORIES"]


def _abort(batch: int, norm: str = "inf") -> Lines:
    return [
        f"❌ NaN/Inf detected in gradients at batch {batch}!",
        f"   Gradient norm: {norm}",
        "   This indicates gradient explosion.",
        "ValueError: Training stopped due to NaN/Inf gradients.",
    ]


def _amp(**more: object) -> Lines:
    return [*camo_start(epochs=140, stage1_epochs=30, **more), "Mixed precision: amp=True"]


def epoch_44() -> Lines:
    done = camo_epochs(falling(43, 4.1, 2.35), 0.58 - falling(43, 0.47, 0.0, 0.01))
    return [*_amp(lr=2.5e-4), *done, *camo_bars(falling(5, 2.31, 2.30, 0.01)), *_abort(5)]


def random_batches() -> Lines:
    done = camo_epochs(falling(12, 4.1, 2.9), 0.5 - falling(12, 0.4, 0.0, 0.01))
    lines = [*_amp(lr=8e-4), *done]
    for epoch, batch in ((13, 3), (14, 43), (15, 109)):
        lines += camo_bars(flat(batch, 2.85, 0.05, seed=epoch), epoch) + _abort(batch)
        lines += ["Resumed from best_model.pth"]
    return lines


def first_batch() -> Lines:
    return [*_amp(lr=8e-4), "GradScaler: init_scale=2048", *camo_bars([11.3], 1), *_abort(1)]


def scale_that_doubled() -> Lines:
    lines = [*_amp(lr=8e-4, scheduler="cosine"), "GradScaler: init_scale=512 growth_interval=2000"]
    iou = 0.6 - falling(27, 0.5, 0.0, 0.01)
    loss = falling(27, 4.1, 2.2)
    for epoch in range(27):
        scale = 512 * 2 ** (epoch * 150 // 2000)
        lines += camo_epochs(loss[epoch : epoch + 1], iou[epoch : epoch + 1], first=epoch + 1)
        lines += [f"   Scale: {scale}.0"]
    return lines + camo_bars(flat(4, 2.2, 0.02), 28) + _abort(4)


def average_of_a_random_start() -> Lines:
    iou = [0.1094, 0.06, 0.0188, 0.012, 0.011, 0.0111, 0.02, 0.04, 0.08, 0.1106, 0.11]
    iou += list(np.linspace(0.11, 0.1136, 19)) + list(np.linspace(0.1, 0.0, 10))
    flags = camo_start(lr=1e-4, batch_size=16, ema_decay=0.9999, accumulation_steps=8)
    return [*flags, "Iterations per epoch: 46", *camo_epochs(falling(40, 5.6, 2.1), iou)]


def lagging_average() -> Lines:
    iou = [0.09, 0.1136, 0.0856, 0.0567, 0.0234, 0.011, 0.004, 0.0]
    flags = camo_start(lr=1e-4, ema_decay=0.9999)
    return [*flags, *camo_epochs(falling(8, 5.6, 3.1), iou)]


def slow() -> Lines:
    iou = np.concatenate([0.61 - falling(68, 0.5, 0.0, 0.01), np.linspace(0.611, 0.6221, 17)])
    return camo_start(lr=2.5e-4) + camo_epochs(falling(85, 5.6, 1.9, 0.01), iou)


def unfrozen_anew() -> Lines:
    iou = np.concatenate([0.6413 - falling(88, 0.5, 0.0, 0.01), np.linspace(0.6371, 0.61, 9)])
    iou = np.concatenate([iou, [0.0022, 0.0019, 0.002]])
    head = 2e-4 * (0.5 + 0.5 * np.cos(np.pi * np.arange(100) / 120))
    head[90:] = 2e-4
    head[30:90] = np.linspace(2e-4, 2.2e-5, 60)
    loss = np.concatenate([falling(90, 5.6, 1.9, 0.01), np.linspace(2.0, 3.4, 7), [7.9, 8.1, 8.0]])
    rates = [(float(rate), float(rate) / 10) for rate in head]
    return camo_start(progressive_unfreeze="") + camo_epochs(loss, iou, rates)


def climbing_backbone() -> Lines:
    head = np.linspace(5.5e-4, 3.1e-4, 16)
    backbone = np.linspace(5.5e-5, 6.9e-5, 16)
    iou = np.concatenate([[0.6702], 0.655 + 0.01 * np.cos(np.arange(14)), [0.6414]])
    flags = camo_start(scheduler="cosine", min_lr=1e-4, resume_from="best_model.pth")
    rates = list(zip(map(float, head), map(float, backbone), strict=True))
    return flags + camo_epochs(flat(16, 1.9, 0.01), iou, rates, first=57)


def climbing_together() -> Lines:
    head = 1e-3 - 4.5e-4 * (0.5 + 0.5 * np.cos(np.linspace(0, np.pi, 36)))
    iou = 0.66 + 0.02 * np.sin(np.arange(36)) + np.linspace(0, 0.015, 36)
    rates = [(float(rate), float(rate)) for rate in head]
    flags = camo_start(scheduler="cosine", min_lr=1e-3)
    return flags + camo_epochs(flat(36, 1.8, 0.01), np.clip(iou, 0.64, 0.69), rates, first=60)


def warm_up_on_one_cycle() -> Lines:
    epochs = np.arange(60)
    up, down = np.minimum(1.0, (epochs + 1) / 12), np.clip(1 - (epochs - 12) / 48, 0.004, 1.0)
    head = 5.5e-4 * np.where(epochs < 12, up + 0.5 * up, down)
    rates = [(float(rate), float(rate)) for rate in head]
    flags = camo_start(lr=5.5e-4, scheduler="onecycle", warmup_epochs=12)
    iou = 0.6 - falling(60, 0.5, 0.0, 0.01)
    return flags + camo_epochs(falling(60, 5.6, 2.0), iou, rates)


def sparse_experts() -> Lines:
    lines = [*_amp(lr=8e-4, warmup_epochs=40)]
    rates = [(2e-5 * epoch, 2e-5 * epoch) for epoch in (1, 2, 3)]
    lines += camo_epochs([5.1, 4.2, 4.9], [0.357, 0.539, 0.39], rates)
    return lines + camo_bars(flat(109, 4.9, 0.08), 4, 200) + _abort(109, "nan")


def all_background() -> Lines:
    return camo_start(lr=2.5e-4) + camo_epochs(falling(20, 5.6, 2.4), [0.0] * 20)


def one_expert() -> Lines:
    lines = camo_start(use_sparse_moe="", moe_num_experts=6)
    loss, iou = falling(40, 5.6, 3.3), 0.4 - falling(40, 0.3, 0.0)
    for epoch in range(40):
        top = min(0.17 + 0.06 * epoch, 0.94)
        usage = [(1 - top) / 5] * 5 if epoch < 14 else [1 - top, 0.0, 0.0, 0.0, 0.0]
        lines += camo_epochs(loss[epoch : epoch + 1], iou[epoch : epoch + 1], first=epoch + 1)
        lines += [f"   Expert 0 usage: {top:.3f}"]
        lines += [f"   Expert {i} usage: {share:.3f}" for i, share in enumerate(usage, start=1)]
    return lines


def impossible_scores() -> Lines:
    lines = camo_start(lr=2.5e-4)
    loss, iou = falling(20, 5.6, 2.0), 0.6 - falling(20, 0.5, 0.0)
    for epoch in range(20):
        lines += camo_epochs(loss[epoch : epoch + 1], iou[epoch : epoch + 1], first=epoch + 1)
        lines += [f"S-measure: {-0.05 - 0.002 * epoch:.4f} | E-measure: 0.0001"]
    return lines


STORIES = (
    Story(
        "camouflage F1",
        "at epoch 44 the gradient is infinite once, under float16; the trainer stops",
        "an ordinary overflow: a scaler skips such a step and halves its scale. The stop was the "
        "fault",
        "fp16_overflow",
        "SF104",
        epoch_44,
    ),
    Story(
        "camouflage F2",
        "infinite gradients at batches without a pattern, under float16",
        "the same overflows, fatal since the day a check raised at them; no logit needs a clamp",
        "fp16_overflow",
        "SF104",
        random_batches,
    ),
    Story(
        "camouflage F3",
        "an infinite gradient at batch 1 with a loss of 11.3",
        "the loss scale's search for its place; the weights of the losses had no part in it",
        "fp16_overflow",
        "SF104",
        first_batch,
    ),
    Story(
        "camouflage F4",
        "it stops at epochs 23 to 29, whatever the learning rate",
        "each doubling of the loss scale brings an overflow, and each overflow was fatal; the "
        "learning rate never enters float16",
        "fp16_overflow",
        "SF104",
        scale_that_doubled,
    ),
    Story(
        "camouflage F5",
        "the loss falls and the IoU stays at 0.1 and goes to 0",
        "measured on an average that is 87 % random start: the model itself was never measured",
        "wrong_decoding_or_targets",
        "SF811",
        average_of_a_random_start,
    ),
    Story(
        "camouflage F6",
        "the IoU falls epoch after epoch, and so does the loss",
        "an average of 10,000 steps that lags behind by the length of the run",
        "wrong_decoding_or_targets",
        "SF811",
        lagging_average,
    ),
    Story(
        "camouflage F7",
        "the IoU gains 0.01 in 17 epochs",
        "slow, and for several reasons at once",
        "healthy",
        "SF001",
        slow,
        "a metric near its best that still rises is no symptom; the schedule has to be compared "
        "with another",
    ),
    Story(
        "camouflage F8",
        "the IoU falls from 0.64 to 0.002 after the learning rate jumps back to its peak",
        "unfreezing built a new AdamW and a new schedule: full rate, no moments",
        "schedule_error",
        "SF502",
        unfrozen_anew,
    ),
    Story(
        "camouflage F22",
        "the backbone's learning rate rises under a cosine",
        "an absolute floor above the group's own rate: the cosine climbs to it",
        "schedule_error",
        "SF510",
        climbing_backbone,
    ),
    Story(
        "camouflage F23",
        "the learning rate rises to the end under a cosine; the IoU swings",
        "the floor is above the rate of every group",
        "schedule_error",
        "SF510",
        climbing_together,
    ),
    Story(
        "camouflage F23b",
        "the rate reaches 1.5 times what was asked for, at the end of its warm-up",
        "a warm-up on top of a one-cycle schedule: two hands on one rate",
        "schedule_error",
        "SF509",
        warm_up_on_one_cycle,
    ),
    Story(
        "camouflage F24",
        "IoU 0.357, 0.539, 0.390 while the rate warms up to 8e-4, then a NaN gradient",
        "a rate eight times the usual one, and a check that makes overflows fatal; a term of "
        "weight 1e-5 is not it",
        "fp16_overflow",
        "SF104",
        sparse_experts,
        "three epochs do not show whether the rate alone would have thrown it out; run it in "
        "bfloat16, where nothing overflows",
    ),
    Story(
        "camouflage F32",
        "one expert gets 94 % of the samples",
        "the router has collapsed: its balance term has no gradient",
        "plateau_or_collapse",
        "SF813",
        one_expert,
    ),
    Story(
        "camouflage F33",
        "the IoU is 0.0000 while the loss falls",
        "everything is background at the threshold",
        "wrong_decoding_or_targets",
        "SF808",
        all_background,
        "whether no pixel passes the threshold or all do: log the share of foreground",
    ),
    Story(
        "camouflage F33b",
        "an S-measure below 0 and an E-measure of 0.0001",
        "the metric's own code is wrong: a perfect mask scores the same",
        "wrong_decoding_or_targets",
        "SF812",
        impossible_scores,
    ),
)
