"""MXNet's Speedometer and what it prints after an epoch.

INFO:root:Epoch[0] Batch [100]	Speed: 438.14 samples/sec	Train-accuracy=0.019336
INFO:root:Epoch[0] Time cost=123.456
"""

from __future__ import annotations

import re

from surefoot.journal.foreign.dialect import Dialect, Hint
from surefoot.journal.series import Role

__all__ = ["MXNET"]

MXNET = Dialect(
    name="mxnet",
    sign=re.compile(r"\bEpoch\[\d+\] (?:Batch \[|Train-|Validation-|Time cost)"),
    hints={"time cost": Hint(role=Role.OTHER, why="seconds of the epoch", unit="seconds")},
)
