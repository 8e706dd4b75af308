"""timm, and the loops that grew from torchvision's references.

Train: 0 [   0/5004 (  0%)]  Loss: 6.95 (6.95)  Time: 2.3s, 110.2/s  LR: 1.0e-05  Data: 1.2 (1.2)
Epoch: [0]  [  10/5005]  eta: 1:02:03  lr: 0.1  loss: 6.9 (7.0)  time: 0.5  data: 0.1  max mem: 5000
"""

from __future__ import annotations

import re

from surefoot.journal.foreign.dialect import Dialect, Hint
from surefoot.journal.series import Role

__all__ = ["TIMM", "TORCHVISION"]

_TIMES = {
    "time": Hint(role=Role.STEP_TIME, why="seconds a batch takes", unit="seconds"),
    "data": Hint(
        role=Role.STEP_TIME, why="seconds a batch waits for data", unit="seconds", group="data"
    ),
}
TIMM = Dialect(
    name="timm",
    sign=re.compile(r"\bTrain: \d+ \[ *\d+/\d+|\bTest(?: \(EMA\))?: +\[ *\d+/\d+\].*Acc@1"),
    hints=_TIMES,
)
TORCHVISION = Dialect(
    name="torchvision",
    sign=re.compile(r"\bmax mem: \d+|\beta: .*\btime: .*\bdata: "),
    hints={
        **_TIMES,
        "max mem": Hint(
            role=Role.DEVICE_MEMORY,
            why="the most that tensors took on the device, in MiB",
            factor=2.0**20,
            unit="bytes",
        ),
    },
)
