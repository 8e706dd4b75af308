"""CycleGAN and pix2pix: every number behind the brackets is a loss.

(epoch: 1, iters: 100, time: 0.512, data: 0.301) D_A: 0.412 G_A: 0.312 cycle_A: 2.123
"""

from __future__ import annotations

import re

from surefoot.journal.foreign.dialect import Dialect, Hint
from surefoot.journal.series import Role

__all__ = ["CYCLEGAN"]

CYCLEGAN = Dialect(
    name="cyclegan",
    sign=re.compile(r"\(epoch: \d+, iters: \d+, time: [\d.]+"),
    hints={
        "time": Hint(role=Role.STEP_TIME, why="seconds a sample takes", unit="seconds"),
        "data": Hint(
            role=Role.STEP_TIME, why="seconds a batch waits for data", unit="seconds", group="data"
        ),
    },
    rest=Hint(role=Role.TERM, why="one of the losses; the log shows no total"),
)
