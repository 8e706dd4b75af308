"""What a run said: structured entries, and printed lines that its clean run did not print."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.chaos.fault import Entry, Expect, Struck

__all__ = ["alarms", "entries_of", "new_lines", "said_by_records", "said_by_text", "words_of"]

_QUIET_KINDS = {"header", "resumed", "checkpoint", "finished"}
_QUIET_EVENTS = {"clipped", "partial_window", "scale_grew"}
_METRIC = re.compile(r"^(step \d+ loss|\{'(loss|train_runtime)|\s*$)")
_OWN_ERROR = re.compile(r"(?:\[rank\d\]: )?surefoot\.errors\.(\w+): (.*)")
_MARK = ("@struck", "@entry")
_COLOUR = re.compile(r"\x1b\[[\d;]*m")
_LAYER = r"\b(conv|norm|fc1|fc2)\b|\bparameter|\bbatch[ _]?(index|idx)|\brank[ =:]*\d|\bsamples?\b"


# -- structured -----------------------------------------------------------------------------------


def entries_of(journal: Iterable[str], log: str) -> list[Entry]:
    """Entries of the journal's lines, of marked lines of the log, and of surefoot's own exceptions.

    A torn line is left out.

    >>> entries_of(['{"kind": "memory", "step": 3}', '{"kin'], '@entry {"kind": "x"}\\nhello')
    [{'kind': 'memory', 'step': 3}, {'kind': 'x'}]
    """
    lines = [*journal, *(x.removeprefix("@entry ") for x in log.splitlines() if "@entry " in x)]
    found: list[Entry] = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    for line in log.splitlines():
        if match := _OWN_ERROR.match(line):
            found.append({"kind": "stopped", "error": match[1], "message": match[2]})
    return found


def words_of(entry: Entry) -> set[str]:
    """Cause, events and kind: what an entry says went wrong."""
    kind = str(entry["kind"])
    if kind != "step":
        return {kind}
    return {str(entry.get("cause", "none")), *entry.get("events", ())} - {"none", *_QUIET_EVENTS}


def alarms(entries: Sequence[Entry]) -> list[Entry]:
    """Entries that say that something is wrong."""
    return [e for e in entries if e["kind"] not in _QUIET_KINDS and words_of(e)]


def said_by_records(entries: Sequence[Entry], expect: Expect, struck: Struck) -> tuple[str, str]:
    """``where``, ``what``, ``wrong`` or ``silent``, and the entry that tells, in short.

    ``wrong`` is an alarm with another cause, or one outside the steps in which it had to come.
    """
    told = alarms(entries)
    right = [
        e
        for e in told
        if words_of(e) & expect.words and e.get("step", expect.steps[0]) in expect.steps
    ]
    for entry in right:
        if expect.place(entry, struck):
            return "where", in_short(entry)
    if right:
        return "what", in_short(right[0])
    return ("wrong", in_short(told[0])) if told else ("silent", "")


def in_short(entry: Entry) -> str:
    """An entry in one line, without what is usual."""
    keep = ("step", "rank", "verdict", "cause", "message", "error", "path", "reason")
    short: dict[str, Any] = {name: entry[name] for name in keep if name in entry}
    fault = entry.get("fault") or {}
    lists = {
        "events": entry.get("events", ()),
        "culprits": [culprit[0] for culprit in entry.get("culprits", ())],
        "samples": fault.get("samples") or entry.get("sample_ids", ()),
        "ranks": entry.get("bad_ranks", ()),
    }
    for name, values in lists.items():
        if values:
            short[name] = [*values[:4], *(["..."] if len(values) > 4 else [])]
    short |= {f"fault {k}": v for k in ("origin", "where") if (v := fault.get(k))}
    return f"{entry['kind']}: {json.dumps(short)}"


# -- printed --------------------------------------------------------------------------------------


def new_lines(log: str, clean: str) -> list[str]:
    """Lines that the clean run did not print; numbers and places do not make a line new."""
    usual = {_plain(line) for line in _COLOUR.sub("", clean).splitlines()}
    lines = [x for x in _COLOUR.sub("", log).splitlines() if not x.startswith(_MARK)]
    return [line for line in lines if _plain(line) not in usual and not _METRIC.match(line)]


def _plain(line: str) -> str:
    line = re.sub(r"(/[\w.=-]+)+", "PATH", line)
    return re.sub(r"-?\d+(\.\d+)?(e[+-]?\d+)?", "N", line).strip()


def said_by_text(log: str, clean: str, what: str, steps: range | None) -> tuple[str, str]:
    """``where``, ``what``, ``metric`` or ``silent``, and the line that tells.

    Args:
        log: everything printed.
        clean: everything that the clean run printed.
        what: regular expression of the words that name the problem.
        steps: where the fault struck, for "where" is a step and a layer, sample or rank; None for
            a fault in a file, whose name is enough.
    """
    lines = new_lines(log, clean)
    telling = [i for i, line in enumerate(lines) if re.search(what, line, re.IGNORECASE)]
    if not telling:
        bare = re.search(r"(loss|norm)\W+'?(nan|-?inf)\b", log, re.IGNORECASE)
        return ("metric", "") if bare else ("silent", "")
    around = "\n".join(line for i in telling[:20] for line in lines[max(0, i - 4) : i + 5])
    if steps is None:
        place = re.search(r"[\w-]+\.(pt|ckpt|bin|safetensors)\b|checkpoint-\d+|step_\d+", around)
    else:
        numbers = {int(n) for n in re.findall(r"(?i)\bstep\W{0,4}(\d+)", around)}
        near = any(n in range(steps.start - 1, steps.stop + 20) for n in numbers)
        place = near and re.search(_LAYER, around)
    errors = [i for i in telling if re.match(r"[\w.]*(Error|Exception)\b", lines[i])]
    return ("where" if place else "what"), lines[(errors or telling)[0]].strip()[:200]
