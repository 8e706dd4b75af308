"""surefoot: training that does not fall over.

The names below are loaded when they are first touched, so that ``import surefoot`` needs no torch.

>>> import surefoot
>>> surefoot.ReferenceDetector.__module__, surefoot.Segmenter.__module__
('surefoot.recipes.refdet.finder', 'surefoot.recipes.camouflage.segmenter')
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from surefoot.errors import SurefootError, TrainingDiverged
    from surefoot.guard import Guard, Policy, attach
    from surefoot.journal import JournalReader, JournalWriter
    from surefoot.recipes.camouflage.segmenter import Segmenter
    from surefoot.recipes.refdet.finder import ReferenceDetector
    from surefoot.records import Cause, StepRecord, Verdict
    from surefoot.shapes import LossTerms

_HOME = {
    "Cause": "records",
    "Guard": "guard",
    "JournalReader": "journal",
    "JournalWriter": "journal",
    "LossTerms": "shapes",
    "Policy": "guard",
    "ReferenceDetector": "recipes.refdet.finder",
    "Segmenter": "recipes.camouflage.segmenter",
    "StepRecord": "records",
    "SurefootError": "errors",
    "TrainingDiverged": "errors",
    "Verdict": "records",
    "attach": "guard",
}

__version__ = "0.1.0"
__all__ = [
    "Cause",
    "Guard",
    "JournalReader",
    "JournalWriter",
    "LossTerms",
    "Policy",
    "ReferenceDetector",
    "Segmenter",
    "StepRecord",
    "SurefootError",
    "TrainingDiverged",
    "Verdict",
    "__version__",
    "attach",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'surefoot' has no attribute {name!r}")
    return getattr(import_module(f"surefoot.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
