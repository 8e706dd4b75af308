"""What the fields of our own journal mean."""

from __future__ import annotations

import re

from surefoot.journal.foreign.dialect import Dialect, Hint
from surefoot.journal.series import Role

__all__ = ["OWN"]

OWN = Dialect(
    name="surefoot",
    sign=re.compile(r"(?!)"),
    hints={
        "loss": Hint(role=Role.LOSS, why="the total loss of the step"),
        "grad_norm": Hint(
            role=Role.GRADIENT_NORM, why="norm of the true gradient, unscaled, before clipping"
        ),
        "loss_scale": Hint(role=Role.LOSS_SCALE, why="the loss scale of the step"),
        "skipped": Hint(role=Role.SKIPPED, why="steps refused so far"),
        "clip": Hint(role=Role.CLIP_THRESHOLD, why="the norm that the gradient was shortened to"),
        "device_memory_mb": Hint(
            role=Role.DEVICE_MEMORY, why="memory of tensors, in MB", factor=1e6, unit="bytes"
        ),
    },
)
