"""The table, for people (Markdown) and for programs (JSON)."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.chaos.columns import Column
from benchmarks.chaos.fault import Fault
from benchmarks.chaos.judge import Verdict

__all__ = ["Cell", "Clean", "Table", "versions"]

_PACKAGES = (
    "torch",
    "surefoot",
    "lightning",
    "transformers",
    "accelerate",
    "arc-training",
    "stabilityguard",
    "zclip",
)
Cell = Verdict | str
"""A verdict, or why there is none."""


@dataclass(frozen=True)
class Clean:
    """A column's run without a fault."""

    accuracy: float
    hash: str
    alarms: int
    """Entries of surefoot that say that something is wrong; every one is a false alarm."""


@dataclass
class Table:
    """One task, its faults and its columns."""

    title: str
    faults: Sequence[Fault]
    columns: Sequence[Column]
    cells: dict[tuple[str, str], Cell] = field(default_factory=dict)
    """By fault and column."""
    clean: dict[str, Clean] = field(default_factory=dict)

    def markdown(self) -> str:
        """The whole table and its totals."""
        head = ["#", "fault", *(column.title for column in self.columns)]
        rows = [head, ["---"] * len(head), ["", "no fault", *map(self._clean, self.columns)]]
        rows += [
            [fault.key, fault.title, *(self._cell(fault, column) for column in self.columns)]
            for fault in self.faults
        ]
        rows += [["", f"**{name}**", *totals] for name, totals in self.totals().items()]
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        return "\n".join([f"## {self.title}", "", *lines, ""])

    def totals(self) -> dict[str, list[str]]:
        """Shares of the faults that count and could be staged, by column."""
        tests = {
            "survived": lambda v: v.survived,
            "said what": lambda v: v.said in ("what", "where"),
            "said what and where": lambda v: v.said == "where",
            "wrong cause": lambda v: v.said == "wrong",
            "lost and silent": lambda v: not v.survived and v.said in ("silent", "metric"),
        }
        counted = {column.name: self._counted(column) for column in self.columns}
        return {
            name: [
                f"{sum(map(test, counted[column.name]))} of {len(counted[column.name])}"
                for column in self.columns
            ]
            for name, test in tests.items()
        }

    def _counted(self, column: Column) -> list[Verdict]:
        """One verdict for each fault that counts; 17b stands in for 17."""
        found: dict[str, Verdict] = {}
        for fault in self.faults:
            cell = self.cells.get((fault.key, column.name))
            stands_in = fault.key == "17b" and "17" not in found
            if isinstance(cell, Verdict) and (fault.counts or stands_in):
                found[fault.key] = cell
        return list(found.values())

    def _cell(self, fault: Fault, column: Column) -> str:
        cell = self.cells.get((fault.key, column.name), "not run")
        return f"n/a, {cell}" if isinstance(cell, str) else str(cell)

    def _clean(self, column: Column) -> str:
        clean = self.clean.get(column.name)
        if clean is None:
            return "not run"
        said = f", {clean.alarms} false alarms" if clean.alarms else ""
        return f"{clean.accuracy:.4f} `{clean.hash[:8]}`{said}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        cells = [
            {"fault": key, "column": column, **_plain(cell)}
            for (key, column), cell in self.cells.items()
        ]
        clean = {name: asdict(value) for name, value in self.clean.items()}
        return {"title": self.title, "clean": clean, "cells": cells, "totals": self.totals()}


def _plain(cell: Cell) -> Mapping[str, Any]:
    return {"not_run": cell} if isinstance(cell, str) else asdict(cell)


def versions() -> str:
    """A result means nothing without them."""
    found = [f"Python {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{package} not installed")
    return ", ".join(found)
