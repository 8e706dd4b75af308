"""fairseq: pipes, ``name=value`` in progress lines, and JSON whose numbers are texts.

| epoch 001:    100 / 1000 loss=12.3, nll_loss=11.9, ppl=3903, num_updates=100, gnorm=2.3, clip=0
| INFO | train | epoch 002 | loss 9.8 | nll_loss 8.89 | num_updates 695 | loss_scale 0
"""

from __future__ import annotations

import re

from surefoot.journal.foreign.dialect import Dialect, Hint
from surefoot.journal.series import Role

__all__ = ["FAIRSEQ"]

_NLL = Hint(
    role=Role.METRIC, why="the cross-entropy without label smoothing, base 2", better="lower"
)

FAIRSEQ = Dialect(
    name="fairseq",
    sign=re.compile(
        r"\bnll_loss[ =\"]|\| train_inner \||\bgnorm[ =\"].*\bloss_scale|\"(?:train_"
        r"|valid_)?num_updates\":"
        r"|valid on '\w+' subset|\| (?:train|valid) \| "
    ),
    hints={
        "nll_loss": _NLL,
        "valid_nll_loss": _NLL,
        "train_nll_loss": _NLL,
        "clip": Hint(role=Role.OTHER, why="how many of a hundred updates were clipped"),
        "best_loss": Hint(role=Role.OTHER, why="the best loss of a validation so far"),
        "valid_best_loss": Hint(role=Role.OTHER, why="the best loss of a validation so far"),
        "gb_free": Hint(role=Role.OTHER, why="GiB free on the device"),
        "wall": Hint(role=Role.OTHER, why="seconds since the beginning", unit="seconds"),
        "train_wall": Hint(role=Role.OTHER, why="seconds spent in training", unit="seconds"),
        "update": Hint(role=Role.OTHER, why="epochs so far, as a fraction"),
    },
)
