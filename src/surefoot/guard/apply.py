"""The only file that touches how torch applies or skips a step.

Fused Adam, AdamW, SGD and Adagrad read two attributes of the optimizer inside their kernel:
``grad_scale`` (gradients are divided by it) and ``found_inf`` (exactly 1.0: leave weights and state
alone). Unscaling, averaging, clipping and refusal ride on them without a pass of their own. Every
other optimizer either raises or silently ignores the two, so it gets a plain division and is not
called at all for a refused step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from surefoot.errors import ConfigError, UsageError
from surefoot.guard.measure import local

__all__ = [
    "Hand",
    "OwnStep",
    "apply_folded",
    "apply_plain",
    "decides_on_device",
    "device_of",
    "divide",
    "folds",
    "seed_momentum",
]

# Exact classes: a subclass may override step() and lose what the kernel promises.
_FOLDING = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)


def folds(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's fused kernel takes ``grad_scale`` and ``found_inf``.

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> folds(torch.optim.AdamW([weight], fused=True)), folds(torch.optim.RMSprop([weight]))
    (True, False)
    """
    return (
        type(optimizer) in _FOLDING
        and bool(getattr(optimizer, "_step_supports_amp_scaling", False))
        and all(group.get("fused") for group in optimizer.param_groups)
    )


def device_of(optimizer: torch.optim.Optimizer) -> torch.device:
    """Where the first parameter is; a group may be empty."""
    return next(p.device for group in optimizer.param_groups for p in group["params"])


def decides_on_device(optimizer: torch.optim.Optimizer, decide: str) -> bool:
    """Whether the verdict falls on the device: ``"auto"`` takes it where it can, not on the CPU.

    Raises:
        ConfigError: a word that is none of the three, or an optimizer that leaves no choice.
    """
    if decide not in ("auto", "host", "device"):
        raise ConfigError(f"decide={decide!r}: 'auto', 'host' or 'device'.")
    can, device = folds(optimizer), device_of(optimizer)
    if decide == "device" and not can:
        raise ConfigError(
            f"decide='device': {type(optimizer).__name__} cannot be refused on the device; that "
            "takes Adam, AdamW, SGD or Adagrad with fused=True in every group."
        )
    return can and (decide == "device" or (decide == "auto" and device.type != "cpu"))


class Hand(Protocol):
    """Carries a verdict out. ``unit`` is the factor by which the gradients in memory are larger
    than the true one, ``divisor`` what clipping divides the true one by.
    """

    def apply(self, gradients: Sequence[Tensor], divisor: float, unit: float) -> None:
        """The host knows that the step is good."""
        ...

    def refuse(self) -> None:
        """The host knows that it is not."""
        ...

    def leave_to_device(self, divisor: Tensor | None, unit: Tensor | float, bad: Tensor) -> None:
        """The device knows, ``bad`` says it there; no divisor: nothing is clipped."""
        ...


class OwnStep:
    """The hand of a loop of one's own: calls ``optimizer.step()``.

    Args:
        optimizer: the one to step.
        rates: opened around the step; learning rates are lower in it after a rollback.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, rates: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._optimizer, self._rates, self._folds = optimizer, rates, folds(optimizer)

    def apply(self, gradients: Sequence[Tensor], divisor: float, unit: float) -> None:
        """See :class:`Hand`."""
        divisor *= unit
        with self._rates():
            if not self._folds:
                apply_plain(self._optimizer, gradients, divisor)
            elif divisor == 1.0:
                apply_folded(self._optimizer, divisor=None, refuse=None)
            else:
                tensor = torch.full((), divisor, device=gradients[0].device)
                apply_folded(self._optimizer, divisor=tensor, refuse=None)

    def refuse(self) -> None:
        """See :class:`Hand`."""

    def leave_to_device(self, divisor: Tensor | None, unit: Tensor | float, bad: Tensor) -> None:
        """See :class:`Hand`."""
        plain = divisor is None and isinstance(unit, float) and unit == 1.0
        whole = None if plain else torch.as_tensor(unit, device=bad.device)
        if whole is not None and divisor is not None:
            whole = whole * divisor
        with self._rates():
            apply_folded(
                self._optimizer, divisor=None if whole is None else whole.float(), refuse=bad
            )


def apply_folded(
    optimizer: torch.optim.Optimizer, *, divisor: Tensor | None, refuse: Tensor | None
) -> None:
    """One call to the fused kernel.

    Args:
        optimizer: one that :func:`folds`.
        divisor: 0-d float32 that the gradients are divided by; None leaves them alone (the kernel
            writes the divided gradients back, which costs a pass).
        refuse: 0-d bool; None means the host knows that the step is good.
    """
    _refuse_stale(optimizer)
    try:
        if divisor is not None:
            optimizer.grad_scale = divisor  # type: ignore[attr-defined]
        if refuse is not None:
            # The kernel compares with == 1: 2.0 or 0.5 would let the NaN through.
            optimizer.found_inf = refuse.to(torch.float32)  # type: ignore[attr-defined]
        optimizer.step()
    finally:
        for name in ("grad_scale", "found_inf"):
            if name in optimizer.__dict__:
                delattr(optimizer, name)


def apply_plain(
    optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor], divisor: float
) -> None:
    """Divide the gradients in place where needed, then step."""
    _refuse_stale(optimizer)
    if divisor != 1.0:
        divide(gradients, divisor)
    optimizer.step()


def divide(gradients: Sequence[Tensor], divisor: float) -> None:
    """Divide in place, of any layout."""
    dense = [local(g) for g in gradients if g.layout == torch.strided]
    if dense:
        torch._foreach_div_(dense, divisor)
    for gradient in gradients:
        if gradient.layout != torch.strided:
            gradient.div_(divisor)


def seed_momentum(optimizer: torch.optim.Optimizer) -> bool:
    """Give fused SGD its momentum buffers before a first step that the device may refuse.

    torch leaves them uninitialised memory when the kernel skips. Zeros give the same first step,
    to the bit, when ``dampening`` is 0.

    Returns:
        False where zeros would not be exact, so that the host has to decide the first step.
    """
    if type(optimizer) is not torch.optim.SGD:
        return True
    for group in optimizer.param_groups:
        if group["momentum"] == 0.0:
            continue
        fresh = [p for p in group["params"] if "momentum_buffer" not in optimizer.state[p]]
        if fresh and group["dampening"] != 0.0:
            return False
        for parameter in fresh:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return True


def _refuse_stale(optimizer: torch.optim.Optimizer) -> None:
    stale = [name for name in ("grad_scale", "found_inf") if name in optimizer.__dict__]
    if stale:
        raise UsageError(
            f"guard.step: the optimizer carries {' and '.join(stale)} from somebody else (a "
            "GradScaler, or a step that raised half-way); fused kernels would obey it. The guard "
            "owns both: drive the optimizer with the guard alone, or delete the attribute."
        )
