"""For every rule a log that fires it and a near miss that does not."""

from __future__ import annotations

import numpy as np
from cases_of_stories import STORY_PAIRS, Pair
from logs import falling, log, noisy, said

from surefoot.doctor import RootCause

NAN, INF = np.nan, np.inf
GIB = 2.0**30


def _then(values: np.ndarray | list[float], *more: float) -> np.ndarray:
    return np.concatenate([np.asarray(values, float), np.asarray(more, float)])


def _nans(count: int) -> list[float]:
    return [NAN] * count


_CALM = falling(60)
_WARM_UP = np.linspace(1e-5, 7e-4, 14)
_RISEN = _then(falling(8), 2.6, 3.4, 5.1, *_nans(3))

NUMBERS = {
    "SF101": Pair(
        log(loss=_RISEN, lr=_WARM_UP),
        RootCause.LR_TOO_HIGH,
        log(loss=_then(falling(8), 2.1, 2.0, 2.05, 2.0, 1.9, 2.0), lr=_WARM_UP),
    ),
    "SF102": Pair(
        log(loss=_then(_CALM, *_nans(4)), box=_then(_CALM / 2, *_nans(4)), cls=falling(64)),
        RootCause.NUMERICALLY_UNSAFE_OP,
        # Both terms break after they had risen: what they share, the model, is what broke.
        log(loss=_RISEN, box=_RISEN / 2, cls=_RISEN / 3),
    ),
    "SF103": Pair(
        log(loss=_then(falling(30), NAN, *falling(30, 2.2, 1.8), NAN, 1.8, 1.81, 1.8)),
        RootCause.BAD_DATA_OR_LABELS,
        log(loss=_RISEN, lr=_WARM_UP),
    ),
    "SF104": Pair(
        log(loss=_CALM, grad_norm=[INF] * 60, settings={"fp16": "True"}),
        RootCause.FP16_OVERFLOW,
        log(loss=_CALM, grad_norm=[INF] * 60, settings={"dtype": "bf16"}),
    ),
    "SF105": Pair(
        log(
            loss=_then(falling(20), 2.4, 3.0, 9.0, NAN, NAN, NAN),
            grad_norm=_then(noisy(np.ones(20), 0.1), 8, 90, 4000, NAN, NAN, NAN),
        ),
        RootCause.EXPLODING_GRADIENTS,
        log(
            loss=_then(falling(23), NAN, NAN, NAN),
            grad_norm=_then(noisy(np.ones(23), 0.1), NAN, NAN, NAN),
        ),
    ),
    "SF106": Pair(
        log(loss=[1.18, NAN, NAN, NAN, NAN], accuracy=[0.55, 0.1, 0.1, 0.1, 0.1]),
        RootCause.UNKNOWN,
        log(loss=[1.18, 0.9, 0.8, 0.74, 0.7], accuracy=[0.55, 0.63, 0.68, 0.7, 0.72]),
    ),
    "SF107": Pair(
        log(activation=[120, 1900, 14_000, 58_000, INF]),
        RootCause.FP16_OVERFLOW,
        log(activation=[120, 1900, 14_000, 580_000, INF]),
    ),
}

LOSS_SCALE = {
    "SF201": Pair(
        log(loss_scale=[128, 64, 32, 16, 8, 4, 2, 1, 0.5, 0.25, 0.125]),
        RootCause.LOSS_SCALE_COLLAPSE,
        log(loss_scale=[65536, 32768, 16384, 8192, 8192, 8192, 8192, 16384]),
    ),
    "SF202": Pair(
        log(attempted_scale=[1, 1, 1, 1], loss_scale=[1, 1, 1, 1]),
        RootCause.FP16_OVERFLOW,
        log(loss_scale=[1, 1, 1, 1], loss=falling(4)),
    ),
    "SF203": Pair(
        log(loss=falling(60), skipped=np.cumsum(np.arange(60) % 6 == 0)),
        RootCause.FP16_OVERFLOW,
        log(loss=falling(60), skipped=np.minimum(np.arange(60), 6)),
    ),
    "SF204": Pair(
        log(said("scaler_misuse", 9, "RuntimeError: unscale_() has already been called on this")),
        RootCause.SCALER_MISUSE,
        log(said("exception", 9, "RuntimeError: expected scalar type Half but found Float")),
    ),
    "SF205": Pair(
        log(loss=falling(40), grad_norm=noisy([2.5e5] * 40, 0.1), loss_scale=[65536.0] * 40),
        RootCause.SCALER_MISUSE,
        log(loss=falling(40), grad_norm=noisy([3.8] * 40, 0.1), loss_scale=[65536.0] * 40),
    ),
    "SF206": Pair(
        log(loss_scale=[65536, 32768, 16384, 8192, 8192, 8192, 8192, 8192]),
        RootCause.HEALTHY,
        log(loss_scale=[65536.0] * 8),
    ),
    "SF207": Pair(
        log(loss_scale=[512, 512, 256, 128, 64]),
        RootCause.UNKNOWN,
        log(loss_scale=[2.0**32, 2.0**31, 2.0**30, 2.0**29, 2.0**28]),
    ),
}

LOSSES = {
    "SF301": Pair(
        log(loss=[1.05, 1.06], mask=[0.83, 0.85], edge=[0.22, 0.21], triplet=[0, 0]),
        RootCause.DEAD_LOSS,
        log(loss=[1.05, 1.06], mask=[0.83, 0.85], edge=[0.22, 0.21], triplet=[1e-4, 2e-4]),
    ),
    "SF302": Pair(
        log(loss=[0.1] * 12),
        RootCause.DEAD_LOSS,
        log(loss=noisy([0.1] * 12, 0.01)),
    ),
    "SF303": Pair(
        log(box=[0.41], cls=[0.77], dfl=[11.3], mask=[0.52], edge=[1.1]),
        RootCause.LOSS_TERM_DOMINATES,
        log(box=[1.41], cls=[0.77], dfl=[1.3], mask=[0.52], edge=[1.1]),
    ),
    "SF304": Pair(
        log(loss=[3.1, 3.2, 3.1], box_loss=[2.3, 2.4, 2.3], mean_iou=[0.0, 0.0, 0.0]),
        RootCause.DEAD_LOSS,
        log(loss=[3.1, 3.2, 3.1], box_loss=[2.3, 2.4, 2.3], mean_iou=[0.0, 0.01, 0.02]),
    ),
    "SF305": Pair(
        log(predicted_max=[2.2, 1.9], target_max=[488.0, 503.0]),
        RootCause.WRONG_DECODING_OR_TARGETS,
        log(predicted_max=[410.0, 395.0], target_max=[488.0, 503.0]),
    ),
    "SF306": Pair(
        log(loss=[0.5, -1.2, -14, -120, -844], accuracy=[0.8, 0.51, 0.5, 0.5, 0.5]),
        RootCause.BAD_DATA_OR_LABELS,
        log(elbo_loss=[0.5, -1.2, -14, -120, -844]),
    ),
    "SF307": Pair(
        log(d_loss=noisy(np.full(40, 2.1), 0.1), g_loss=noisy(np.full(40, 0.2), 0.1)),
        RootCause.UNKNOWN,
        log(d_loss=noisy(np.full(40, 1.35), 0.1), g_loss=noisy(np.full(40, 0.7), 0.1)),
    ),
}

GRADIENTS = {
    "SF401": Pair(
        log(
            loss=_then(falling(40), *noisy([2.1] * 20, 0.02)),
            grad_norm=noisy(np.concatenate([np.ones(30), np.geomspace(1, 300, 30)]), 0.05),
        ),
        RootCause.EXPLODING_GRADIENTS,
        log(loss=falling(60), grad_norm=noisy(np.geomspace(40, 1, 60), 0.05)),
    ),
    "SF402": Pair(
        log(
            loss=noisy([2.3] * 40, 0.01),
            grad_norm=noisy([20.0] * 40, 0.1),
            settings={"clip": "0.1"},
        ),
        RootCause.CLIP_TOO_TIGHT,
        log(loss=falling(40), grad_norm=noisy([0.3] * 40, 0.1), settings={"clip": "0.1"}),
    ),
    "SF403": Pair(
        log(loss=noisy([2.3] * 40, 0.01), grad_norm=[0.5] * 40),
        RootCause.CLIP_TOO_TIGHT,
        log(loss=noisy([2.3] * 40, 0.01), grad_norm=noisy([0.5] * 40, 0.05)),
    ),
    "SF404": Pair(
        log(
            loss=falling(40),
            grad_norm=_then(noisy([2.0] * 20, 0.2), 742, *noisy([2.0] * 19, 0.2)),
        ),
        RootCause.UNKNOWN,
        log(loss=falling(40), grad_norm=_then(noisy([2.0] * 20, 0.2), 9, *noisy([2.0] * 19, 0.2))),
    ),
    "SF405": Pair(
        log(loss=noisy([2.3] * 20, 0.01), grad_norm=[0.0] * 20),
        RootCause.DEAD_LOSS,
        log(loss=noisy([2.3] * 20, 0.01), grad_norm=noisy([1e-3] * 20, 0.1)),
    ),
}

_COSINE = 1e-3 * (0.5 + 0.5 * np.cos(np.linspace(0, np.pi, 60)))
SCHEDULE = {
    "SF501": Pair(
        log(loss=noisy([1.4] * 10, 0.01), lr=[0.0] * 10),
        RootCause.SCHEDULE_ERROR,
        log(loss=falling(10), lr=[0.0, *np.linspace(1e-4, 1e-3, 8), 0.0]),
    ),
    "SF502": Pair(
        log(
            loss=_then(falling(45), 6, 5, 4, *falling(12, 4, 2)),
            lr=_then(_COSINE[:45], *_COSINE[:15]),
        ),
        RootCause.SCHEDULE_ERROR,
        # Warm restarts: the same jump, planned, and the loss does not mind.
        log(loss=falling(60), lr=np.tile(_COSINE[::3], 3)),
    ),
    "SF503": Pair(
        log(lr=_COSINE, lr_backbone=np.linspace(5e-5, 1e-4, 60)),
        RootCause.SCHEDULE_ERROR,
        log(lr=_COSINE, lr_backbone=_COSINE / 10),
    ),
    "SF504": Pair(
        log(
            loss=_then(falling(15), *noisy([2.0] * 45, 0.01)),
            lr=_then(np.linspace(1e-3, 1e-6, 15), *[1e-6] * 45),
        ),
        RootCause.SCHEDULE_ERROR,
        log(loss=falling(60), lr=_COSINE + 1e-6),
    ),
    "SF505": Pair(
        log(said("schedule_order", 7, "ValueError: Tried to step 3751 times. The total is 3750")),
        RootCause.SCHEDULE_ERROR,
        log(said("schedule_order", 7, "lr_scheduler.step() before optimizer.step()")),
    ),
}

MEMORY = {
    "SF601": Pair(
        log(host_memory=np.linspace(11, 41, 20) * GIB),
        RootCause.MEMORY_LEAK,
        log(host_memory=np.minimum(np.linspace(11, 71, 20), 30) * GIB),
    ),
    "SF602": Pair(
        log(
            said("out_of_memory", 50, "torch.OutOfMemoryError: CUDA out of memory"),
            loss=falling(48),
        ),
        RootCause.MEMORY_LEAK,
        log(loss=falling(48)),
    ),
    "SF603": Pair(
        log(said("worker_killed", 9, "DataLoader worker (pid 17) is killed by signal: Killed.")),
        RootCause.MEMORY_LEAK,
        log(said("exception", 9, "RuntimeError: DataLoader timed out after 60 seconds")),
    ),
}

DATA = {
    "SF701": Pair(
        log(said("nan_warning", 3, "WARNING: NaN values in target of sample 17, skipped")),
        RootCause.BAD_DATA_OR_LABELS,
        log(said("nan_warning", 3, "WARNING: NaN values in the loss")),
    ),
    "SF702": Pair(
        log(said("device_assert", 3, "Assertion `t >= 0 && t < n_classes` failed.")),
        RootCause.BAD_DATA_OR_LABELS,
        log(said("device_assert", 3, "CUDA error: an illegal memory access was encountered")),
    ),
    "SF703": Pair(
        log(loss=np.where(np.arange(200) % 40 == 30, 9.0, falling(200))),
        RootCause.BAD_DATA_OR_LABELS,
        log(loss=np.where(np.isin(np.arange(200), [30, 41, 99, 117, 180]), 9.0, falling(200))),
    ),
}

_SPIKE = _then(falling(40), 5, 7, 6, 4, *falling(30, 2.4, 1.9))
PROGRESS = {
    "SF801": Pair(
        log(
            loss=_then(falling(30), *noisy(np.linspace(2.2, 8, 30), 0.02)),
            lr=np.linspace(0, 1e-3, 60),
        ),
        RootCause.LR_TOO_HIGH,
        log(
            loss=_then(falling(30), *noisy(np.linspace(2.1, 2.2, 30), 0.02)),
            lr=np.linspace(0, 1e-3, 60),
        ),
    ),
    "SF802": Pair(
        log(
            loss=_then(falling(30), *noisy(np.linspace(2.2, 8, 30), 0.02)),
            grad_norm=_then(noisy([1.0] * 30, 0.1), *np.geomspace(2, 9000, 30)),
        ),
        RootCause.EXPLODING_GRADIENTS,
        log(
            loss=_then(falling(30), *noisy(np.linspace(2.2, 8, 30), 0.02)),
            grad_norm=noisy([1.0] * 60, 0.1),
        ),
    ),
    "SF803": Pair(
        log(loss=_then(falling(40), 5.0, 6.1)),
        RootCause.UNKNOWN,
        log(loss=_then(falling(40), 2.1, 2.05)),
    ),
    "SF804": Pair(
        log(loss=_SPIKE),
        RootCause.SPIKE_RECOVERED,
        # A batch of one sample: as wild, but that is its noise.
        log(loss=np.abs(noisy([3.0] * 80, 0.5))),
    ),
    "SF805": Pair(
        log(loss=noisy([2.303] * 40, 0.002), accuracy=noisy([0.1] * 40, 0.05)),
        RootCause.PLATEAU_OR_COLLAPSE,
        # At ln 2 for a while, then it breaks: a plateau that ends by itself.
        log(loss=_then(noisy([0.693] * 20, 0.01), *falling(20, 0.69, 0.01))),
    ),
    "SF806": Pair(
        log(loss=_then([2.3], *noisy([6.907] * 30, 0.002)), accuracy=[0.001] * 31, lr=[1.0] * 31),
        RootCause.LR_TOO_HIGH,
        log(loss=noisy([6.907] * 31, 0.002), accuracy=[0.001] * 31, lr=[1e-5] * 31),
    ),
    "SF807": Pair(
        log(
            loss=np.linspace(0.7, 0.05, 12),
            val_loss=[0.65, 0.5, 0.47, 0.46, *np.linspace(0.5, 0.8, 8)],
        ),
        RootCause.OVERFITTING,
        log(loss=np.linspace(7.3, 4.2, 12), val_loss=np.linspace(6.5, 5.0, 12)),
    ),
    "SF808": Pair(
        log(loss=falling(20), mAP=[0.0] * 8),
        RootCause.WRONG_DECODING_OR_TARGETS,
        log(loss=falling(20), mAP=[0, 0, 0, 0.01, 0.05, 0.1, 0.2, 0.3]),
    ),
    "SF809": Pair(
        log(
            loss=falling(12), mAP=[0.2, 0.4, 0.55, 0.6, 0.62, 0.63, 0.6, 0.02, 0.01, 0.0, 0.0, 0.01]
        ),
        RootCause.PLATEAU_OR_COLLAPSE,
        log(
            loss=falling(12), mAP=[0.2, 0.4, 0.55, 0.6, 0.62, 0.63, 0.6, 0.5, 0.52, 0.5, 0.51, 0.5]
        ),
    ),
}

_CAUGHT = [said("swallowed", line, f"Error at batch {line}: TypeError") for line in range(2, 12)]
BOOKKEEPING = {
    "SF901": Pair(
        log(*_CAUGHT),
        RootCause.SWALLOWED_EXCEPTIONS,
        log(said("exception", 62, "KeyboardInterrupt"), loss=falling(60)),
    ),
    "SF902": Pair(
        log(said("exception", 3, "TypeError: unexpected keyword"), anchors=[388.0] * 22),
        RootCause.SWALLOWED_EXCEPTIONS,
        log(anchors=[388.0] * 22),
    ),
    "SF903": Pair(
        log(loss=[0.0, 0.0, 0.0], mask=[2.1, 2.0, 2.2], edge=[0.7, 0.8, 0.7]),
        RootCause.UNKNOWN,
        log(loss=[2.8, 2.8, 2.9], mask=[2.1, 2.0, 2.2], edge=[0.7, 0.8, 0.7]),
    ),
    "SF904": Pair(log(loss=[2.3]), RootCause.UNKNOWN, log(loss=falling(5))),
    "SF905": Pair(
        log(said("exception", 42, "KeyError: 'boxes'"), loss=falling(40)),
        RootCause.UNKNOWN,
        log(said("exception", 12, "KeyError: 'boxes'"), loss=falling(40)),
    ),
}

_WITH_LOSS = {"loss": falling(60)}
OWN_JOURNAL = {
    "SF108": Pair(
        log(said("fault_input", 30, "step 28: the model's own input was not finite"), **_WITH_LOSS),
        RootCause.BAD_DATA_OR_LABELS,
        # Refused, and nobody looked where the value came up.
        log(said("refused", 30, "step 28 was refused: the loss was NaN or Inf"), **_WITH_LOSS),
    ),
    "SF208": Pair(
        log(said("precision_fallback", 2, "fp32 instead of fp16: it overflowed"), **_WITH_LOSS),
        RootCause.FP16_OVERFLOW,
        log(**_WITH_LOSS, settings={"precision": "fp16"}),
    ),
    "SF506": Pair(
        log(said("rate_jumped", 40, "step 38: a learning rate is more than ten times"), lr=_COSINE),
        RootCause.SCHEDULE_ERROR,
        log(lr=_COSINE, **_WITH_LOSS),
    ),
    "SF604": Pair(
        log(said("memory_growth", 30, "host memory grows", per_step=1e6, steps_left=900.0)),
        RootCause.MEMORY_LEAK,
        log(said("stalled", 30, "no step for 900 s", seconds=900.0)),
    ),
    "SF605": Pair(
        log(said("halved", 30, "step 28: the batch did not fit", pieces=2.0), **_WITH_LOSS),
        RootCause.UNKNOWN,
        log(said("interrupted", 30, "stopped by SIGTERM at step 28"), **_WITH_LOSS),
    ),
    "SF704": Pair(
        log(*(said("sample_set_aside", i, f"sample {i} is not loaded again") for i in (3, 5, 9))),
        RootCause.BAD_DATA_OR_LABELS,
        log(said("worker_replaced", 3, "a data worker died and was replaced")),
    ),
    "SF705": Pair(
        log(said("refused_again", 30, "sample a: 2 steps with it were refused"), **_WITH_LOSS),
        RootCause.BAD_DATA_OR_LABELS,
        log(said("refused", 30, "step 28 was refused: the loss was NaN on a"), **_WITH_LOSS),
    ),
    "SF810": Pair(
        log(
            *(said("rolled_back", line, "step 9: the state was bad") for line in (11, 21, 31)),
            said("diverged", 11, "step 9: the loss has left its valley"),
            **_WITH_LOSS,
        ),
        RootCause.LR_TOO_HIGH,
        log(said("loss_spike", 11, "step 9: the loss was far above"), **_WITH_LOSS),
    ),
    "SF906": Pair(
        log(said("save_failed", 30, "No space left on device", failures=1.0), **_WITH_LOSS),
        RootCause.UNKNOWN,
        log(said("saved", 30, "saved in checkpoints/1"), **_WITH_LOSS),
    ),
    "SF907": Pair(
        log(said("lines_lost", 30, "12 lines of the journal were lost", lines=12.0), **_WITH_LOSS),
        RootCause.UNKNOWN,
        log(said("resumed", 30, "resumed: the run went on here"), **_WITH_LOSS),
    ),
    "SF908": Pair(
        log(said("stalled", 30, "no step for 900 s; it waits in a lock", seconds=900.0)),
        RootCause.UNKNOWN,
        log(said("resumed", 30, "resumed: the run went on here"), **_WITH_LOSS),
    ),
    "SF909": Pair(
        log(said("gradients_touched", 5, "step 3: something else changed the gradients")),
        RootCause.SCALER_MISUSE,
        log(said("gradient_spike", 5, "step 3: the gradient norm was far above")),
    ),
}

PAIRS: dict[str, Pair] = {
    **NUMBERS,
    **LOSS_SCALE,
    **LOSSES,
    **GRADIENTS,
    **SCHEDULE,
    **MEMORY,
    **DATA,
    **PROGRESS,
    **BOOKKEEPING,
    **OWN_JOURNAL,
    **STORY_PAIRS,
}
