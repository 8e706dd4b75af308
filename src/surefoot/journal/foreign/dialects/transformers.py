"""Transformers' Trainer: its dict lines, ``trainer_state.json``, and DebugUnderflowOverflow.

{'loss': 1.8998, 'grad_norm': 21.9, 'learning_rate': 1.6e-05, 'epoch': 0.4}
2.17e-07 4.50e+00 weight
"""

from __future__ import annotations

import re

from surefoot.journal.foreign.dialect import Dialect, Hint
from surefoot.journal.foreign.grammar import Field, Reading
from surefoot.journal.series import Role

__all__ = ["ACTIVATIONS", "TRANSFORMERS"]

_WHOLE = "over the whole training, printed at its end"

TRANSFORMERS = Dialect(
    name="transformers",
    sign=re.compile(
        r"\{'(?:loss|eval_loss|train_loss|train_runtime|eval_runtime)': "
        r"|'learning_rate': .*'epoch': "
        r"|^(?=.*\"loss\":)(?=.*\"learning_rate\":).*\"epoch\":|\"eval_runtime\":|\"train_runtime\":"
    ),
    hints={
        "train_loss": Hint(role=Role.OTHER, why=f"mean of the loss {_WHOLE}"),
        "train_runtime": Hint(
            role=Role.OTHER, why="seconds that the training took", unit="seconds"
        ),
        "train_samples_per_second": Hint(role=Role.OTHER, why=f"throughput {_WHOLE}"),
        "train_steps_per_second": Hint(role=Role.OTHER, why=f"throughput {_WHOLE}"),
        "eval_runtime": Hint(
            role=Role.OTHER, why="seconds that the evaluation took", unit="seconds"
        ),
        "num_tokens": Hint(role=Role.OTHER, why="tokens seen so far"),
        "total_flos": Hint(role=Role.OTHER, why="operations so far"),
    },
)

_FRAME = re.compile(
    r"^\s*(?P<least>\d\.\d+e[-+]\d+|nan|inf)\s+(?P<most>\d\.\d+e[-+]\d+|nan|inf)\s+"
    r"(?P<what>weight|bias|input|output)(?:\[\d+\])?\s*$"
)


def _frame(text: str) -> Reading | None:
    found = _FRAME.match(text)
    if found is None:
        return None
    return Reading(text, (Field(*found.span("most"), f"abs max of {found['what']}"),))


def _largest(what: str) -> Hint:
    return Hint(
        role=Role.OTHER, why=f"the largest absolute value in a module's {what}, module by module"
    )


ACTIVATIONS = Dialect(
    name="activations",
    sign=_FRAME,
    read=_frame,
    hints={f"abs max of {what}": _largest(what) for what in ("weight", "bias", "input", "output")},
)
"""Frames of DebugUnderflowOverflow: least and greatest absolute value of each tensor."""
