"""The columns of the table, in its order."""

from __future__ import annotations

from benchmarks.chaos.columns.attached import (
    OnAccelerate,
    OnAmp,
    OnLightning,
    OnPlain,
    OnTransformers,
)
from benchmarks.chaos.columns.base import Column
from benchmarks.chaos.columns.hand import Amp, Plain
from benchmarks.chaos.columns.huggingface import Accelerate, Transformers
from benchmarks.chaos.columns.lightning import Lightning
from benchmarks.chaos.columns.rivals import Arc, StabilityGuard, ZClip
from benchmarks.chaos.columns.surefoot import Surefoot

__all__ = ["COLUMNS", "Column"]

_IN_ORDER: tuple[Column, ...] = (
    Plain(),
    Amp(),
    Lightning(),
    Transformers(),
    Accelerate(),
    Arc(),
    StabilityGuard("skip"),
    StabilityGuard("rollback"),
    ZClip(),
    Surefoot(),
    OnPlain(),
    OnAmp(),
    OnLightning(),
    OnTransformers(),
    OnAccelerate(),
)
COLUMNS: dict[str, Column] = {column.name: column for column in _IN_ORDER}
