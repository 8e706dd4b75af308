"""Arithmetic whose gradients are as safe as its values."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch
from torch import Tensor

from surefoot.errors import ConfigError

__all__ = ["fp32_island", "rescale_above", "safe_divide", "safe_norm", "unit_vectors"]

P = ParamSpec("P")
T = TypeVar("T")


def fp32_island(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function compute in float32 whatever it is called with and wherever it is called from.

    Every floating tensor among the arguments becomes float32 before any arithmetic (float64 too:
    one precision), autocast is off inside, and what comes out stays float32. Gradients return in
    the dtype of the argument.

    >>> @fp32_island
    ... def square(x: Tensor) -> Tensor:
    ...     return x * x
    >>> square(torch.tensor(300.0, dtype=torch.float16))  # inf in float16
    tensor(90000.)
    """

    @functools.wraps(function)
    def island(*args: P.args, **kwargs: P.kwargs) -> T:
        given = (*args, *kwargs.values())
        device = next((a.device.type for a in given if isinstance(a, Tensor)), "cpu")
        named = {name: _float32(a) for name, a in kwargs.items()}
        with torch.autocast(device, enabled=False):
            return cast("Callable[..., T]", function)(*map(_float32, args), **named)

    return island


def _float32(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def safe_norm(x: Tensor, dim: int = -1, *, keepdim: bool = False) -> Tensor:
    """L2 norm whose gradient at the zero vector is 0, not NaN, and whose squares cannot overflow.

    >>> x = torch.zeros(2, requires_grad=True)
    >>> safe_norm(x).backward()
    >>> x.grad
    tensor([0., 0.])
    >>> safe_norm(torch.tensor([3e30, 4e30]))
    tensor(5.0000e+30)
    """
    largest = x.detach().abs().amax(dim, keepdim=True)
    nonzero = largest != 0
    scale = torch.where(nonzero, largest, 1.0)
    squares = (x / scale).square().sum(dim, keepdim=True)
    # The square root never sees the 0, so that its infinite slope there is not multiplied by 0.
    norm = torch.where(nonzero, torch.where(nonzero, squares, 1.0).sqrt() * scale, 0.0)
    return norm if keepdim else norm.squeeze(dim)


def safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """``numerator / denominator``, and 0 with gradient 0 where the denominator is 0.

    >>> safe_divide(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0]))
    tensor([0.5000, 0.0000])
    """
    defined = denominator != 0
    return torch.where(defined, numerator, 0.0) / torch.where(defined, denominator, 1.0)


def unit_vectors(x: Tensor, *, floor: float = 1e-3) -> Tensor:
    """Vectors of length 1 along the last axis: ``x / sqrt(|x|^2 + floor^2)``.

    A vector much shorter than ``floor`` stays near 0 instead of becoming a direction made of
    rounding errors, and no gradient is larger than ``1 / floor``, which float16 can hold. At length
    1 the result is 5e-7 short.

    >>> unit_vectors(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    return x / (x.square().sum(-1, keepdim=True) + floor * floor).sqrt()


def rescale_above(loss: Tensor, limit: float) -> Tensor:
    """Bound a loss without cutting its gradient: above the limit, loss x limit / loss.detach().

    A clamp stops learning above its limit; this keeps the direction of the gradient and shortens it
    by ``limit / loss``. What is not finite stays so: it becomes NaN, which a guard refuses.

    It counts nothing. A loss that is often above its limit is a finding, so count beside it, on the
    device: ``above = (loss.detach() > limit).sum()``.

    Args:
        loss: any shape, each element for itself.
        limit: above 0.

    Raises:
        ConfigError: ``limit`` is not above 0 and finite.

    >>> loss = torch.tensor([3.0, 40.0], requires_grad=True)
    >>> bounded = rescale_above(loss, 10.0)
    >>> bounded.sum().backward()
    >>> bounded.tolist(), loss.grad.tolist()
    ([3.0, 10.0], [1.0, 0.25])
    """
    if not 0 < limit < math.inf:
        raise ConfigError(f"rescale_above: limit {limit}; expected a finite number above 0.")
    value = loss.detach()
    return loss * torch.where(value > limit, limit / value, 1.0)
