"""A part of the chaos suite, on short runs: survived, and told by its name and place."""

from __future__ import annotations

import pytest
from benchmarks.chaos.catalogue import catalogue
from benchmarks.chaos.columns import COLUMNS
from benchmarks.chaos.fault import Plan
from benchmarks.chaos.judge import Verdict
from benchmarks.chaos.launch import Launcher
from benchmarks.chaos.suite import Suite

# Long enough for a snapshot to have proven itself before the fault strikes, at step 70.
PLAN = Plan(140)
# A run this short has no time to learn again what a rollback costs it; a lost one reads 0.1.
TOLERANCE = 0.2
OWN = ("1", "3", "4", "6", "8", "10", "11", "12b", "13", "14", "18")
ATTACHED = ("1", "2", "6", "8", "10", "11", "35")


@pytest.mark.parametrize(("column", "keys"), [("surefoot", OWN), ("surefoot@plain", ATTACHED)])
def test_faults_are_survived_and_named(column, keys):
    columns = [COLUMNS[column]]
    launcher = Launcher(columns)
    suite = Suite(launcher, PLAN, tolerance=TOLERANCE, progress=lambda line: None)
    faults = catalogue(PLAN)
    try:
        table = suite.table("t", [faults[key] for key in keys], columns, batchnorm=False)
    finally:
        launcher.close()
    cells = {f"{key}: {faults[key].title}": table.cells[key, column] for key in keys}
    survived = {t: c for t, c in cells.items() if isinstance(c, Verdict) and c.survived}
    assert {t: str(c) for t, c in cells.items() if t not in survived} == {}
    assert {t: c for t, c in survived.items() if c.said != "where"} == {}
    assert table.clean[column].alarms == 0
