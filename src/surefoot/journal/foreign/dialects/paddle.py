"""PaddleDetection and its kin, where a cost is a time.

Epoch: [0] [ 20/925] learning_rate: 0.0004 loss: 4.2 batch_cost: 1.2 data_cost: 0.01 ips: 0.8
"""

from __future__ import annotations

import re

from surefoot.journal.foreign.dialect import Dialect, Hint
from surefoot.journal.series import Role

__all__ = ["PADDLE"]

_BATCH = Hint(role=Role.STEP_TIME, why="seconds a batch takes", unit="seconds")
_DATA = Hint(
    role=Role.STEP_TIME, why="seconds a batch waits for data", unit="seconds", group="data"
)

PADDLE = Dialect(
    name="paddle",
    sign=re.compile(r"\b(?:batch|reader|data|avg_batch|avg_reader)_cost: .*\bips: "),
    hints={
        "batch_cost": _BATCH,
        "avg_batch_cost": _BATCH,
        "data_cost": _DATA,
        "reader_cost": _DATA,
        "avg_reader_cost": _DATA,
    },
)
