"""Draws the plots, with matplotlib, in the colours and sizes of the report."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from surefoot.doctor.html.marks import Mark
from surefoot.doctor.html.palette import SERIES, light
from surefoot.doctor.html.panels import Line, Panel
from surefoot.doctor.html.svg import inline
from surefoot.doctor.html.thin import stretches, thin
from surefoot.doctor.robust import running_median

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw", "number"]

_SIZE = (9.2, 2.5)
_PLACE = (0.062, 0.15, 0.728, 0.70)
"""Of the axes in the picture; to the right of them stand the names."""
_GAP = 0.088
"""Least distance of two names, as a share of the height."""
_MANY = 60
"""Values from which single ones are drawn faint, below their running median."""
_SPANS = 40
_ROWS, _LETTER = 2, 0.0098
"""Of the labels above a plot: rows, and the width of a letter as a share of the plot's."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "surefoot",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7.4,
    "text.color": light("ink"),
    "text.parse_math": False,
    "axes.edgecolor": light("edge"),
    "axes.linewidth": 0.7,
    "axes.labelcolor": light("muted"),
    "axes.formatter.use_mathtext": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "grid.color": light("grid"),
    "grid.linewidth": 0.7,
    "xtick.color": light("muted"),
    "ytick.color": light("muted"),
    "xtick.major.size": 3.0,
    "ytick.major.size": 0.0,
    "lines.solid_capstyle": "round",
    "lines.solid_joinstyle": "round",
}


def number(value: float, _: float = 0.0) -> str:
    """A number on an axis.

    >>> [number(v) for v in (0.0, 0.25, 1500.0, 120_000.0, 2.5e7, 3e-5)]
    ['0', '0.25', '1,500', '120,000', '2.5e7', '3e-5']
    """
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        mantissa, _sign, power = f"{value:.3g}".partition("e")
        if not power:
            mantissa, _sign, power = f"{value:.2e}".partition("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(power)}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.6g}"


def draw(panel: Panel, marks: Sequence[Mark], prefix: str) -> str:
    """A plot as an ``<svg>`` element.

    Args:
        panel: what is to be seen.
        marks: where findings stand.
        prefix: of the element's ids; unique in the page.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    names = {f"name-{i}-": line.label for i, line in enumerate(panel.lines)}
    with mpl.rc_context(_STYLE), np.errstate(all="ignore"):
        figure = Figure(figsize=_SIZE)
        axes = figure.add_axes(_PLACE)
        for patch in (figure.patch, axes.patch):
            patch.set_visible(False)
        _frame(axes, panel)
        ends = _shares(axes, panel) if panel.kind == "shares" else _lines(axes, panel)
        _levels(axes, panel)
        _marks(axes, panel, marks)
        said = dict(zip(names, _colors(panel), strict=True))
        for value, text in panel.levels:
            if axes.get_ylim()[0] < value < axes.get_ylim()[1]:
                said[text] = light("ink")
                ends.append(_share(axes, value, log=panel.log))
        _names(axes, said, ends)
        written = io.StringIO()
        metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(written, format="svg", metadata=metadata)
    return inline(written.getvalue(), prefix=prefix, names=names, title=panel.title)


def _frame(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import MaxNLocator

    x = _known(np.concatenate([line.x for line in panel.lines]))
    y = _known(np.concatenate([line.y for line in panel.lines]))
    low, high = (float(x.min()), float(x.max())) if x.size else (0.0, 1.0)
    axes.set_xlim(low - 0.01 * (high - low or 1), high + 0.01 * (high - low or 1))
    whole = bool(x.size and np.all(x == np.round(x)))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=9, integer=whole, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(number)
    axes.annotate(
        panel.per, (1.035, 0.0), xycoords="axes fraction", xytext=(0, -4.6),
        textcoords="offset points", va="top", color=light("muted"),
    )  # fmt: skip
    if panel.kind == "shares":
        axes.set_ylim(0.0, 100.0)
    elif panel.log:
        y = y[y > 0]
        low, high = (float(y.min()), float(y.max())) if y.size else (1.0, 10.0)
        room = (high / low) ** 0.06 if high > low else 1.5
        axes.set_yscale("log")
        axes.set_ylim(max(low / room, 1e-300), high * room)
        _log_ticks(axes, high / low)
    else:
        low, high = (float(y.min()), float(y.max())) if y.size else (0.0, 1.0)
        low, high = min([low, *_near(panel)]), max([high, *_near(panel)])
        room = max(0.06 * (high - low), 0.01 * max(abs(low), abs(high))) or 1.0
        axes.set_ylim(low - room, high + room)
    if not panel.log or panel.kind == "shares":
        axes.yaxis.set_major_formatter(number)


def _near(panel: Panel) -> list[float]:
    """Levels that are worth making room for."""
    y = _known(np.concatenate([line.y for line in panel.lines]))
    top = float(np.max(np.abs(y), initial=0.0))
    return [level for level, _ in panel.levels if abs(level) <= 3 * top]


def _log_ticks(axes: Axes, ratio: float) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    fine = (1.0, 2.0, 5.0) if ratio < 300 else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=fine, numticks=7))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(number)


def _known(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _lines(axes: Axes, panel: Panel) -> list[float]:
    """Draw the series; gives where each ends, as a share of the height, NaN for nowhere."""
    ends: list[float] = []
    for line, color in zip(panel.lines, _colors(panel), strict=True):
        _line(axes, line, panel, color)
        ends.append(_height(axes, line, panel))
    return ends


def _line(axes: Axes, line: Line, panel: Panel, color: str) -> None:
    kept = thin(line.y)
    x, y = line.x[kept].astype(float), line.y[kept].astype(float)
    back = np.flatnonzero(np.diff(x) < 0)  # a run that was resumed: do not join what is apart
    x, y = np.insert(x, back + 1, np.nan), np.insert(y, back + 1, np.nan)
    style = (0, (5, 3)) if line.dashed else "solid"
    many = line.noisy and line.y.size >= _MANY
    steps = "steps-post" if panel.kind == "steps" else "default"
    thick = 0.7 if many else 1.4
    axes.plot(
        x, y, color=color, linewidth=thick, alpha=0.38 if many else 1.0, linestyle=style,
        drawstyle=steps,
    )  # fmt: skip
    if many:
        _smooth(axes, line, color)
    if not line.dashed:
        _alone(axes, x, y, color)
    _no_numbers(axes, line)


def _smooth(axes: Axes, line: Line, color: str) -> None:
    """The running median, where the numbers are."""
    for first, last in stretches(np.isfinite(line.y))[:_SPANS]:
        x, y = line.x[first : last + 1].astype(float), line.y[first : last + 1]
        if y.size < 8 or np.any(np.diff(x) < 0):
            continue
        width = max(5, min(301, y.size // 12)) | 1
        every = max(1, y.size // 20_000)
        smooth = running_median(y[::every], max(3, width // every) | 1)
        kept = thin(smooth, 150)
        axes.plot(x[::every][kept], smooth[kept], color=color, linewidth=1.5)


def _alone(axes: Axes, x: np.ndarray, y: np.ndarray, color: str) -> None:
    """Dots for values that have no neighbour to be joined to, or are few."""
    known = np.isfinite(y)
    single = known & ~np.append(False, known[:-1]) & ~np.append(known[1:], False)
    dotted = known if known.sum() <= 20 else single
    if dotted.any():
        axes.plot(x[dotted], y[dotted], ".", color=color, markersize=4.0)


def _no_numbers(axes: Axes, line: Line) -> None:
    """Shade where the values are NaN or infinite."""
    for first, last in stretches(~np.isfinite(line.y))[:_SPANS]:
        start, end = float(line.x[first]), float(line.x[last])
        if np.isfinite(start) and np.isfinite(end):
            axes.axvspan(start, end, color=light("critical"), alpha=0.14, linewidth=0.8)


def _height(axes: Axes, line: Line, panel: Panel) -> float:
    known = line.y[np.isfinite(line.y)]
    if not known.size:
        return float("nan")
    end = float(np.median(known[-max(1, min(25, known.size // 20)) :]))
    return _share(axes, end, log=panel.log)


def _share(axes: Axes, value: float, *, log: bool) -> float:
    low, high = axes.get_ylim()
    if log:
        value, low, high = (float(np.log(max(v, 1e-300))) for v in (value, low, high))
    return min(1.0, max(0.0, (value - low) / (high - low or 1.0)))


def _shares(axes: Axes, panel: Panel) -> list[float]:
    """Stack the parts; gives where the middle of each lies at the end."""
    x = panel.lines[0].x.astype(float)
    bins = np.array_split(np.arange(x.size), min(x.size, 240))
    at = np.array([x[part[len(part) // 2]] for part in bins])
    parts = np.array([[_mean(one.y[part]) for part in bins] for one in panel.lines])
    tops = np.cumsum(parts, axis=0)
    known = np.isfinite(tops[-1])
    for color, part, top in zip(_colors(panel), parts, tops, strict=True):
        axes.fill_between(
            at, top - part, top, where=known.tolist(), color=color, alpha=0.86,
            edgecolor=light("paper"), linewidth=0.6,
        )  # fmt: skip
    _no_numbers(axes, panel.lines[0])
    if not known.any():
        return [float("nan")] * len(parts)
    last = int(np.flatnonzero(known)[-1])
    return [
        float(top - part / 2) / 100.0
        for top, part in zip(tops[:, last], parts[:, last], strict=True)
    ]


def _mean(values: np.ndarray) -> float:
    known = _known(values)
    return float(np.mean(known)) if known.size else float("nan")


def _levels(axes: Axes, panel: Panel) -> None:
    low, high = axes.get_ylim()
    for value, text in panel.levels:
        if low < value < high:
            axes.axhline(value, color=light("ink"), linewidth=0.9, linestyle=(0, (4, 3)))
        else:
            way = "above" if value >= high else "below"
            axes.text(
                0.006, 0.95 if way == "above" else 0.04, f"{text}, {way} the plot",
                transform=axes.transAxes, fontsize=6.8, va="center",
            )  # fmt: skip
    if panel.crosses:
        x = np.array([step for step, _ in panel.crosses])
        x = x[thin(x, 100)]
        axes.plot(
            x, np.full(x.size, 0.03), "x", color=light("critical"), markersize=3.6,
            markeredgewidth=0.9, transform=axes.get_xaxis_transform(),
        )  # fmt: skip


def _marks(axes: Axes, panel: Panel, marks: Sequence[Mark]) -> None:
    low, high = axes.get_xlim()
    free = [0.0] * _ROWS  # where each row of labels ends
    for mark in marks:
        color = light(mark.severity)
        axes.axvline(mark.x, color=color, linewidth=1.0, linestyle=(0, (2, 2)))
        place = (mark.x - low) / (high - low)
        wide = _LETTER * len(mark.label)
        left = min(max(0.0, place - wide / 2), max(0.0, 1.0 - wide))
        row = next((i for i in range(_ROWS) if free[i] <= left), None)
        if row is None:
            row = min(range(_ROWS), key=lambda i: free[i])
            left = free[row]
        free[row] = left + wide + _LETTER
        axes.text(
            left, 1.025 + 0.075 * row, mark.label, transform=axes.transAxes, color=color,
            ha="left", va="bottom", fontsize=6.8, fontweight="bold",
        )  # fmt: skip


def _colors(panel: Panel) -> list[str]:
    return [
        light(line.color or SERIES[place % len(SERIES)]) for place, line in enumerate(panel.lines)
    ]


def _names(axes: Axes, names: Mapping[str, str], ends: Sequence[float]) -> None:
    """Write each series' name in its colour where it ends, none over another."""
    said = list(names)
    order = sorted(range(len(ends)), key=lambda i: ends[i] if np.isfinite(ends[i]) else 0.5)
    wanted = np.array([ends[i] if np.isfinite(ends[i]) else 0.5 for i in order])
    for place, index in zip(_apart(wanted), order, strict=True):
        axes.text(
            1.012, place, said[index], transform=axes.transAxes, va="center", fontsize=7.4,
            color=names[said[index]],
        )  # fmt: skip


def _apart(wanted: np.ndarray) -> np.ndarray:
    """Places in ascending order, none nearer to the next than the gap, moved as one needs."""
    room = min(_GAP, 1.0 / max(1, wanted.size - 1)) if wanted.size > 1 else _GAP
    placed = np.maximum.accumulate(wanted - room * np.arange(wanted.size))
    placed = placed + room * np.arange(wanted.size)
    over = max(0.0, float(placed[-1]) - 1.0)
    ceiling = 1.0 - room * np.arange(wanted.size)[::-1]
    return np.minimum(placed, ceiling) if over else placed
