"""Ultralytics: ``results.csv`` and the table that its trainer prints.

    Epoch    GPU_mem   box_loss   cls_loss   dfl_loss  Instances       Size
      1/3      2.62G      1.155      3.455      1.243         31        640: 100%|███| 8/8
                 Class     Images  Instances      Box(P          R      mAP50  mAP50-95)

The losses are printed weighted, as means over the epoch so far; their sum is what is trained on.
"""

from __future__ import annotations

import re

from surefoot.journal.foreign.dialect import Dialect, Hint
from surefoot.journal.foreign.grammar import Reading
from surefoot.journal.series import Role

__all__ = ["ULTRALYTICS"]


def _head(text: str) -> Reading | None:
    """A line of this format's own is the head of a table; what is below is read by the head."""
    return None


def _metric(what: str) -> Hint:
    why = f"{what} of the validation after the epoch"
    return Hint(role=Role.METRIC, why=why, better="higher", group="validation")


ULTRALYTICS = Dialect(
    name="ultralytics",
    sign=re.compile(
        r"^\s*Epoch\s+(?:GPU_mem|gpu_mem)\b|^\s*Class\s+Images\s+(?:Instances|Labels|Targets)\b|\"train/(?:box|cls|dfl|seg|pose|obj)_loss\""
        r"|\"metrics/(?:mAP50|precision)"
    ),
    read=_head,
    hints={
        "box(p": _metric("precision"),
        "r": _metric("recall"),
        "map50": _metric("mean average precision at IoU 0.5"),
        "map50-95)": _metric("mean average precision at IoU 0.5 to 0.95"),
        "map50-95": _metric("mean average precision at IoU 0.5 to 0.95"),
        "time": Hint(role=Role.OTHER, why="seconds since the beginning", unit="seconds"),
        "p": _metric("precision"),
        "map@.5": _metric("mean average precision at IoU 0.5"),
        "map@.5:.95": _metric("mean average precision at IoU 0.5 to 0.95"),
        **{name: Hint(role=Role.TERM, why="a term, weighted") for name in ("box", "obj", "cls")},
        "labels": Hint(role=Role.OTHER, why="boxes in the batch"),
        "img_size": Hint(role=Role.OTHER, why="side of the images"),
        "instances": Hint(role=Role.OTHER, why="boxes in the batch"),
        "images": Hint(role=Role.OTHER, why="images of the validation"),
        "size": Hint(role=Role.OTHER, why="side of the images"),
    },
)
