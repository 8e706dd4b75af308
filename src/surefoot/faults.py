"""The parts of a record: loss terms, bad gradients, and where the first bad value came up.

Plain values, no tensors, no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import Enum
from typing import Any, Self

__all__ = ["Culprit", "ForwardFault", "Origin", "Range", "Sentence", "TermRecord", "plain"]


class Sentence(Enum):
    """An enum whose members carry, beside their name in a journal, the sentence a person reads."""

    sentence: str

    def __new__(cls, value: str, sentence: str) -> Self:  # noqa: D102
        member = object.__new__(cls)
        member._value_ = value
        member.sentence = sentence
        return member

    def __str__(self) -> str:
        return self.sentence


class Origin(Sentence):
    """Where the first value that was not finite came up."""

    MODULE = "module", "a module made it from finite input"
    INPUT = "input", "the model's own input was not finite"
    LOSS = "loss", "every module's output was finite, so the loss function made it"
    BACKWARD = "backward", "the forward pass and the loss were finite; the backward pass made it"
    AFTER = "after", "every module's output was finite; the loss or the backward pass made it"
    ELSEWHERE = "elsewhere", "it came up in another process, whose record says where"
    NOT_AGAIN = "not_again", "the same forward pass, run again, gave finite values only"
    NOT_KEPT = "not_kept", "nothing was kept that could be run again"
    FAILED = "failed", "the forward pass could not be run again"

    @property
    def located(self) -> bool:
        """Whether it says where the value came up, and not why that is unknown."""
        nowhere = (Origin.ELSEWHERE, Origin.NOT_AGAIN, Origin.NOT_KEPT, Origin.FAILED)
        return self not in nowhere


@dataclass(frozen=True, slots=True)
class Range:
    """Of a tensor: least, greatest and mean of its finite elements, and their share.

    >>> print(Range(-1.5, 4.0, 0.25, 0.75))
    -1.5 to 4, mean 0.25, 75 % finite
    """

    minimum: float = math.nan
    maximum: float = math.nan
    mean: float = math.nan
    finite: float = math.nan
    """Share of the elements that are finite, in [0, 1]; NaN: not looked at."""

    @property
    def known(self) -> bool:
        """Whether the tensor was looked at."""
        return not math.isnan(self.finite)

    def __str__(self) -> str:
        if not self.known:
            return "not looked at"
        if self.finite == 0.0:
            return "no element finite"
        share = "" if self.finite == 1.0 else f", {_percent(self.finite)} finite"
        return f"{self.minimum:.4g} to {self.maximum:.4g}, mean {self.mean:.4g}{share}"


@dataclass(frozen=True, slots=True)
class TermRecord:
    """One term of the loss: its raw value, its weight, and the gradient that it alone makes."""

    name: str
    raw: float
    weight: float
    grad_norm: float = math.nan
    """L2 norm of the true gradient of the weighted term; infinite where that gradient is not
    finite; NaN: not looked at."""
    cosine: float = math.nan
    """Cosine of that gradient with the total one, in [-1, 1]; NaN: not looked at."""

    @property
    def weighted(self) -> float:
        """What the term adds to the total."""
        return self.raw * self.weight

    @property
    def bad(self) -> bool:
        """Whether the term's value, or the gradient that it alone makes, was not finite."""
        return self.weight != 0.0 and (not math.isfinite(self.raw) or math.isinf(self.grad_norm))

    @property
    def said(self) -> str:
        """Value, weight, and what is known of its gradient."""
        text = f"{self.raw:.4g} x {self.weight:g}"
        if math.isinf(self.grad_norm):
            return f"{text}, its gradient is not finite"
        if math.isnan(self.grad_norm):
            return text
        cosine = "" if math.isnan(self.cosine) else f", {self.cosine:+.2f} along the total"
        return f"{text}, gradient {self.grad_norm:.4g}{cosine}"

    def to_list(self) -> list[Any]:
        """Name and numbers; what was not looked at is left out."""
        looked_at = not (math.isnan(self.grad_norm) and math.isnan(self.cosine))
        more = [self.grad_norm, self.cosine] if looked_at else []
        return [self.name, *map(plain, [self.raw, self.weight, *more])]


@dataclass(frozen=True, slots=True)
class Culprit:
    """A parameter whose gradient was bad (or a tensor of the state that was): the norm that showed
    it, and the range of the elements that are finite.
    """

    name: str
    norm: float
    minimum: float = math.nan
    maximum: float = math.nan
    mean: float = math.nan
    finite: float = math.nan
    """Share of the elements that are finite, in [0, 1]; NaN: not looked at."""

    @property
    def kind(self) -> str:
        """``NaN``, ``Inf``, ``none`` (no gradient at all) or ``finite``."""
        if self.norm == 0.0:
            return "none"
        return "NaN" if math.isnan(self.norm) else "Inf" if math.isinf(self.norm) else "finite"

    @property
    def range(self) -> Range:
        """Least, greatest, mean and finite share."""
        return Range(self.minimum, self.maximum, self.mean, self.finite)

    def to_list(self) -> list[Any]:
        """Name and numbers; what was not looked at is left out."""
        numbers = [self.minimum, self.maximum, self.mean, self.finite]
        return [self.name, plain(self.norm), *(map(plain, numbers) if self.range.known else ())]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardFault:
    """Where the first value that was not finite came up, found by running the forward pass again.

    >>> print(ForwardFault(origin=Origin.MODULE, module="neck.dist", kind="Root", value="NaN"))
    NaN came up in neck.dist (Root), whose input was finite
    """

    origin: Origin
    module: str = ""
    """Its dotted name; empty for the model itself."""
    kind: str = ""
    """Name of the module's class; empty where no module is known."""
    value: str = ""
    """``NaN``, ``Inf`` or ``-Inf``."""
    position: str = ""
    """Which value of the module: ``output``, ``output.logits``, ``input[0]``, ``weight``; of its
    gradient where the origin is the backward pass."""
    before: str = ""
    """The submodule that was handed the value, where the module's own code made it before that."""
    input_finite: bool = True
    """Whether everything that the module was given was finite (its output's gradient, where the
    origin is the backward pass)."""
    given: Range = field(default_factory=Range)
    """Range of the module's first input (of the gradient that arrived at its output)."""
    made: Range = field(default_factory=Range)
    """Range of the bad value itself."""
    state: tuple[str, ...] = ()
    """The module's own weights and buffers that were not finite to begin with."""
    micro_batch: int = 0
    """Which micro-batch of the window, from 0."""
    samples: tuple[str, ...] = ()
    """Ids of the samples in whose rows the value stands, where ids and rows can be told apart."""
    detail: str = ""
    """What else is to be said."""

    @property
    def located(self) -> bool:
        """Whether it says where, and so in which micro-batch; the refusal's cause does not."""
        vague = (Origin.AFTER, Origin.BACKWARD)
        return self.origin.located and (self.origin not in vague or bool(self.value))

    @property
    def where(self) -> str:
        """The module, or the model itself, with its class."""
        name = self.module or "the model"
        return f"{name} ({self.kind})" if self.kind else name

    def __str__(self) -> str:
        if self.origin is Origin.INPUT:
            given = (
                f"what the loop gave to {self.where}" if self.module else "the model's own input"
            )
            return f"{given} was not finite: {self.value} in {self.position}"
        if self.origin is Origin.MODULE:
            return f"{self.value} came up in {self._forward()}"
        if self.origin is Origin.BACKWARD and self.kind:
            arrived = "finite" if self.input_finite else "not finite either"
            return (
                f"{self.value} came up in the backward pass of {self.where}, in the gradient of "
                f"{self.position}; the gradient that arrived there was {arrived}"
            )
        return f"{self.origin}: {self.detail}" if self.detail else str(self.origin)

    def _forward(self) -> str:
        if self.state:
            was = "was" if len(self.state) == 1 else "were"
            named = " and ".join(self.state)
            return f"{self.where}, whose {named} {was} not finite to begin with"
        given = "input was finite" if self.input_finite else "input was not finite either"
        if self.before:
            return f"the own code of {self.where}, before it calls {self.before}; its {given}"
        return f"{self.where}, whose {given}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what has its default is left out."""
        values = asdict(self)
        found: dict[str, Any] = {"origin": self.origin.value}
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, Range):
                if value.known:
                    found[f.name] = [plain(v) for v in values[f.name].values()]
            elif f.name != "origin" and value != f.default:
                found[f.name] = list(value) if isinstance(value, tuple) else value
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ForwardFault:
        """The inverse of :meth:`to_dict`; unknown keys of a newer version are left out.

        Raises:
            KeyError, ValueError, TypeError: ``values`` is not what :meth:`to_dict` gives.
        """
        known = {f.name for f in fields(cls)}
        got = {name: value for name, value in values.items() if name in known}
        got["origin"] = Origin(got["origin"])
        for name in ("given", "made"):
            if name in got:
                got[name] = Range(*map(float, got[name]))
        for name in ("state", "samples"):
            got[name] = tuple(got.get(name, ()))
        return cls(**got)


def plain(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they travel as the strings that ``float`` reads."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    return value


def _percent(share: float) -> str:
    """Three digits, but never 0 % of what is some, nor 100 % of what is not all."""
    if share > 0.999:
        return "over 99.9 %"
    return "under 0.1 %" if share < 0.001 else f"{100 * share:.3g} %"
