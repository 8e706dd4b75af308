"""mmengine, mmdetection and the others of OpenMMLab, text and JSON.

2024/05/01 10:00:00 - mmengine - INFO - Epoch(train) [1][10/500]  lr: 1e-3  memory: 392  loss: 5.3
{"mode": "train", "epoch": 1, "iter": 50, "lr": 0.02, "memory": 3900, "loss_cls": 0.6, "loss": 1.3}
"""

from __future__ import annotations

import re

from surefoot.journal.foreign.dialect import Dialect, Hint
from surefoot.journal.series import Role

__all__ = ["OPENMMLAB"]

OPENMMLAB = Dialect(
    name="openmmlab",
    sign=re.compile(
        r" - mm\w+ - (?:INFO|WARNING)|\b(?:Epoch|Iter)\((?:train|val|test)\)"
        r"|\"data_time\":.*\"memory\":|\"memory\":.*\"data_time\":|\"mode\": \"(?:train|val)\""
        r"|\bdata_time: [\d.]+,? +memory: \d"
    ),
    hints={
        "memory": Hint(
            role=Role.DEVICE_MEMORY,
            why="the most that tensors took on the device, in MiB",
            factor=2.0**20,
            unit="bytes",
        ),
        "time": Hint(role=Role.STEP_TIME, why="seconds an iteration takes", unit="seconds"),
        "data_time": Hint(
            role=Role.STEP_TIME,
            why="seconds an iteration waits for data",
            unit="seconds",
            group="data",
        ),
        "base_lr": Hint(
            role=Role.LEARNING_RATE, why="the rate before factors of groups", group="base"
        ),
    },
)
