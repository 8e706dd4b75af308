"""Curves of a run, drawn from its journal: loss terms, gradient norm, learning rates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from surefoot.errors import ConfigError
from surefoot.journal import JournalReader
from surefoot.records import StepRecord, Verdict

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_curves"]

_COLORS = ("#0f8b8d", "#e07a1f", "#5b5bd6", "#c2375c", "#6b8f2e", "#8a6d3b", "#4a5568")
_INK, _FAINT, _ALARM = "#20262e", "#8d97a3", "#d02f3a"
_SMOOTH = 50

_STYLE: Any = {
    "axes.edgecolor": "#c9d0d8",
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.size": 10,
    "grid.color": "#e9edf1",
    "legend.frameon": False,
    "text.color": _INK,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
}


def draw_curves(journal: Path, path: Path) -> None:
    """Write a PNG with the loss terms, the true gradient norm and the learning rates by step.

    Args:
        journal: the run's journal; its header names the optimizer's groups and the clip threshold.
        path: PNG file to write.

    Raises:
        ConfigError: matplotlib is not installed.
        JournalError: the journal cannot be read.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as missing:
        raise ConfigError(
            "drawing curves needs matplotlib: pip install 'surefoot[report]'"
        ) from missing
    reader = JournalReader(journal)
    steps = _last_of_each(reader.steps())
    clip = float(reader.run["settings"]["optimizer"]["gradient_clip_norm"])
    with plt.rc_context(_STYLE):
        figure, (losses, norms, rates) = plt.subplots(
            3, 1, figsize=(9, 8.5), sharex=True, height_ratios=(5, 4, 2.4), layout="constrained"
        )
        _draw_terms(losses, steps)
        _draw_norms(norms, steps, clip)
        _draw_rates(rates, steps, reader.run["groups"])
        rates.set_xlabel("optimizer step")
        figure.savefig(path, dpi=110)
        plt.close(figure)


def _log_scale(axes: Axes) -> None:
    """Logarithmic, with labels that are plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")


def _last_of_each(records: Any) -> list[StepRecord]:
    """One record per step: a run that went on after a kill has written some of them twice."""
    by_step = {r.step: r for r in records if r.verdict is not Verdict.ACCUMULATED}
    return [by_step[step] for step in sorted(by_step)]


def _smooth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Moving average over a window that shrinks towards both ends; NaN counts for nothing."""
    half = max(1, min(_SMOOTH, len(values) // 8) // 2)
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    total = counts[high] - counts[low]
    return np.where(total > 0, (sums[high] - sums[low]) / np.maximum(total, 1), np.nan)


def _draw_terms(axes: Axes, steps: Sequence[StepRecord]) -> None:
    axes.set_title("Loss terms, weighted (thin: each step, thick: moving average)")
    at = np.array([r.step for r in steps])
    curves = {"total": np.array([r.loss for r in steps])}
    for name in dict.fromkeys(term.name for r in steps for term in r.terms):
        curves[name] = np.array(
            [next((t.weighted for t in r.terms if t.name == name), np.nan) for r in steps]
        )
    for (name, values), color in zip(curves.items(), (_INK, *_COLORS), strict=False):
        axes.plot(at, values, color=color, alpha=0.18, linewidth=0.7)
        axes.plot(at, _smooth(values), color=color, linewidth=1.9, label=name)
    _log_scale(axes)
    axes.legend(ncols=len(curves), loc="upper right", columnspacing=1.2)


def _draw_norms(axes: Axes, steps: Sequence[StepRecord], clip: float) -> None:
    axes.set_title("Gradient norm: true (unscaled), before clipping, L2 of all tensors")
    at, norms = np.array([r.step for r in steps]), np.array([r.grad_norm for r in steps])
    axes.plot(at, norms, color=_COLORS[0], alpha=0.3, linewidth=0.7)
    axes.plot(at, _smooth(norms), color=_COLORS[0], linewidth=1.9, label="gradient norm")
    if clip:
        clipped = np.count_nonzero(norms > clip)
        label = f"clip at {clip:g} ({clipped} of {len(steps)} steps above)"
        axes.axhline(clip, color=_COLORS[1], linewidth=1.4, linestyle=(0, (5, 3)), label=label)
    refused = at[[r.refused for r in steps]]
    if len(refused):
        label = f"refused ({len(refused)})"
        low = np.nanmin(norms) if np.isfinite(norms).any() else 1.0
        axes.plot(refused, np.full(len(refused), low), "x", color=_ALARM, label=label)
    _log_scale(axes)
    axes.legend(loc="upper right")


def _draw_rates(axes: Axes, steps: Sequence[StepRecord], groups: Sequence[str]) -> None:
    axes.set_title("Learning rate of each group")
    at = np.array([r.step for r in steps])
    rates = np.array([r.learning_rates for r in steps]).reshape(len(steps), -1)
    together: dict[tuple[float, ...], list[str]] = {}
    for number in range(rates.shape[1]):
        name = groups[number] if number < len(groups) else f"group {number}"
        together.setdefault(tuple(rates[:, number]), []).append(name)
    for (values, names), color in zip(together.items(), _COLORS, strict=False):
        axes.plot(at, values, color=color, linewidth=1.9, label=", ".join(names))
    axes.legend(loc="upper right")
