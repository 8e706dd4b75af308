"""Logs that fire, and near misses that spare, the rules that stories of real projects asked for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from logs import falling, log, noisy, said

from surefoot.doctor import RootCause
from surefoot.journal.series import Column, LoggedRun, Role

__all__ = ["STORY_PAIRS", "Pair"]


class Pair(NamedTuple):
    """A log that fires a rule, the cause that it must name, and a log that must not fire it."""

    fires: LoggedRun
    cause: RootCause
    spares: LoggedRun


def _columns(*columns: Column, **settings: str) -> LoggedRun:
    return LoggedRun("train.log", "by hand", columns, (), settings, lines=500)


def _of(name: str, role: Role, values: np.ndarray, group: str = "", each: int = 1) -> Column:
    steps = np.repeat(np.arange(values.size // each, dtype=float), each)
    lines = np.arange(2, values.size + 2)
    return Column(name, role, np.asarray(values, float), steps, lines, group=group)


def _rates(values: np.ndarray, **settings: str) -> LoggedRun:
    rate = _of("lr", Role.LEARNING_RATE, values)
    epoch = _of("epoch", Role.OTHER, 1.0 + np.arange(values.size) * 4 // values.size)
    loss = _of("loss", Role.LOSS, falling(values.size))
    return _columns(loss, rate, epoch, **settings)


def _router(top: float) -> LoggedRun:
    rows = np.tile([top, 1 - top - 0.04, 0.04, 0.0], 20)
    shares = _of("expert usage", Role.OTHER, rows, each=4)
    return _columns(_of("loss", Role.LOSS, falling(20)), shares)


def _times(wait: float) -> LoggedRun:
    return _columns(
        _of("data_time", Role.STEP_TIME, noisy([wait] * 30, 0.1), "data"),
        _of("time", Role.STEP_TIME, noisy([0.33] * 30, 0.02)),
    )


def _scored(name: str, values: np.ndarray) -> LoggedRun:
    return _columns(_of("loss", Role.LOSS, falling(12)), _of(name, Role.METRIC, values))


_CARD = said("weak_half_gpu", 1, "Device: NVIDIA GeForce GTX 1650, 3.63 GB")
_BROKEN = {"loss": [np.nan] * 5, "box": [np.nan] * 5, "cls": [1.3, 0.9, 0.87, 0.93, 0.96]}
_WARNS = "{}.py:388: RuntimeWarning: divide by zero encountered in divide"
_CLS = falling(60, 1.4, 0.5)
_COSINE = 1e-3 * (0.5 + 0.5 * np.cos(np.linspace(0, np.pi, 80)))
_UP = np.linspace(0.1, 1.0, 12)
_APART = np.zeros(30)
_DECLINE = np.array([0.3, 0.42, 0.5, 0.55, 0.5, 0.42, 0.3, 0.22, 0.15, 0.1, 0.06, 0.03])

STORY_PAIRS = {
    "SF209": Pair(
        log(_CARD, settings={"fp16": "True"}, **_BROKEN),
        RootCause.FP16_OVERFLOW,
        log(_CARD, settings={"dtype": "fp32"}, **_BROKEN),
    ),
    "SF308": Pair(
        log(loss=_CLS + 0.1, box=[0.1] * 60, cls=_CLS),
        RootCause.DEAD_LOSS,
        # Two decimals: a weight decay that hardly moves rounds to one number.
        log(loss=(_CLS + 0.02).round(2), box=[0.02] * 60, cls=_CLS.round(2)),
    ),
    "SF309": Pair(
        log(box=noisy([2.45] * 60, 0.01), cls=_CLS, mAP=[0.0] * 5),
        RootCause.WRONG_DECODING_OR_TARGETS,
        # As flat, at a level where boxes do overlap, and the metric lives.
        log(box=noisy([0.45] * 60, 0.01), cls=_CLS, mAP=[0.1, 0.2, 0.25, 0.3, 0.3]),
    ),
    "SF310": Pair(
        _columns(
            _of("triplet_loss", Role.TERM, noisy([13.4] * 20, 0.02)),
            _of("anchor feature norm", Role.OTHER, noisy([15.95] * 20, 0.02)),
            _of("positive feature norm", Role.OTHER, noisy([2.7] * 20, 0.02)),
        ),
        RootCause.WRONG_DECODING_OR_TARGETS,
        _columns(
            _of("triplet_loss", Role.TERM, noisy([0.3] * 20, 0.02)),
            _of("anchor feature norm", Role.OTHER, noisy([7.6] * 20, 0.02)),
            _of("positive feature norm", Role.OTHER, noisy([8.9] * 20, 0.02)),
        ),
    ),
    "SF311": Pair(
        log(dfl=noisy([11.1] * 80, 0.005), cls=falling(80, 1.4, 0.5)),
        RootCause.WRONG_DECODING_OR_TARGETS,
        log(dfl=falling(80, 4.2, 1.1), cls=falling(80, 1.4, 0.5)),
    ),
    "SF507": Pair(
        _rates(_COSINE[:20].repeat(4), schedule="cosine", epochs="4"),
        RootCause.SCHEDULE_ERROR,
        _rates(_COSINE, schedule="cosine", epochs="4"),
    ),
    "SF508": Pair(
        _rates(np.full(40, 2e-6), lr="2e-5"),
        RootCause.HEALTHY,
        _rates(_COSINE / 10, lr="1e-3"),
    ),
    "SF509": Pair(
        _rates(np.concatenate([1.5e-3 * _UP, _COSINE]), schedule="onecycle", lr="1e-3"),
        RootCause.SCHEDULE_ERROR,
        # Scaled by eight processes.
        _rates(np.concatenate([8e-3 * _UP, 8 * _COSINE]), schedule="onecycle", lr="1e-3"),
    ),
    "SF510": Pair(
        _columns(
            Column(
                "Backbone LR",
                Role.LEARNING_RATE,
                np.linspace(5.5e-5, 6.9e-5, 16),
                np.arange(57.0, 73.0),
                np.arange(2, 18),
                per="epoch",
            ),
            schedule="cosine",
            min_lr="1e-4",
            epochs="140",
        ),
        RootCause.SCHEDULE_ERROR,
        # The first epochs: a warm-up.
        _columns(
            Column(
                "lr",
                Role.LEARNING_RATE,
                np.linspace(5.5e-5, 6.9e-5, 16),
                np.arange(1.0, 17.0),
                np.arange(2, 18),
                per="epoch",
            ),
            schedule="cosine",
            min_lr="1e-4",
            epochs="140",
        ),
    ),
    "SF606": Pair(_times(0.22), RootCause.HEALTHY, _times(0.1)),
    "SF706": Pair(
        log(*(said("nan_warning", line, _WARNS.format("bbox_utils")) for line in (3, 30, 60))),
        RootCause.BAD_DATA_OR_LABELS,
        log(*(said("nan_warning", line, _WARNS.format("scores")) for line in (3, 30, 60))),
    ),
    "SF707": Pair(
        _columns(_of("loss apart", Role.OTHER, _APART, "other rank")),
        RootCause.BAD_DATA_OR_LABELS,
        _columns(_of("loss apart", Role.OTHER, _APART + 0.01, "other rank")),
    ),
    "SF811": Pair(
        _scored("IoU", _DECLINE),
        RootCause.WRONG_DECODING_OR_TARGETS,
        # It loses some points, as a model that learns by heart does.
        _scored("IoU", 0.4 + 0.3 * _DECLINE),
    ),
    "SF812": Pair(
        _scored("S-measure", np.linspace(-0.02, -0.1, 12)),
        RootCause.WRONG_DECODING_OR_TARGETS,
        _scored("GIoU", np.linspace(-0.5, 0.3, 12)),
    ),
    "SF813": Pair(_router(0.94), RootCause.PLATEAU_OR_COLLAPSE, _router(0.45)),
    "SF910": Pair(
        log(said("exception", 42, "KeyError: 'pred_bboxes'"), loss=falling(40)),
        RootCause.UNKNOWN,
        # It was caught: the run goes on.
        log(said("exception", 12, "KeyError: 'pred_bboxes'"), loss=falling(40)),
    ),
}
