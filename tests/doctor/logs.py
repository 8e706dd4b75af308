"""Logs by hand: columns from lists, one line for every row, the header on line 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from surefoot.journal.series import Column, LoggedRun, Message, Role

ROLES = {
    "loss": Role.LOSS,
    "val_loss": Role.VALIDATION_LOSS,
    "grad_norm": Role.GRADIENT_NORM,
    "loss_scale": Role.LOSS_SCALE,
    "attempted_scale": Role.LOSS_SCALE,
    "lr": Role.LEARNING_RATE,
    "lr_backbone": Role.LEARNING_RATE,
    "skipped": Role.SKIPPED,
    "host_memory": Role.HOST_MEMORY,
    "available_memory": Role.HOST_MEMORY,
    "device_memory": Role.DEVICE_MEMORY,
    "accuracy": Role.METRIC,
    "mAP": Role.METRIC,
    "mean_iou": Role.METRIC,
    "predicted_max": Role.OTHER,
    "target_max": Role.OTHER,
    "ppl": Role.METRIC,
    "activation": Role.OTHER,
    "anchors": Role.OTHER,
}
"""Every other name is a term of the loss."""


def log(
    *messages: Message,
    settings: Mapping[str, str] | None = None,
    first_step: int = 0,
    every: int = 1,
    **columns: Sequence[float] | np.ndarray,
) -> LoggedRun:
    """A run with one row for each value, ``every`` steps apart from ``first_step`` on."""
    longest = max((len(values) for values in columns.values()), default=0)
    return LoggedRun(
        "train.log",
        "by hand",
        tuple(_column(name, values, first_step, every) for name, values in columns.items()),
        messages,
        settings or {},
        lines=longest + 1,
    )


def said(kind: str, line: int, text: str, **values: float) -> Message:
    return Message(kind, line, text, values=values)


def noisy(values: Sequence[float] | np.ndarray, sigma: float, seed: int = 0) -> np.ndarray:
    """Values with normal noise of ``sigma`` times their size."""
    generator = np.random.default_rng(seed)
    values = np.asarray(values, dtype=float)
    return values * (1 + sigma * generator.standard_normal(values.size))


def falling(count: int, start: float = 7.0, end: float = 2.0, sigma: float = 0.02) -> np.ndarray:
    """What a healthy loss does: fast at first, then slower, with noise."""
    return noisy(end + (start - end) * np.exp(-np.arange(count) / (0.2 * count)), sigma)


def _column(name: str, values: Sequence[float] | np.ndarray, first: int, every: int) -> Column:
    count = len(values)
    role = ROLES.get(name, Role.TERM)
    return Column(
        name,
        role,
        np.asarray(values, dtype=float),
        first + every * np.arange(count, dtype=float),
        np.arange(2, count + 2),
        better={"ppl": "lower"}.get(name, "higher") if role is Role.METRIC else "",
    )
