"""``surefoot doctor``: what a log says about the run it was written by."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

from surefoot.cli.pipes import let_go_of_closed_pipes
from surefoot.doctor import Examination, examine
from surefoot.doctor.html import check_drawing, write_report
from surefoot.doctor.report import tell
from surefoot.errors import JournalError, UsageError
from surefoot.journal.foreign import read_log
from surefoot.journal.series import LoggedRun

__all__ = ["DoctorOptions", "run"]

HEALTHY, SICK, UNREADABLE = 0, 1, 2
SCHEMA_VERSION = 1
_LOGS = {".log", ".txt", ".csv", ".tsv", ".json", ".jsonl", ".out", ".err"}
_EVENTS = "events.out.tfevents"
JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class DoctorOptions:
    """Read logs of any framework and say what is wrong with the runs, most likely cause first.

    The exit status is 0 for healthy, 1 for findings, 2 where a log cannot be read or holds
    nothing that could be judged.
    """

    paths: tyro.conf.Positional[tuple[str, ...]]
    """Files, folders (every log below them), or - for the standard input."""
    json: bool = False
    """Print the findings as JSON, ranked, for programs."""
    series: bool = False
    """Also say how each column of the log was read."""
    checks: bool = False
    """Also list every check, with why those that did not run could not."""
    html: Path | None = None
    """Also write the report, with plots, as one HTML file that needs nothing else."""


def run(arguments: Sequence[str]) -> int:
    """Examine the logs; returns the exit status."""
    options = tyro.cli(
        DoctorOptions,
        args=arguments,
        prog="surefoot doctor",
        description=DoctorOptions.__doc__,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    if options.html is not None:
        check_drawing()
    examinations, unread = _examine(options.paths)
    for problem in unread:
        print(f"surefoot doctor: {problem}", file=sys.stderr)
    if options.json:
        _print(json.dumps(_as_json(examinations, unread, series=options.series), indent=2))
    else:
        said = (tell(e, series=options.series, checks=options.checks) for e in examinations)
        _print(("\n\n" + "-" * 100 + "\n\n").join(said))
    if options.html is not None:
        written = f"Report: {write_report(options.html, examinations, unread)}"
        if options.json:
            print(written, file=sys.stderr)
        else:
            _print(written)
    return _status(examinations, unread)


def _print(text: str) -> None:
    """Print; where nobody reads it to its end the status is the verdict, and the report written."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        let_go_of_closed_pipes()


def _examine(paths: Sequence[str]) -> tuple[list[Examination], list[str]]:
    if not paths:
        raise UsageError(
            "surefoot doctor: no log given. Name files or folders, or - for the standard input."
        )
    examinations: list[Examination] = []
    unread: list[str] = []
    for path in paths:
        try:
            examinations += [examine(logged) for logged in _read(path)]
        except (JournalError, OSError) as problem:
            unread.append(str(problem))
    return examinations, unread


def _read(path: str) -> Iterator[LoggedRun]:
    if path == "-":
        for logged in read_log(sys.stdin.buffer):
            yield replace(logged, source="standard input")
        return
    for file in _logs_below(Path(path)):
        yield from read_log(file)


def _logs_below(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and (file.suffix in _LOGS or _EVENTS in file.name)
    ]
    journals = {file.parent for file in found if file.name == JOURNAL}
    # Settings and manifests beside a journal are no logs.
    found = [f for f in found if f.suffix != ".json" or not journals & set(f.parents)]
    if not found:
        raise JournalError(
            f"{path}: no log in this folder; looked for {', '.join(sorted(_LOGS))} and event "
            "files of TensorBoard. Name the file.",
            path=path,
        )
    return found


def _as_json(
    examinations: Sequence[Examination], unread: Sequence[str], *, series: bool
) -> dict[str, Any]:
    runs = [e.to_dict() | ({"series": _series(e.run)} if series else {}) for e in examinations]
    ranked = sorted(
        ((finding, index) for index, e in enumerate(examinations) for finding in e.findings),
        key=lambda pair: (not pair[0].sick, -pair[0].confidence),
    )
    if len(examinations) == 1:
        ranked = [(finding, 0) for finding in examinations[0].findings]
    return {
        "version": SCHEMA_VERSION,
        "verdict": _verdict(examinations),
        "findings": [
            finding.to_dict() | {"source": examinations[i].run.source, "run": i}
            for finding, i in ranked
        ],
        "runs": [{k: v for k, v in told.items() if k != "findings"} for told in runs],
        "unread": list(unread),
    }


def _series(logged: LoggedRun) -> list[dict[str, Any]]:
    return [
        {
            "name": column.name,
            "role": column.role.value,
            "group": column.group,
            "values": int(column.values.size),
            "per": column.per,
            "read_as": column.read_as,
        }
        for column in logged.columns
    ]


def _verdict(examinations: Sequence[Examination]) -> str:
    verdicts = {e.verdict for e in examinations}
    return next((v for v in ("sick", "healthy") if v in verdicts), "nothing to judge")


def _status(examinations: Sequence[Examination], unread: Sequence[str]) -> int:
    verdict = _verdict(examinations)
    if verdict == "sick":
        return SICK
    return UNREADABLE if unread or verdict != "healthy" else HEALTHY
