"""What was looked at in a run, what could not be and why, and how its columns were read."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from surefoot.doctor.examine import Examination
from surefoot.doctor.html.text import safe
from surefoot.journal.series import Column

__all__ = ["checks_of"]

_MOST_COLUMNS = 100


def checks_of(examination: Examination) -> str:
    """The end of a run's section."""
    ran = [check for check in examination.checks if not check.skipped]
    blind = [check for check in examination.checks if check.skipped]
    parts = [
        f"<h3>{len(ran)} checks ran, {len(blind)} could not</h3>",
        "<details><summary>What was looked at</summary>",
        _listed(f"{c.code}: {c.title}{' (found)' if c.fired else ''}" for c in ran),
        "</details>",
    ]
    if blind:
        reasons: dict[str, list[str]] = {}
        for check in blind:
            reasons.setdefault(check.skipped, []).append(f"{check.code} ({check.title})")
        parts += [
            f"<details{'' if ran else ' open'}><summary>What could not be looked at</summary>",
            _listed(f"{why}: {', '.join(codes)}" for why, codes in reasons.items()),
            "</details>",
        ]
    return "\n".join([*parts, _columns(examination)])


def _columns(examination: Examination) -> str:
    columns = examination.run.columns
    if not columns:
        return ""
    rows = "\n".join(_row(column) for column in columns[:_MOST_COLUMNS])
    left = len(columns) - _MOST_COLUMNS
    more = f'<p class="small">and {left} more</p>' if left > 0 else ""
    head = "".join(f"<th>{name}</th>" for name in ("Column", "Taken for", "Values", "Range", "Why"))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    return (
        f"<details><summary>How {len(columns)} columns were read</summary>"
        f'<div class="wide">{table}</div>{more}</details>'
    )


def _row(column: Column) -> str:
    known = column.values[np.isfinite(column.values)]
    span = f"{known.min():.4g} to {known.max():.4g}" if known.size else "no number"
    lost = column.values.size - known.size
    less = f", {lost:,} not finite" if lost else ""
    of = f" ({column.group})" if column.group else ""
    role = column.role.value.replace("_", " ") + of
    cells = (column.name, role, f"{column.values.size:,}{less}", span, column.read_as)
    return f"<tr>{''.join(f'<td>{safe(cell)}</td>' for cell in cells)}</tr>"


def _listed(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{safe(one)}</li>' for one in items)}</ul>"
