"""The four calls of a GradScaler that is not ours, in the one order that is right.

    scaler.scale(loss).backward()     every micro-batch
    scaler.unscale_(optimizer)        once per optimizer step, before clipping
    scaler.step(optimizer)            once per optimizer step
    scaler.update()                   once, after the last optimizer's step

What torch answers to another order names the call, not the line to move; clipping too early and a
loss that was never scaled it does not notice at all.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch

from surefoot.errors import UsageError
from surefoot.guard.measure import ParameterTable

__all__ = ["ScalerWatch"]

_LOOKS = 12
"""Steps whose scaled norm is read; enough to see a clipping that happens at every step."""
_ALIKE = 3
"""So many equal norms in a row come from a threshold, not from data."""
_METHODS = ("scale", "unscale_", "step", "update")


class ScalerWatch:
    """Stands in front of a scaler's methods for one optimizer.

    Args:
        scaler: the loop's own; enabled.
        table: the optimizer's parameters.
        skipped: called after a ``scaler.step`` that did not reach the optimizer.
    """

    def __init__(
        self, scaler: torch.amp.GradScaler, table: ParameterTable, skipped: Callable[[], None]
    ) -> None:
        self._scaler, self._table, self._skipped = scaler, table, skipped
        self._inner = {name: getattr(scaler, name) for name in _METHODS}
        scaler.scale, scaler.unscale_ = self._scale, self._unscale  # type: ignore[method-assign]
        scaler.step, scaler.update = self._step, self._update  # type: ignore[method-assign]
        self.reached = False
        """The optimizer's own step was called."""
        self._unscaled = self._stepped = False
        self._losses = self._looks = 0
        self._norms: list[float] = []
        self._told: set[str] = set()

    def remove(self) -> None:
        """Step aside; a scaler that was watched twice is left by the later watch first."""
        for name in _METHODS:
            self._scaler.__dict__.pop(name, None)
            if getattr(self._scaler, name) != self._inner[name]:
                setattr(self._scaler, name, self._inner[name])

    def _is_ours(self, optimizer: Any) -> bool:
        return getattr(optimizer, "optimizer", optimizer) is self._table.optimizer

    def _scale(self, outputs: Any) -> Any:
        self._losses += 1
        return self._inner["scale"](outputs)

    def _unscale(self, optimizer: Any) -> None:
        if not self._is_ours(optimizer):
            return self._inner["unscale_"](optimizer)
        if self._stepped:
            raise UsageError(
                "scaler.unscale_(optimizer) was called after scaler.step(optimizer). Move it, and "
                "the clipping behind it, before scaler.step(optimizer)."
            )
        if self._unscaled:
            raise UsageError(
                "scaler.unscale_(optimizer) was called a second time before scaler.update(). With "
                "gradient accumulation that happens when it runs for every micro-batch. Move "
                "scaler.unscale_(optimizer), and the clipping behind it, into the block that runs "
                "once per optimizer step, right before scaler.step(optimizer)."
            )
        self._look_for_early_clipping()
        self._unscaled = True
        return self._inner["unscale_"](optimizer)

    def _step(self, optimizer: Any, *args: Any, **kwargs: Any) -> Any:
        if not self._is_ours(optimizer):
            return self._inner["step"](optimizer, *args, **kwargs)
        if self._stepped:
            raise UsageError(
                "scaler.step(optimizer) was called a second time without scaler.update() between. "
                "Add scaler.update() right after scaler.step(optimizer), in the same block."
            )
        if not self._losses:
            self._tell(
                "scaler.step(optimizer): no loss went through scaler.scale() since the last step, "
                "so the gradients are divided by a loss scale that they were never multiplied by. "
                "Replace loss.backward() by scaler.scale(loss).backward()."
            )
        if not self._unscaled:
            self._look_for_early_clipping()
        self.reached = False
        result = self._inner["step"](optimizer, *args, **kwargs)
        self._stepped = True
        if not self.reached:
            self._skipped()
        return result

    def _update(self, new_scale: Any = None) -> None:
        try:
            self._inner["update"](new_scale)
        except AssertionError as problem:
            if "inf checks" not in str(problem):
                raise
            raise UsageError(
                "scaler.update() was called though no gradient was looked at since the last "
                "update. Move it behind scaler.step(optimizer), into the block that runs once per "
                "optimizer step."
            ) from problem
        self._unscaled = self._stepped = False
        self._losses = 0

    def _look_for_early_clipping(self) -> None:
        if self._looks >= _LOOKS or all(p.grad is None for p in self._table.parameters):
            return
        self._looks += 1
        norm, scale = float(self._table.measure().total), float(self._scaler.get_scale())
        same = bool(self._norms) and math.isclose(norm, self._norms[-1], rel_tol=1e-4)
        self._norms = [*self._norms, norm] if same else [norm]
        if len(self._norms) >= _ALIKE and norm > 0.0 and scale > 1.0:
            self._looks = _LOOKS
            self._tell(
                f"The gradients had the norm {norm:.4g} {_ALIKE} steps in a row before "
                f"scaler.unscale_ saw them: they are clipped while still multiplied by the loss "
                f"scale {scale:.0f}, so the true threshold is {norm / scale:.2g}. Move "
                "scaler.unscale_(optimizer) in front of the clipping, behind backward()."
            )

    def _tell(self, text: str) -> None:
        if text[:40] not in self._told:
            self._told.add(text[:40])
            warnings.warn(f"surefoot: {text}", UserWarning, stacklevel=4)
