"""The formats, in the order in which they are asked."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from surefoot.journal.foreign.dialect import Dialect, Hint
from surefoot.journal.foreign.dialects.arrows import ARROWS
from surefoot.journal.foreign.dialects.caffe import CAFFE
from surefoot.journal.foreign.dialects.darknet import DARKNET
from surefoot.journal.foreign.dialects.detectron import DETECTRON
from surefoot.journal.foreign.dialects.fairseq import FAIRSEQ
from surefoot.journal.foreign.dialects.gans import CYCLEGAN
from surefoot.journal.foreign.dialects.keras import KERAS
from surefoot.journal.foreign.dialects.lightning import LIGHTNING
from surefoot.journal.foreign.dialects.megatron import DEEPSPEED, MEGATRON
from surefoot.journal.foreign.dialects.mxnet import MXNET
from surefoot.journal.foreign.dialects.nanogpt import NANOGPT
from surefoot.journal.foreign.dialects.openmmlab import OPENMMLAB
from surefoot.journal.foreign.dialects.own import OWN
from surefoot.journal.foreign.dialects.paddle import PADDLE
from surefoot.journal.foreign.dialects.speech import ESPNET, MARIAN
from surefoot.journal.foreign.dialects.transformers import ACTIVATIONS, TRANSFORMERS
from surefoot.journal.foreign.dialects.ultralytics import ULTRALYTICS
from surefoot.journal.foreign.dialects.vision_loops import TIMM, TORCHVISION

__all__ = ["DIALECTS", "dialect_of", "format_of_names", "hint_for"]

DIALECTS: tuple[Dialect, ...] = (
    OWN,
    ULTRALYTICS,
    OPENMMLAB,
    DETECTRON,
    FAIRSEQ,
    MEGATRON,
    DEEPSPEED,
    TRANSFORMERS,
    LIGHTNING,
    TIMM,
    TORCHVISION,
    NANOGPT,
    KERAS,
    CAFFE,
    MXNET,
    DARKNET,
    ESPNET,
    MARIAN,
    PADDLE,
    CYCLEGAN,
    ACTIVATIONS,
    ARROWS,
)
"""Asked in this order; the first whose sign is in a line reads it."""


def dialect_of(text: str) -> Dialect | None:
    """The format that knows a line, or None.

    >>> dialect_of("iter 10: loss 2.5, time 12.3ms").name, dialect_of("hello") is None
    ('nanogpt', True)
    """
    return next((d for d in DIALECTS if d.sign.search(text)), None)


def format_of_names(names: Iterable[str]) -> str:
    """The format whose sign is in a row of names, such as the head of a CSV file.

    >>> format_of_names(["epoch", "train/box_loss"]), format_of_names(["a", "b"])
    ('ultralytics', 'text')
    """
    return _format_of(tuple(names))


@lru_cache(maxsize=512)
def _format_of(names: tuple[str, ...]) -> str:
    found = dialect_of("".join(f'"{name}": ' for name in names))
    return found.name if found is not None else "text"


def hint_for(format: str, name: str) -> Hint | None:
    """What a name means in a format, where the format has something to say about it."""
    said = next((d for d in DIALECTS if d.name == format), None)
    if said is None:
        return None
    known, name = said.hints.get(name.lower()), name.lower()
    asked = known if known is not None or said.hint is None else said.hint(name)
    return said.rest if asked is None else asked
