"""Which optimizer a loss belongs to, where a framework tells of losses and of steps apart."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from surefoot.guard import Attachment
from surefoot.shapes import LossTerms

__all__ = ["LossRoute", "innermost"]

_WAITING = 1024
"""Losses that may wait for a step; with more, the oldest belong to nobody who is guarded."""


class LossRoute:
    """Hands each loss to the optimizer that steps next after it.

    With one optimizer there is no question. With several, a loss that comes while a step is under
    way (out of its closure) is that step's; any other waits for the next step.

    Args:
        knows_closures: every closure's loss is told by :meth:`observe` as well. Then what the
            closure gives is kept from the guard, which would count the loss twice.
    """

    def __init__(self, *, knows_closures: bool = False) -> None:
        self._knows_closures = knows_closures
        self._guards: dict[int, Attachment] = {}
        self._handles: dict[int, list[RemovableHandle]] = {}
        self._waiting: deque[tuple[Tensor | LossTerms, Sequence[str]]] = deque(maxlen=_WAITING)
        self._under_way: Attachment | None = None

    def __len__(self) -> int:
        return len(self._guards)

    def add(self, optimizer: torch.optim.Optimizer, attach: Callable[[], Attachment]) -> Attachment:
        """Attach to an optimizer that is in no wrapper; this hook has to come before the guard's.

        Args:
            optimizer: the one whose steps are counted.
            attach: makes the attachment.
        """
        before = optimizer.register_step_pre_hook(self._before)
        try:
            guard = attach()
        except BaseException:
            before.remove()
            raise
        self._guards[id(optimizer)] = guard
        self._handles[id(optimizer)] = [before, optimizer.register_step_post_hook(self._after)]
        return guard

    def remove(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the hooks off again, the guard's own as well."""
        for handle in self._handles.pop(id(optimizer)):
            handle.remove()
        self._guards.pop(id(optimizer)).detach()

    def observe(self, loss: Tensor | LossTerms, sample_ids: Sequence[str] = ()) -> None:
        """A micro-batch's loss, true size; it is kept without its graph."""
        kept = loss.detach()
        only = next(iter(self._guards.values())) if len(self._guards) == 1 else self._under_way
        if only is None:
            self._waiting.append((kept, sample_ids))
        else:
            only.observe(kept, sample_ids=sample_ids)

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        self._under_way = self._guards[id(optimizer)]
        while self._waiting:
            loss, ids = self._waiting.popleft()
            self._under_way.observe(loss, sample_ids=ids)
        if not self._knows_closures:
            return None
        silent = lambda a: partial(_run, a) if callable(a) else a  # noqa: E731
        return tuple(map(silent, args)), {name: silent(a) for name, a in kwargs.items()}

    def _after(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        self._under_way = None


def _run(closure: Callable[[], object]) -> None:
    closure()


def innermost(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer whose ``step`` runs the hooks, out of a framework's wrapper."""
    inner = getattr(optimizer, "__dict__", {}).get("optimizer")
    inner = getattr(optimizer, "__dict__", {}).get("_optimizer", inner)
    return innermost(inner) if isinstance(inner, torch.optim.Optimizer) else optimizer
