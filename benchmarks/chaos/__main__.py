"""The command: which columns, which faults, and where the table goes."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.chaos.catalogue import catalogue
from benchmarks.chaos.columns import COLUMNS, Column
from benchmarks.chaos.fault import Fault, Plan
from benchmarks.chaos.faults import BATCHNORM, eighteen
from benchmarks.chaos.launch import Launcher
from benchmarks.chaos.report import Table, versions
from benchmarks.chaos.suite import Suite

__all__ = ["main"]

_RESULTS = "<!-- what follows is written by python -m benchmarks.chaos --out -->"
_QUICK = ("plain", "surefoot", "surefoot@plain")
_QUICK_PLAN = Plan(336)  # enough samples for the memory watch


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.chaos", description="Faults on purpose, for every way to train."
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"the eighteen faults, {', '.join(_QUICK)}, {_QUICK_PLAN.steps} steps",
    )
    parser.add_argument("--only", help=f"columns, of {','.join(COLUMNS)}")
    parser.add_argument("--faults", help="their numbers, e.g. 1,3,12b; 'eighteen' or 'fears'")
    parser.add_argument("--batchnorm", action="store_true", help="only the task with BatchNorm")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="of a run; faults strike at half of them")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument(
        "--out",
        type=Path,
        action="append",
        default=[],
        help=".json, or .md: what stands above its results is kept",
    )
    return parser.parse_args()


def _columns(wanted: Sequence[str]) -> list[Column]:
    unknown = [name for name in wanted if name not in COLUMNS]
    if unknown:
        sys.exit(f"--only: {unknown} are none of {list(COLUMNS)}")
    found: list[Column] = []
    for name in wanted:
        missing = COLUMNS[name].missing()
        if missing:
            print(f"{name}: not installed ({', '.join(missing)}), left out")
        else:
            found.append(COLUMNS[name])
    return found


def _faults(wanted: str | None, plan: Plan) -> list[Fault]:
    every = catalogue(plan)
    first = [fault.key for fault in eighteen(plan)]
    groups = {"eighteen": first, "fears": [key for key in every if key not in first]}
    if wanted is None:
        return list(every.values())
    keys = groups.get(wanted, wanted.split(","))
    unknown = [key for key in keys if key not in every]
    if unknown:
        sys.exit(f"--faults: {unknown} are none of {list(every)}")
    return [every[key] for key in keys]


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """Run and print."""
    options = _options()
    plan = _QUICK_PLAN if options.quick else Plan(options.steps or 400)
    columns = _columns(
        options.only.split(",") if options.only else _QUICK if options.quick else [*COLUMNS]
    )
    faults = _faults(options.faults or ("eighteen" if options.quick else None), plan)
    began = time.monotonic()
    launcher = Launcher(columns)
    suite = Suite(launcher, plan, seed=options.seed, jobs=options.jobs, progress=_say)
    tables: list[Table] = []
    text = ""
    try:
        for title, these, batchnorm in _wanted(options, faults, plan):
            tables.append(suite.table(title, these, columns, batchnorm=batchnorm))
            took = f"{plan.steps} steps, seed {options.seed}, {time.monotonic() - began:.0f} s. "
            text = "\n".join([took + versions() + ".", "", *(t.markdown() for t in tables)])
            _write(
                options.out, tables, text
            )  # each as it is there: a run of hours may be cut short
    finally:
        launcher.close()
    print("\n" + text)


def _wanted(
    options: argparse.Namespace, faults: Sequence[Fault], plan: Plan
) -> list[tuple[str, list[Fault], bool]]:
    """Titles and faults of the tables, and whether there is a BatchNorm in the model."""
    first = {fault.key for fault in eighteen(plan)}
    tables = [
        ("The eighteen faults", [fault for fault in faults if fault.key in first], False),
        ("Further faults", [fault for fault in faults if fault.key not in first], False),
        (
            "The same task with a BatchNorm after the convolution",
            [fault for fault in faults if fault.key in BATCHNORM],
            True,
        ),
    ]
    only = [True] if options.batchnorm else [False] if options.quick else [False, True]
    return [(title, these, bn) for title, these, bn in tables if these and bn in only]


def _write(paths: Sequence[Path], tables: Sequence[Table], text: str) -> None:
    for path in paths:
        if path.suffix == ".json":
            path.write_text(json.dumps([table.to_dict() for table in tables], indent=1))
        else:
            before = path.read_text() if path.exists() else ""
            path.write_text(before.partition(_RESULTS)[0] + _RESULTS + "\n\n" + text)


if __name__ == "__main__":
    main()
