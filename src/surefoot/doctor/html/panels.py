"""Which plots a run gets, and what is in each: plain arrays, nothing drawn yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.columns import finite
from surefoot.doctor.robust import level, slope
from surefoot.journal.series import Column, Role

__all__ = ["LINES", "MOST_LINES", "Line", "Panel", "panels_of"]

LINES = "line of the log"
"""What the x-axis counts where a log has no steps."""
MOST_LINES = 8
"""Of a plot; the further ones are said to be left out."""
_GIB = 2.0**30
_LOG_FROM = 30.0
"""Ratio of the greatest to the least value from which an axis is logarithmic."""
_BEYOND = 1e100


@dataclass(frozen=True, eq=False)
class Line:
    """One series of a plot: N points."""

    label: str
    x: np.ndarray
    y: np.ndarray
    lines: np.ndarray
    """Line of the log of each point."""
    noisy: bool = True
    """Whether single values scatter, so that their running median is drawn over them."""
    dashed: bool = False
    color: str = ""
    """Name in the palette; empty: by the place among the lines."""

    @classmethod
    def of(cls, column: Column, *, label: str = "", factor: float = 1.0, color: str = "") -> Line:
        """A column as it is, in another unit."""
        y = _tame(column.values * factor)
        return cls(label or column.name, column.steps, y, column.lines, color=color)


@dataclass(frozen=True, eq=False)
class Panel:
    """One plot."""

    slug: str
    title: str
    lines: tuple[Line, ...]
    per: str
    """What the x-axis counts."""
    kind: str = "lines"
    """``lines``, ``steps`` for values that hold until the next one, ``shares`` for a whole that is
    split."""
    unit: str = ""
    log: bool = False
    levels: tuple[tuple[float, str], ...] = ()
    """Horizontal lines with what they say."""
    crosses: tuple[tuple[float, int], ...] = ()
    """Step and line of each step that was refused."""
    note: str = ""
    """What else is to be said below it."""


def panels_of(case: Case) -> tuple[list[Panel], list[Panel]]:
    """The plots that a run has the columns for, in the order of the report.

    Returns:
        Those with something to draw, and those of which no column has two numbers.
    """
    makers = (_loss, _terms, _shares, _gradient, _scale, _rates, _memory, _metrics)
    panels = [_by_line(panel) for make in makers for panel in make(case)]
    drawn = [p for p in panels if any(np.isfinite(line.y).sum() > 1 for line in p.lines)]
    return drawn, [p for p in panels if p not in drawn and p.kind == "lines"]


def _by_line(panel: Panel) -> Panel:
    """The panel over the lines of the log where all its values have one step."""
    x = np.concatenate([line.x for line in panel.lines])
    lines = np.concatenate([line.lines for line in panel.lines])
    if not lines.size or np.ptp(lines) == 0 or (x.size and np.nanmin(x) < np.nanmax(x)):
        return panel
    return replace(
        panel,
        per=LINES,
        lines=tuple(replace(line, x=line.lines.astype(float)) for line in panel.lines),
        crosses=tuple((float(line), line) for _, line in panel.crosses),
    )


def _loss(case: Case) -> Iterator[Panel]:
    columns = [c for c in (case.loss, case.validation) if c is not None]
    if columns:
        colors = {id(case.loss): "ink", id(case.validation): "series-2"}
        panel = _panel("loss", "Loss", columns)
        shown = [c for c in columns if c.per == panel.per]
        lines = tuple(Line.of(c, color=colors[id(c)]) for c in shown)
        yield replace(panel, lines=lines)


def _terms(case: Case) -> Iterator[Panel]:
    raw = _raw(case)
    if len(raw) > 1 or (raw and case.loss is not None and raw[0].name != case.loss.name):
        panel = _panel("terms", "Terms of the loss, raw", raw)
        yield replace(panel, lines=tuple(_colored(panel.lines, case)))


def _raw(case: Case) -> list[Column]:
    """The terms as they are before their weights, the largest first."""
    return sorted((c for c in case.terms if c.group != "weighted"), key=lambda c: -_size(c))


def _colored(lines: Sequence[Line], case: Case) -> Iterator[Line]:
    """The same lines, each term in the same colour on every plot."""
    order = list(dict.fromkeys(c.name for c in _raw(case)))
    for line in lines:
        place = order.index(line.label) if line.label in order else len(order)
        yield replace(line, color=f"series-{place % MOST_LINES + 1}")


def _shares(case: Case) -> Iterator[Panel]:
    weighted = [c for c in case.terms if c.group == "weighted"]
    terms = weighted if len(weighted) > 1 else _raw(case)
    terms = sorted(terms, key=lambda c: -_size(c))[:MOST_LINES]
    if len(terms) < 2 or case.adversarial:
        return
    first = terms[0]
    beside = [c for c in terms if np.array_equal(c.lines, first.lines)]
    if len(beside) < 2:
        return
    # Where one term is no number the shares of none are known.
    sizes = np.abs([np.where(np.isfinite(c.values), c.values, np.nan) for c in beside])
    total = np.maximum(np.sum(np.minimum(sizes, _BEYOND), axis=0), 1e-300)
    how = "weighted" if weighted else "as logged"
    parts = [
        Line(c.name, c.steps, 100.0 * size / total, c.lines)
        for c, size in zip(beside, sizes, strict=True)
    ]
    lines = tuple(_colored(parts, case))
    title = f"Share of each term in the loss, {how}"
    yield Panel("shares", title, lines, first.per, kind="shares", unit="%")


def _gradient(case: Case) -> Iterator[Panel]:
    if case.gradient is None:
        return
    panel = _panel("gradient", "Gradient norm, true where the log tells that", [case.gradient])
    told = [m for m in case.of_kind("refused", "overflow") if np.isfinite(m.step)]
    clips = [finite(c).values for c in case.run.of(Role.CLIP_THRESHOLD)]
    clip = next((level(values) for values in clips if values.size), None)
    clip = clip or case.setting("gradientclipnorm", "clipgradnorm", "maxgradnorm", "clip")
    note = f"Crosses below: {len(told)} steps that were refused or skipped." if told else ""
    yield replace(
        panel,
        levels=((clip, f"clip at {clip:.3g}"),) if clip else (),
        crosses=tuple((m.step, m.line) for m in told),
        note=note,
    )


def _scale(case: Case) -> Iterator[Panel]:
    history = case.scales
    if history.scales.size < 2 or (np.ptp(history.scales) == 0 and history.scales[0] == 1.0):
        return
    scales = _tame(history.scales)
    line = Line("loss scale", history.steps, scales, history.lines, noisy=False)
    overflows = zip(history.overflow_steps, history.overflow_lines, strict=True)
    crosses = tuple((float(step), int(line)) for step, line in overflows if np.isfinite(step))
    note = f"Crosses below: {len(crosses)} overflows." if crosses else ""
    # A scale that falls to nothing is rounded to 0 by some logs, which no logarithm has.
    log = bool(np.all(scales > 0))
    yield Panel(
        "scale", "Loss scale", (line,), "step", "steps", log=log, crosses=crosses, note=note
    )


def _rates(case: Case) -> Iterator[Panel]:
    if not case.rates:
        return
    together: list[tuple[Column, list[str]]] = []
    for column in case.rates:
        same = next((names for c, names in together if _same(c, column)), None)
        if same is None:
            together.append((column, [column.name]))
        else:
            same.append(column.name)
    lines = [replace(Line.of(c, label=", ".join(names)), noisy=False) for c, names in together]
    panel = _panel("rates", "Learning rate", [c for c, _ in together])
    yield replace(panel, lines=tuple(lines[:MOST_LINES]), log=False)


def _same(one: Column, other: Column) -> bool:
    equal = np.array_equal(one.values, other.values, equal_nan=True)
    return equal and np.array_equal(one.lines, other.lines)


def _memory(case: Case) -> Iterator[Panel]:
    for role, where in ((Role.HOST_MEMORY, "Host"), (Role.DEVICE_MEMORY, "Device")):
        columns = [c for c in case.run.of(role) if np.isfinite(c.values).any()]
        if not columns:
            continue
        lines = [Line.of(c, factor=1.0 / _GIB) for c in columns[:MOST_LINES]]
        note = ""
        if (known := finite(columns[0])).values.size >= 3:
            rise = slope(known.steps, known.values / _GIB)
            lines.append(_slope_line(known, rise))
            note = f"Slope of {known.name}: {rise * 1024:+.3g} MiB for every {known.per}."
        slug = f"memory-{where.lower()}"
        title = f"{where} memory"
        yield Panel(slug, title, tuple(lines), columns[0].per, unit="GiB", note=note)


def _slope_line(known: Column, rise: float) -> Line:
    ends = np.array([0, known.values.size - 1])
    x = known.steps[ends]
    middle = level(known.values / _GIB - rise * known.steps)
    label = f"slope {rise * 1024:+.2g} MiB a {known.per}"
    return Line(label, x, middle + rise * x, known.lines[ends], noisy=False, dashed=True)


def _metrics(case: Case) -> Iterator[Panel]:
    columns = [c for c in case.columns if c.role is Role.METRIC and finite(c).values.size]
    groups: dict[tuple[str, str], list[Column]] = {}
    for column in columns:
        top = float(np.max(np.abs(finite(column).values)))
        scale = "to 1" if top <= 1.0 else "to 100" if top <= 100.0 else column.name
        groups.setdefault((column.better, scale), []).append(column)
    for number, ((better, _), group) in enumerate(list(groups.items())[:4]):
        way = f", {better} is better" if better else ""
        panel = _panel(f"metrics-{number}", f"Metrics{way}", group)
        yield replace(panel, log=panel.log and better == "lower")


def _panel(slug: str, title: str, columns: Sequence[Column]) -> Panel:
    shown = sorted(columns, key=lambda c: -c.values.size)[:MOST_LINES]
    per = shown[0].per
    shown = [column for column in shown if column.per == per]
    lines = tuple(Line.of(column) for column in shown)
    left = len(columns) - len(shown)
    note = f"{left} further columns are not drawn." if left else ""
    return Panel(slug, title, lines, per, log=_wide(lines), note=note)


def _tame(values: np.ndarray) -> np.ndarray:
    """Values that an axis can hold: none beyond 1e100, and 0 for what is nearer to it than 1e-100.

    What is no number stays none.
    """
    known = np.where(np.isfinite(values), np.clip(values, -_BEYOND, _BEYOND), values)
    return np.where(np.abs(known) < 1.0 / _BEYOND, 0.0, known)


def _wide(lines: Sequence[Line]) -> bool:
    """Whether the values are all positive and too far apart for an even axis."""
    known = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
    return bool(known.size and known.min() > 0 and known.max() > _LOG_FROM * known.min())


def _size(column: Column) -> float:
    known = finite(column).values
    return float(np.median(np.abs(known))) if known.size else 0.0
