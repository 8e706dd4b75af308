"""ESPnet and Marian.

(trainer:678) INFO: 1epoch:train:1-50batch: iter_time=0.2, loss_ctc=120.3, loss=92.2, clip=100.000
[2026-01-02 03:04:05] Ep. 1 : Up. 1000 : Sen. 123,456 : Cost 7.12 : Time 12.3s : L.r. 3.0000e-05
"""

from __future__ import annotations

import re
from dataclasses import replace

from surefoot.journal.foreign.dialect import Dialect, Hint
from surefoot.journal.foreign.grammar import Field, Reading, read_line
from surefoot.journal.series import Role

__all__ = ["ESPNET", "MARIAN"]

_PART = re.compile(r"(?<!\d)(?P<epoch>\d++)epoch:(?P<side>\w+):(?:\d+-(?P<batch>\d+)batch:)?")
_MARIAN = re.compile(r"\bEp\. \d+ : Up\. \d")
_CALLED = {"Up": ("Up.", "step"), "Ep": ("Ep.", "epoch"), "L.r": ("L.r.", "value")}
_MARIAN_PARTS = re.compile(
    r"(?P<name>Ep|Up|L\.r)\. (?P<number>\d[\d.,]*(?:e[-+]\d+)?)"
    r"|(?P<cost>Cost) (?P<value>[-\d.nainf]+)"
)


def _espnet(text: str) -> Reading | None:
    reading, part = read_line(text), _PART.search(text)
    if part is None:
        return reading
    where = "validation" if part["side"].startswith("valid") else ""
    fields = [replace(f, side=where) for f in reading.fields if f.start >= part.end()]
    fields.append(Field(*part.span("epoch"), "epoch", "epoch", where))
    if part["batch"]:
        fields.append(Field(*part.span("batch"), "batch", "batch", where))
    return Reading(text, tuple(sorted(fields, key=lambda f: f.start)), reading.masked)


def _marian(text: str) -> Reading | None:
    reading, fields = read_line(text), list[Field]()
    for found in _MARIAN_PARTS.finditer(text):
        if found["cost"]:
            fields.append(Field(*found.span("value"), "Cost"))
            continue
        name, what = _CALLED[found["name"]]
        fields.append(Field(*found.span("number"), name, what, comma="," in found["number"]))
    taken = {i for f in fields for i in range(f.start, f.end)}
    fields += [f for f in reading.fields if f.what == "value" and f.start not in taken]
    if "[valid]" in text:
        fields = [replace(f, side="validation") for f in fields]
    return Reading(text, tuple(sorted(fields, key=lambda f: f.start)), reading.masked)


ESPNET = Dialect(
    name="espnet",
    sign=_PART,
    read=_espnet,
    hints={
        "clip": Hint(role=Role.OTHER, why="how many of a hundred steps were clipped"),
        "iter_time": Hint(
            role=Role.STEP_TIME, why="seconds a batch waits for data", unit="seconds", group="data"
        ),
        "train_time": Hint(role=Role.STEP_TIME, why="seconds a batch takes", unit="seconds"),
    },
)
MARIAN = Dialect(
    name="marian",
    sign=_MARIAN,
    read=_marian,
    hints={
        "cost": Hint(role=Role.LOSS, why="the cost per word"),
        "l.r.": Hint(role=Role.LEARNING_RATE, why="the learning rate"),
    },
)
