"""How far a gradient is shortened: strategies that share the one norm pass, and their composition.

Every rule looks at the true gradient's norms and proposes one number that the whole gradient is
divided by, which costs nothing (it rides on the fused kernel), or a factor for each tensor, which
costs one multiplication pass when any of them is not 1. Rules that learn from past norms learn from
accepted steps only. Everything is a tensor on the gradients' device; nothing is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from surefoot.errors import ConfigError
from surefoot.guard.measure import tensor_norms

__all__ = [
    "AdaptiveClip",
    "Clip",
    "GroupClip",
    "NormClip",
    "PercentileClip",
    "Seen",
    "Shortening",
    "ValueClip",
    "ZScoreClip",
    "as_clip",
]


@dataclass(frozen=True, slots=True)
class Seen:
    """What the one read pass found, in true (unscaled) units."""

    norm: Tensor
    """0-d: global L2 norm."""
    norms: Tensor
    """P: L2 norm of each tensor."""
    parameters: Sequence[Tensor]
    """P: what the gradients belong to."""
    groups: Sequence[int]
    """P: number of each one's parameter group."""


class Shortening(NamedTuple):
    """What a rule proposes."""

    divisor: Tensor
    """0-d, 1 or more: the whole gradient is divided by it."""
    factors: Tensor | None = None
    """P, 1 or less: each tensor is multiplied by its own, before the division; None for none."""
    limit: float | None = None
    """Largest absolute value of an element; None for none."""


class Clip(Protocol):
    """A clipping rule."""

    def propose(self, seen: Seen) -> Shortening:
        """How far this gradient is to be shortened."""
        ...

    def learn(self, norm: Tensor, good: Tensor) -> None:
        """Take in the norm of a step where the 0-d bool ``good`` says that it was applied."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the rule has learnt, as plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        ...


class _Stateless:
    """A rule that learns nothing."""

    def learn(self, norm: Tensor, good: Tensor) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


class NormClip(_Stateless):
    """Shorten the whole gradient to a global L2 norm (Pascanu et al. 2013, algorithm 1).

    The same rule as ``torch.nn.utils.clip_grad_norm_``: a gradient longer than ``max_norm`` is
    multiplied by ``max_norm / (norm + 1e-6)``.

    >>> NormClip(1.0).divisor(4.0)
    4.000001
    """

    def __init__(self, max_norm: float) -> None:
        self.max_norm = _positive("clip", max_norm, "the largest allowed gradient norm")

    def divisor(self, norm: float) -> float:
        """The rule itself, for a norm that is on the host already."""
        return max(1.0, (norm + 1e-6) / self.max_norm)

    def propose(self, seen: Seen) -> Shortening:
        """See :class:`Clip`."""
        return Shortening(torch.clamp((seen.norm + 1e-6) / self.max_norm, min=1.0))


class ValueClip(_Stateless):
    """Cut every element off at plus and minus ``limit``, as ``clip_grad_value_`` does.

    It turns the gradient, which shortening does not, and takes a pass of its own.
    """

    def __init__(self, limit: float) -> None:
        self.limit = _positive("ValueClip", limit, "the largest allowed element")

    def propose(self, seen: Seen) -> Shortening:
        """See :class:`Clip`."""
        return Shortening(torch.ones_like(seen.norm), limit=self.limit)


class AdaptiveClip(_Stateless):
    """Shorten each tensor to a share of its weight's norm (Brock et al. 2021, "High-Performance
    Large-Scale Image Recognition Without Normalization", section 4, taken per tensor).

    Args:
        factor: a tensor's gradient is at most ``factor * max(|weight|, least)`` long.
        least: for weights that start at zero.
    """

    def __init__(self, factor: float = 0.01, *, least: float = 1e-3) -> None:
        self._factor = _positive("AdaptiveClip.factor", factor, "a share of the weight's norm")
        self._least = _positive("AdaptiveClip.least", least, "the smallest weight norm")

    def propose(self, seen: Seen) -> Shortening:
        """See :class:`Clip`."""
        with torch.no_grad():
            weights = tensor_norms(seen.parameters)
        limit = self._factor * weights.clamp(min=self._least).to(seen.norms)
        factors = torch.clamp(limit / seen.norms.clamp(min=1e-30), max=1.0)
        return Shortening(torch.ones_like(seen.norm), factors)


class PercentileClip:
    """Shorten to a percentile of the recent norms (Seetharaman et al. 2020, "AutoClip").

    Args:
        percentile: of the norms of accepted steps; the paper recommends 10.
        history: how many are remembered.
        warmup: accepted steps before anything is shortened.
    """

    def __init__(self, percentile: float = 10.0, *, history: int = 1024, warmup: int = 20) -> None:
        if not 0.0 < percentile <= 100.0:
            raise ConfigError(f"PercentileClip: percentile in (0, 100], not {percentile}.")
        if not 1 <= warmup <= history:
            raise ConfigError(f"PercentileClip: 1 <= warmup <= history, not {warmup}, {history}.")
        self._share, self._history, self._warmup = percentile / 100.0, history, warmup
        self._norms = torch.full((history,), math.nan)
        self._count = torch.zeros((), dtype=torch.int64)

    def propose(self, seen: Seen) -> Shortening:
        """See :class:`Clip`."""
        self._follow(seen.norm)
        threshold = torch.nanquantile(self._norms, self._share)
        divisor = torch.clamp(seen.norm / threshold, min=1.0)
        return Shortening(torch.where(self._count >= self._warmup, divisor, 1.0))

    def learn(self, norm: Tensor, good: Tensor) -> None:
        """See :class:`Clip`; the norm before clipping is what counts."""
        self._follow(norm)
        place = (self._count % self._history)[None]
        new = torch.where(good, norm.float(), self._norms.gather(0, place))
        self._norms.scatter_(0, place, new)
        self._count += good

    def _follow(self, norm: Tensor) -> None:
        if self._norms.device != norm.device:
            self._norms, self._count = self._norms.to(norm.device), self._count.to(norm.device)

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Clip`."""
        count = int(self._count)
        return {"norms": self._norms.tolist()[:count], "count": count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`Clip`; a history of another length starts anew."""
        norms, count = state["norms"], state["count"]
        if len(norms) == min(count, self._history):
            padded = norms + [math.nan] * (self._history - len(norms))
            self._norms = torch.tensor(padded, device=self._norms.device)
            self._count = torch.full_like(self._count, count)


class ZScoreClip:
    """Shorten a norm that stands out of its moving average (Kumar et al. 2025, "ZClip").

    A norm of more than ``z`` deviations above the mean is shortened to ``mean + z^2 / its own z``
    deviations, the paper's reciprocal rule. Mean and variance move with the shortened norm of
    accepted steps, so a spike cannot raise them, and a NaN never enters.

    Args:
        z: deviations that are still ordinary.
        decay: of the exponential moving averages.
        warmup: accepted steps before anything is shortened.
    """

    def __init__(self, z: float = 2.5, *, decay: float = 0.97, warmup: int = 25) -> None:
        self._z = _positive("ZScoreClip.z", z, "deviations above the mean")
        if not 0.0 < decay < 1.0 or warmup < 2:
            raise ConfigError(
                f"ZScoreClip: decay between 0 and 1 and warmup at least 2, not {decay}, {warmup}."
            )
        self._decay, self._warmup = decay, warmup
        self._count, self._mean, self._variance = torch.zeros(3).unbind()

    def propose(self, seen: Seen) -> Shortening:
        """See :class:`Clip`."""
        return Shortening(seen.norm / self._shortened(seen.norm))

    def _shortened(self, norm: Tensor) -> Tensor:
        self._follow(norm)
        deviation = self._variance.sqrt().clamp(min=1e-12)
        z = (norm - self._mean) / deviation
        limit = self._mean + self._z**2 / z * deviation
        out = (self._count >= self._warmup) & (z > self._z)
        return torch.where(out, limit, norm)

    def learn(self, norm: Tensor, good: Tensor) -> None:
        """See :class:`Clip`."""
        value = self._shortened(norm)
        # During warm-up a plain running mean and variance (Welford), afterwards the moving ones.
        share = torch.clamp(1.0 / (self._count + 1.0), min=1.0 - self._decay)
        step = torch.where(good, value - self._mean, 0.0)
        self._variance = torch.where(
            good, (1.0 - share) * (self._variance + share * step.square()), self._variance
        )
        self._mean = self._mean + share * step
        self._count = self._count + good

    def _follow(self, norm: Tensor) -> None:
        if self._mean.device != norm.device:
            moved = (self._count, self._mean, self._variance)
            self._count, self._mean, self._variance = (t.to(norm.device) for t in moved)

    def state_dict(self) -> dict[str, Any]:
        """See :class:`Clip`."""
        return {
            "count": float(self._count),
            "mean": float(self._mean),
            "variance": float(self._variance),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :class:`Clip`."""
        self._count = torch.full_like(self._count, state["count"])
        self._mean = torch.full_like(self._mean, state["mean"])
        self._variance = torch.full_like(self._variance, state["variance"])


class GroupClip(_Stateless):
    """Shorten each parameter group to a norm of its own.

    Args:
        max_norms: number of the group -> largest norm; a group that is not named is left alone.
    """

    def __init__(self, max_norms: Mapping[int, float]) -> None:
        self._limits = {
            group: _positive(f"GroupClip[{group}]", limit, "the group's largest gradient norm")
            for group, limit in max_norms.items()
        }

    def propose(self, seen: Seen) -> Shortening:
        """See :class:`Clip`."""
        groups = torch.tensor(seen.groups, device=seen.norms.device)
        count = max(*seen.groups, *self._limits) + 1
        squares = seen.norms.new_zeros(count).index_add(0, groups, seen.norms.square())
        limits = torch.tensor([self._limits.get(g, math.inf) for g in range(count)])
        factors = torch.clamp(limits.to(squares) / (squares.sqrt() + 1e-6), max=1.0)
        return Shortening(torch.ones_like(seen.norm), factors[groups])


class _Sequence:
    """Rules one after the other; each sees what the ones before it have left."""

    def __init__(self, rules: Sequence[Clip]) -> None:
        if any(isinstance(rule, ValueClip) for rule in rules):
            raise ConfigError(
                "clip: ValueClip stands alone; after it the norms that other rules go by are "
                "unknown without a second pass over the gradients."
            )
        self._rules = tuple(rules)

    def propose(self, seen: Seen) -> Shortening:
        divisor, factors = torch.ones_like(seen.norm), None
        for rule in self._rules:
            proposed = rule.propose(seen)
            divisor = divisor * proposed.divisor
            norms = seen.norms / proposed.divisor
            if proposed.factors is not None:
                norms = norms * proposed.factors
                factors = proposed.factors if factors is None else factors * proposed.factors
            norm = torch.linalg.vector_norm(norms)
            seen = Seen(norm, norms, seen.parameters, seen.groups)
        return Shortening(divisor, factors)

    def learn(self, norm: Tensor, good: Tensor) -> None:
        for rule in self._rules:
            rule.learn(norm, good)

    def state_dict(self) -> dict[str, Any]:
        return {str(i): rule.state_dict() for i, rule in enumerate(self._rules)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for i, rule in enumerate(self._rules):
            rule.load_state_dict(state.get(str(i), {}))


def as_clip(clip: float | Clip | Sequence[Clip] | None) -> Clip | None:
    """A number is a global norm; several rules act one after the other."""
    if clip is None or not isinstance(clip, int | float | Sequence):
        return clip
    if isinstance(clip, Sequence):
        return _Sequence(clip) if clip else None
    return NormClip(clip)


def _positive(name: str, value: float, meaning: str) -> float:
    if not value > 0.0:  # NaN lands here as well
        raise ConfigError(f"{name}={value!r}: {meaning}, above 0; clip=None for no clipping.")
    return float(value)
