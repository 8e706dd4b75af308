"""Caffe's solver.

I0814 12:34:56.789012 12345 solver.cpp:228] Iteration 20, loss = 2.3
    Train net output #0: loss_bbox = 0.3 (* 1 = 0.3 loss)
"""

from __future__ import annotations

import re
from dataclasses import replace

from surefoot.journal.foreign.dialect import Dialect
from surefoot.journal.foreign.grammar import Reading, read_line

__all__ = ["CAFFE"]

_OUTPUT = re.compile(r"\b(Train|Test) net output #\d+: ")


def _read(text: str) -> Reading | None:
    """An output of the net keeps its name apart from that of the loss, which is smoothed."""
    reading, output = read_line(text), _OUTPUT.search(text)
    if output is None or not reading.values:
        return reading
    first = reading.values[0]
    where = "validation" if output[1] == "Test" else ""
    named = replace(first, name=f"{output[1]} net output {first.name}", side=where)
    return Reading(text, (named,), reading.masked)


CAFFE = Dialect(
    name="caffe",
    sign=re.compile(
        r"\b(?:Train|Test) net output #\d+: |\bIteration \d+(?: \([^)]*\))?, (?:loss|lr"
        r"|Testing net)"
    ),
    read=_read,
)
