"""Megatron and DeepSpeed: lines of an iteration with pipes between.

 iteration       10/  500000 | learning rate: 1.0E-06 | lm loss: 1.08E+01 | loss scale: 65536.0 |
[Rank 0] step=10, skipped=6, lr=[9.6e-06, 9.6e-06], mom=[(0.9, 0.95), (0.9, 0.95)]
"""

from __future__ import annotations

import re

from surefoot.journal.foreign.dialect import Dialect, Hint
from surefoot.journal.series import Role

__all__ = ["DEEPSPEED", "MEGATRON"]

MEGATRON = Dialect(
    name="megatron",
    sign=re.compile(
        r"\| *(?:consumed samples|elapsed time per iteration|lm loss|number of (?:skipped"
        r"|nan) iterations)"
        r"|lm loss value:"
    ),
    hints={
        "number of skipped iterations": Hint(
            role=Role.SKIPPED, why="skipped since the line before, summed up", running=True
        ),
        "number of nan iterations": Hint(role=Role.OTHER, why="iterations whose loss was NaN"),
        "lm loss value": Hint(role=Role.VALIDATION_LOSS, why="the loss of the validation"),
        "lm loss ppl": Hint(role=Role.METRIC, why="perplexity of the validation", better="lower"),
        "global batch size": Hint(role=Role.OTHER, why="samples in a step"),
        "consumed samples": Hint(role=Role.OTHER, why="samples seen so far"),
        "params norm": Hint(role=Role.OTHER, why="norm of the weights"),
        "num zeros": Hint(role=Role.OTHER, why="elements of the gradient that are zero"),
    },
)

DEEPSPEED = Dialect(
    name="deepspeed",
    sign=re.compile(
        r"\[Rank \d+\] step=|\bmicro_step=|^.{0,80}\bsteps: \d+ loss: .* iter time \(s\)"
    ),
    hints={
        "mom": Hint(role=Role.OTHER, why="momentum"),
        "mom[1]": Hint(role=Role.OTHER, why="momentum"),
        "memallocated": Hint(
            role=Role.DEVICE_MEMORY, why="memory of tensors", group="allocated", unit="bytes"
        ),
    },
)
