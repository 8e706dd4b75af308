"""How a step that somebody else has called is carried out: by what its hooks leave in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack

import torch
from torch import Tensor

from surefoot.guard.apply import divide, folds
from surefoot.guard.measure import ParameterTable

__all__ = ["HookedStep"]


class HookedStep:
    """The hand of :func:`~surefoot.guard.attach`: the step runs after it, whatever it leaves.

    Args:
        optimizer: whose step is under way.
        table: its parameters.
        rates: opened until :meth:`put_back`; learning rates are lower in it after a rollback.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        table: ParameterTable,
        rates: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self._optimizer, self._table, self._rates = optimizer, table, rates
        self._folds = folds(optimizer)
        self._hidden: list[tuple[Tensor, Tensor]] = []
        self._borrowed: dict[str, Tensor | None] = {}
        self._open = ExitStack()

    def apply(self, gradients: Sequence[Tensor], divisor: float, unit: float) -> None:
        """See :class:`~surefoot.guard.apply.Hand`."""
        self._open.enter_context(self._rates())
        theirs = self._optimizer.__dict__.get("found_inf")
        if isinstance(theirs, Tensor) and theirs.ndim:  # ShardedGradScaler's; the kernel wants 0-d
            self._lend("found_inf", theirs.reshape(()))
        if divisor == 1.0:
            return
        if self._folds:
            self._lend("grad_scale", torch.full((), divisor * unit, device=gradients[0].device))
        else:
            divide(gradients, divisor)

    def refuse(self) -> None:
        """Without gradients the step that follows does nothing, whatever optimizer it is."""
        self._hidden = [(p, p.grad) for p in self._table.parameters if p.grad is not None]
        for parameter, _ in self._hidden:
            parameter.grad = None

    def leave_to_device(self, divisor: Tensor | None, unit: Tensor | float, bad: Tensor) -> None:
        """See :class:`~surefoot.guard.apply.Hand`."""
        self._open.enter_context(self._rates())
        self._lend("found_inf", bad.float())
        if divisor is not None:
            self._lend("grad_scale", (divisor * unit).float())

    def put_back(self) -> None:
        """The step is over, or raised: everything it was lent goes back."""
        for parameter, gradient in self._hidden:
            parameter.grad = gradient
        for name, value in self._borrowed.items():
            if value is None:
                self._optimizer.__dict__.pop(name, None)
            else:
                setattr(self._optimizer, name, value)
        self._hidden, self._borrowed = [], {}
        self._open.close()

    def _lend(self, name: str, value: Tensor) -> None:
        self._borrowed[name] = self._optimizer.__dict__.get(name)
        setattr(self._optimizer, name, value)
