"""A checkpoint before it is written: what is to be in it, and whether that can be right."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor

from surefoot.checkpoint.state import check_finite_state, check_state
from surefoot.checkpoint.weights import check_finite_weights, check_weights
from surefoot.errors import UsageError

__all__ = ["Draft"]

_WEIGHTS_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


@dataclass(frozen=True)
class Draft:
    """Arguments of a save that were found to make sense."""

    state: Mapping[str, Any]
    weights: Mapping[str, Mapping[str, Tensor]]
    facts: Mapping[str, Any]
    """What the manifest says of it, beside its files."""

    @property
    def step(self) -> int:
        """Optimizer step it is taken after."""
        return self.facts["step"]

    @classmethod
    def of(
        cls,
        step: int,
        state: Mapping[str, Any],
        *,
        weights: Mapping[str, Mapping[str, Tensor]],
        metric: float | None = None,
        measured_on: str | None = None,
        best: bool = False,
    ) -> Self:
        """See :meth:`CheckpointStore.save`; no tensor's values are looked at.

        Raises:
            UsageError: arguments that cannot be right, whatever the disk does.
        """
        if step < 0:
            raise UsageError(f"checkpoint: step {step}; steps are counted from 0.")
        facts = {"step": step, **_judged(weights, metric, measured_on, best)}
        check_state(state)
        for name, tensors in weights.items():
            check_weights(name, tensors)
        return cls(state, weights, facts)

    def check_finite(self) -> None:
        """Look at every value.

        Raises:
            CheckpointError: some are not finite.
        """
        for name, tensors in self.weights.items():
            check_finite_weights(name, tensors)
        check_finite_state(self.state)


def _judged(
    weights: Mapping[str, Any], metric: float | None, measured_on: str | None, best: bool
) -> dict[str, Any]:
    """What the manifest says of the metric; refuses what it could not say."""
    if not weights:
        raise UsageError("checkpoint: no weights to save; give at least weights={'model': ...}.")
    if odd := [name for name in weights if not _WEIGHTS_NAME.fullmatch(name)]:
        raise UsageError(f"checkpoint: weights {odd}: letters, digits, - and _ make a name.")
    if measured_on is not None and measured_on not in weights:
        raise UsageError(
            f"checkpoint: measured_on={measured_on!r} is none of the weights {sorted(weights)}."
        )
    if best and (metric is None or math.isnan(metric)):
        raise UsageError(f"checkpoint: saved as best with the metric {metric}; best by what?")
    if metric is None:
        return {"metric": None, "measured_on": None, "best": False}
    if measured_on is None and len(weights) > 1:
        raise UsageError(
            f"checkpoint: the metric was measured on one of {sorted(weights)}; say which by "
            "measured_on=."
        )
    return {
        "metric": float(metric),
        "measured_on": measured_on or next(iter(weights)),
        "best": best,
    }
