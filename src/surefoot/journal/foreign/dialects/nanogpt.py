"""nanoGPT, llm.c, and the speedruns that came from them.

iter 10: loss 10.9000, time 123.45ms, mfu 12.30%
step 500: train loss 2.1034, val loss 2.3456
s:250 trl:6.1710 lr:0.000215 norm:1.02
"""

from __future__ import annotations

import re

from surefoot.journal.foreign.dialect import Dialect, Hint
from surefoot.journal.series import Role

__all__ = ["NANOGPT"]

NANOGPT = Dialect(
    name="nanogpt",
    sign=re.compile(
        r"^iter \d+: loss|^step \d+: train loss|^s:\d+ t[re]l:|^step:\d+/\d+ (?:train|val)_loss:"
        r"|^step +\d+/\d+ \| (?:train )?loss "
    ),
    hints={
        "mfu": Hint(role=Role.OTHER, why="share of the device's peak that is used"),
        "train_time": Hint(role=Role.OTHER, why="seconds since the beginning", unit="seconds"),
    },
)
