"""Which runs a table needs, and running them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.chaos.columns import Column
from benchmarks.chaos.evidence import alarms, entries_of
from benchmarks.chaos.fault import Fault, Plan, Setting
from benchmarks.chaos.judge import Verdict, judge
from benchmarks.chaos.launch import Launcher, Outcome, cannot_stage
from benchmarks.chaos.report import Cell, Clean, Table
from benchmarks.chaos.run import Spec

__all__ = ["Suite"]

_NOWHERE = Path()


@dataclass
class Suite:
    """Runs tables with one launcher; a clean run is shared by all faults of its setting."""

    launcher: Launcher
    plan: Plan
    seed: int = 0
    jobs: int = 2
    tolerance: float = 0.02
    progress: Callable[[str], object] = print

    def table(
        self, title: str, faults: Sequence[Fault], columns: Sequence[Column], *, batchnorm: bool
    ) -> Table:
        """Run everything and judge it."""
        faults = [_with_batchnorm(fault) if batchnorm else fault for fault in faults]
        table = Table(title, faults, columns)
        with ThreadPoolExecutor(self.jobs) as pool:
            clean: dict[tuple[str, Setting], Future[Outcome]] = {}
            cells: dict[tuple[str, str], Future[Cell]] = {}
            for column in columns:
                wanted = [f.setting for f in faults if self._why_not(column, f) is None]
                for setting in dict.fromkeys([Setting(batchnorm=batchnorm), *wanted]):
                    spec = self._spec(column, setting, None)
                    clean[column.name, setting] = pool.submit(self.launcher.run, spec)
            for fault in faults:
                for column in columns:
                    setting = clean.get((column.name, fault.setting))
                    job = pool.submit(self._cell, column, fault, setting)
                    cells[fault.key, column.name] = job
            for place, job in cells.items():
                table.cells[place] = job.result()
            for column in columns:
                outcome = clean[column.name, Setting(batchnorm=batchnorm)].result()
                table.clean[column.name] = _clean(outcome)
        return table

    def _cell(self, column: Column, fault: Fault, clean: Future[Outcome] | None) -> Cell:
        why_not = self._why_not(column, fault)
        if why_not is not None or clean is None:
            return why_not or "no clean run"
        usual = clean.result()
        if not usual.finished:
            return "its clean run failed: " + usual.log[-200:].replace("\n", " ")
        outcome = self.launcher.run(self._spec(column, fault.setting, fault.key))
        verdict = judge(column, fault, outcome, usual, tolerance=self.tolerance)
        self._say(column, fault, verdict, outcome)
        return verdict

    def _say(self, column: Column, fault: Fault, verdict: Verdict, outcome: Outcome) -> None:
        line = f"{outcome.seconds:5.1f} s  {column.name:24} {fault.key:4} {verdict}"
        self.progress(line + (f"\n         {verdict.quote}" if verdict.quote else ""))

    def _why_not(self, column: Column, fault: Fault) -> str | None:
        return column.not_staged(fault) or cannot_stage(fault)

    def _spec(self, column: Column, setting: Setting, fault: str | None) -> Spec:
        return Spec(
            column=column,
            setting=setting,
            plan=self.plan,
            fault=fault,
            seed=self.seed,
            folder=_NOWHERE,
            results=_NOWHERE,
        )


def _with_batchnorm(fault: Fault) -> Fault:
    return replace(fault, setting=replace(fault.setting, batchnorm=True))


def _clean(outcome: Outcome) -> Clean:
    if not outcome.finished:
        return Clean(float("nan"), "failed", 0)
    result = outcome.results[0]
    found = alarms(entries_of(outcome.journal, outcome.log))
    return Clean(result["accuracy"], result["hash"], len(found))
