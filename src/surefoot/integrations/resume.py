"""What a checkpoint holds for the guard, where a framework loads it before there can be a guard."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from surefoot.integrations.losses import innermost

__all__ = ["LoadedState", "guard_state", "restore_guard"]

_KEY = "surefoot"
"""Under which an attachment lies in the state of its optimizer."""


def guard_state(optimizer: torch.optim.Optimizer) -> Any:
    """What the guard that is attached to this optimizer keeps in a checkpoint."""
    return optimizer.state_dict()[_KEY]


def restore_guard(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """The inverse of :func:`guard_state`; the optimizer's own state stays what it is."""
    optimizer.load_state_dict({**optimizer.state_dict(), _KEY: state})


class LoadedState:
    """Keeps the guard's part of a loaded optimizer state, which the optimizer itself drops.

    Args:
        host: the object that makes the optimizer.
        maker: name of its public method that does so; it is followed by ours until :meth:`remove`.
    """

    def __init__(self, host: Any, maker: str) -> None:
        self._host, self._maker = host, maker
        self._make = getattr(host, maker)
        self._state: Any = None
        self._handle: RemovableHandle | None = None
        setattr(host, maker, self._made)

    def hand_on(self, optimizer: torch.optim.Optimizer) -> None:
        """Give what was kept to the guard that is attached to this optimizer now."""
        self._forget()
        state, self._state = self._state, None
        if state is not None:
            restore_guard(optimizer, state)

    def remove(self) -> None:
        """The host's method is its own again."""
        self._forget()
        self._host.__dict__.pop(self._maker, None)

    def _made(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = self._make(*args, **kwargs)
        self._forget()
        self._state = None
        self._handle = innermost(optimizer).register_load_state_dict_pre_hook(self._loading)
        return optimizer

    def _loading(self, optimizer: Any, state: dict[str, Any]) -> None:
        self._state = state.get(_KEY, self._state)

    def _forget(self) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
