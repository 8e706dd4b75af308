"""Gradients that nobody zeroed: the next backward adds to them, and training goes astray slowly."""

from __future__ import annotations

import warnings
import weakref

from torch import Tensor

from surefoot.guard.measure import ParameterTable

__all__ = ["GradientMark", "LeftoverWatch"]

_SURE = 3
"""Steps in a row; one alone may be meant."""


class GradientMark:
    """One gradient tensor as it was at a moment: the same one, and how often it was changed."""

    def __init__(self, table: ParameterTable) -> None:
        self._table = table
        self._last: weakref.ref[Tensor] | None = None
        self._version = 0

    def set(self) -> None:
        """Remember it as it is now."""
        gradient = self._gradient()
        self._last = None if gradient is None else weakref.ref(gradient)
        self._version = 0 if gradient is None else gradient._version

    def changes(self) -> int:
        """How often it was changed in place since; -1 where it is another one, or gone."""
        gradient = self._gradient()
        last = self._last() if self._last is not None else None
        if gradient is None and last is None and self._last is None:
            return 0
        return -1 if gradient is None or gradient is not last else gradient._version - self._version

    def _gradient(self) -> Tensor | None:
        return next((p.grad for p in self._table.parameters if p.grad is not None), None)


class LeftoverWatch:
    """Looks at one gradient tensor before and after each step of somebody else's loop.

    Zeroing replaces the tensor or changes it once; each backward changes it once. As many changes
    as micro-batches means that nothing zeroed it.
    """

    def __init__(self, table: ParameterTable) -> None:
        self._mark, self._streak = GradientMark(table), 0
        self._begun = False

    def before(self, micro_batches: int) -> bool:
        """A step begins; whether its gradients lie on top of those of the step before.

        Args:
            micro_batches: how many there were; 0 where it is not known, then one is assumed.
        """
        kept = self._begun and self._mark.changes() == max(micro_batches, 1)
        self._streak = self._streak + 1 if kept else 0
        if self._streak == _SURE:
            warnings.warn(
                f"surefoot: the gradients of the last {_SURE} steps were never zeroed, so each "
                "step repeats all the ones before it. Call optimizer.zero_grad() after "
                "optimizer.step().",
                UserWarning,
                stacklevel=5,
            )
        return self._streak >= _SURE

    def after(self) -> None:
        """The step is over."""
        self._mark.set()
        self._begun = True
