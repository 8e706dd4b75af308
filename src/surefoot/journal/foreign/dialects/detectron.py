"""detectron2: what its event writer prints, and ``metrics.json``.

[05/01 10:00:00 d2.utils.events]:  eta: 1:23:45  iter: 19  total_loss: 3.2  loss_cls: 1.4
{"iteration": 19, "total_loss": 3.2, "loss_cls": 1.4, "lr": 0.0004, "eta_seconds": 512.5}
"""

from __future__ import annotations

import re

from surefoot.journal.foreign.dialect import Dialect, Hint
from surefoot.journal.series import Role

__all__ = ["DETECTRON"]

_LAST = "the time of the last iteration alone; the mean is a column of its own"

DETECTRON = Dialect(
    name="detectron2",
    sign=re.compile(r"d2\.utils\.events|copypaste: |\"eta_seconds\":|\btotal_loss: .*\bmax_mem: "),
    hints={
        "time": Hint(role=Role.STEP_TIME, why="seconds an iteration takes", unit="seconds"),
        "data_time": Hint(
            role=Role.STEP_TIME,
            why="seconds an iteration waits for data",
            unit="seconds",
            group="data",
        ),
        "last_time": Hint(role=Role.OTHER, why=_LAST, unit="seconds"),
        "last_data_time": Hint(role=Role.OTHER, why=_LAST, unit="seconds"),
        "eta_seconds": Hint(role=Role.OTHER, why="time left", unit="seconds"),
    },
)
