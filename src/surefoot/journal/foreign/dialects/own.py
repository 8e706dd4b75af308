"""What the fields of our own journal mean."""

from __future__ import annotations

import re

from surefoot.journal.foreign.dialect import Dialect, Hint
from surefoot.journal.foreign.words import bag
from surefoot.journal.series import Role

__all__ = ["OWN"]

_EVALUATED = "evaluation "
_SCORES = bag("s_measure e_adaptive e_mean e_max weighted_f iou dice st_iou map map50 map75 recall")
_ERRORS = bag("mae false_positive_area false_alarms")
_CONTROL = "swapped"
_CONTROLLED = _SCORES | _ERRORS | {"fires"}


def _measured(name: str) -> Hint | None:
    """What an evaluation measured, of the weights or the references that it names.

    >>> _measured("evaluation ema/mae").better, _measured("evaluation right/map50").better
    ('lower', 'higher')
    >>> _measured("evaluation swapped/map50").why
    'a control, detections with the references of another object: lower is better'
    """
    if not name.startswith(_EVALUATED):
        return None
    *of, what = name.removeprefix(_EVALUATED).split("/")
    if of == [_CONTROL] and what in _CONTROLLED:
        why = "a control, detections with the references of another object: lower is better"
        return Hint(role=Role.METRIC, why=why, better="lower")
    if what in _SCORES:
        return Hint(role=Role.METRIC, why="a score: higher is better", better="higher")
    if what in _ERRORS:
        return Hint(role=Role.METRIC, why="an error: lower is better", better="lower")
    return None


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
    hint=_measured,
)
