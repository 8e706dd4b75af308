"""Where on each plot the findings stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from surefoot.doctor.finding import Finding
from surefoot.doctor.html.panels import LINES, Panel

__all__ = ["Mark", "marks_on"]

_NEAR = 0.035
"""Share of a plot's width within which marks are put together."""


@dataclass(frozen=True)
class Mark:
    """Findings at one place of a plot."""

    x: float
    codes: tuple[str, ...]
    severity: str
    """Of the worst of them."""

    @property
    def label(self) -> str:
        """The codes, three at most."""
        more = len(self.codes) - 3
        return " ".join(self.codes[:3]) + (f" +{more}" if more > 0 else "")


def marks_on(panel: Panel, findings: Sequence[Finding], per: str) -> list[Mark]:
    """Where the findings that have a place stand on a plot.

    Args:
        panel: the plot.
        findings: ranked.
        per: what the run's steps count; a plot of something else is found by the lines of the log.
    """
    low, high = _range(panel)
    placed = [(x, f) for f in findings if (x := _place(panel, f, per)) is not None]
    placed = [(x, f) for x, f in placed if low <= x <= high]
    groups: list[list[tuple[float, Finding]]] = []
    for x, finding in sorted(placed, key=lambda pair: pair[0]):
        if groups and x - groups[-1][0][0] <= _NEAR * (high - low):
            groups[-1].append((x, finding))
        else:
            groups.append([(x, finding)])
    return [_mark(group) for group in groups]


def _mark(group: list[tuple[float, Finding]]) -> Mark:
    worst = max((finding for _, finding in group), key=lambda f: f.severity.weight)
    codes = Counter(finding.code for _, finding in group)
    return Mark(group[0][0], tuple(codes), worst.severity.value)


def _range(panel: Panel) -> tuple[float, float]:
    x = np.concatenate([line.x for line in panel.lines])
    x = x[np.isfinite(x)]
    return (float(x.min()), float(x.max())) if x.size else (0.0, 0.0)


def _place(panel: Panel, finding: Finding, per: str) -> float | None:
    if np.isfinite(finding.step) and panel.per == per:
        return float(finding.step)
    if finding.first_line is None:
        return None
    if panel.per == LINES:
        return float(np.clip(finding.first_line, *_range(panel)))
    line = max(panel.lines, key=lambda one: one.x.size)
    if not line.x.size:
        return None
    at = int(np.searchsorted(line.lines, finding.first_line, side="right")) - 1
    return float(line.x[max(at, 0)])
