"""A run as the rules see it: which column is the loss, what the scale did, which precision it was.

Everything is derived from the :class:`LoggedRun` and computed when it is first asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from surefoot.doctor.columns import from_the_start, summed
from surefoot.doctor.scales import ScaleHistory
from surefoot.doctor.trend import Course
from surefoot.journal.series import Column, LoggedRun, Message, Role

__all__ = ["DISCRIMINATOR", "GENERATOR", "Case"]

_ERROR = re.compile(r"(^|[^a-z])(mae|mse|rmse)([^a-z]|$)", re.I)
_VALIDATION = re.compile(r"(^|[_/. ])(val|valid|validation|eval|test|dev)([_/. ]|$)", re.I)
_PERPLEXITY = re.compile(r"(^|[_/. ])(ppl|perplexity)$", re.I)
_PART = r"(^|[^a-z])({})([^a-z]|loss|err|$)|(loss|err)[_/ ]?({})$"
GENERATOR = re.compile(_PART.format("g|gen|generator|netg", "g|gen"), re.I)
DISCRIMINATOR = re.compile(_PART.format("d|dis|disc|discriminator|netd", "d|dis|disc"), re.I)
_REINFORCED = re.compile(
    r"(^|[^a-z])(act|actor|policy|critic|value|q)[_ ]?(loss|grad)|reward|advantage|(^|[^a-z])ppo"
    r"|ep(isode)?_(len|rew|ret)",
    re.I,
)


@dataclass(frozen=True, eq=False)
class Case:
    """What the rules ask of a run; two of them are equal if they are the same."""

    run: LoggedRun

    def has(self, role: Role) -> bool:
        """Whether there is a column of that role with a value in it."""
        if role is Role.LOSS:
            return self.loss is not None
        if role is Role.LOSS_SCALE:
            return self.scales.scales.size > 0
        return any(column.values.size for column in self.run.of(role))

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """Every column with a value in it."""
        return tuple(column for column in self.run.columns if column.values.size)

    @cached_property
    def loss(self) -> Column | None:
        """The total training loss; else the sum of its terms, or the logarithm of a perplexity.

        Where a NaN filter prints 0 beside a gradient norm of NaN, the loss counts as NaN.
        """
        found = [c for c in self._training(Role.LOSS) if not self._partner(c)]
        terms = self.terms
        if not found and len(terms) == 1 and not self.adversarial:
            found = list(terms)
        if found:
            per_step = [c for c in found if c.per == "step"] or found
            return self._unfiltered(max(per_step, key=lambda c: (c.values.size, -len(c.name))))
        if (composed := summed(terms)) is not None and not self.adversarial:
            return composed
        for column in self._training(Role.METRIC):
            if _PERPLEXITY.search(column.name) and np.nanmin(column.values, initial=1.0) > 0:
                return replace(column, name=f"ln {column.name}", values=np.log(column.values))
        return None

    @cached_property
    def terms(self) -> tuple[Column, ...]:
        """The terms of the training loss."""
        partners = [c for c in self._training(Role.LOSS) if self._partner(c)]
        return (*self._training(Role.TERM), *partners)

    @cached_property
    def losses(self) -> tuple[Column, ...]:
        """The total, if there is one, and its terms."""
        if self.loss is None or self.loss.role is not Role.LOSS:
            return self.terms
        return (self.loss, *self.terms)

    @cached_property
    def validation(self) -> Column | None:
        """The loss on data the model is not trained on, or an error where no loss is logged."""
        found = [c for c in self.columns if c.role is Role.VALIDATION_LOSS]
        found += [c for c in self.columns if c.role is Role.LOSS and not self._is_training(c)]
        if not found:
            held = [c for c in self.columns if c.role is Role.TERM and not self._is_training(c)]
            if held:
                return summed(tuple(held))
            found = [c for c in self.columns if c.role is Role.METRIC and self._is_error(c)]
        if not found:
            return None
        return max(found, key=lambda c: (c.values.size, -len(c.name)))

    @cached_property
    def metrics(self) -> tuple[Column, ...]:
        """Metrics for which more is better, where the log tells that."""
        return tuple(c for c in self.columns if c.role is Role.METRIC and c.better != "lower")

    @cached_property
    def gradient(self) -> Column | None:
        """The norm of the whole gradient."""
        found = [c for c in self.columns if c.role is Role.GRADIENT_NORM]
        return max(found, key=lambda c: (c.values.size, -len(c.name)), default=None)

    @cached_property
    def rates(self) -> tuple[Column, ...]:
        """The learning rates, one for each group that is logged."""
        return tuple(c for c in self.columns if c.role is Role.LEARNING_RATE)

    @cached_property
    def scales(self) -> ScaleHistory:
        """What the loss scale did, from its column and from the overflow lines."""
        return ScaleHistory.of(self.run)

    @cached_property
    def precision(self) -> str:
        """``fp16``, ``bf16``, ``fp32``, or empty where the log does not tell."""
        told = " ".join(f"{k}={v}" for k, v in self.run.settings.items()).lower()
        if re.search(r"\bbf(loat)?16\b(?!=(false|0|none))", told):
            return "bf16"
        if re.search(
            r"(fp16|half|amp|apex|dtype)=(true|1|o[123])|=(torch\.)?(fp16|float16|half|16)", told
        ):
            return "fp16"
        if self.scales.overflows or (self.scales.scales.size and np.ptp(self.scales.scales) > 0):
            return "fp16"
        if re.search(r"(fp16|amp)=(false|0)|=(torch\.)?(fp32|float32|32)\b", told):
            return "fp32"
        return ""

    @cached_property
    def adversarial(self) -> bool:
        """Whether two losses play against each other, so that neither has to fall."""
        names = [c.name for c in self.columns if c.role in (Role.LOSS, Role.TERM)]
        return any(map(GENERATOR.search, names)) and any(map(DISCRIMINATOR.search, names))

    @cached_property
    def reinforced(self) -> bool:
        """Whether the losses are those of reinforcement learning, whose size says little."""
        return any(_REINFORCED.search(c.name) for c in self.columns if c.role is not Role.OTHER)

    def course(self, column: Column) -> Course:
        """The course of a column; computed once for each."""
        if id(column) not in self._courses:
            self._courses[id(column)] = Course(column)
        return self._courses[id(column)]

    @cached_property
    def _courses(self) -> dict[int, Course]:
        return {}

    @cached_property
    def from_the_start(self) -> bool:
        """Whether the log shows the first steps of training, as far as its steps tell."""
        column = self.loss or next(iter(self.terms), None)
        return column is not None and from_the_start(column)

    def setting(self, *names: str) -> float | None:
        """A number of the configuration that the log shows."""
        for key, text in self.run.settings.items():
            if re.sub(r"[^a-z]", "", key.lower()) in names:
                found = re.match(r"[-+]?[\d.]+(e[-+]?\d+)?", text.strip(), re.I)
                if found:
                    return float(found[0])
        return None

    def said(self, pattern: str, *, kind: str = "") -> list[Message]:
        """The messages whose text has ``pattern`` in it, any case.

        What surefoot's guard says of a step it says exactly, with names of modules in it: words
        are not guessed from there.
        """
        asked, ours = re.compile(pattern, re.I), self.run.format == "surefoot"
        return [
            m
            for m in self.run.messages
            if m.kind.startswith(kind)
            and not m.kind.startswith("fault_")
            and not (ours and m.kind in ("refused", "overflow"))
            and asked.search(m.text)
        ]

    def of_kind(self, *kinds: str) -> list[Message]:
        """The messages of these kinds."""
        return [message for message in self.run.messages if message.kind in kinds]

    def rate_at(self, line: int) -> float:
        """The learning rate that held at a line: the last one logged up to it."""
        for column in self.rates:
            before = column.lines <= line
            if before.any():
                return float(column.values[before][-1])
        return float("nan")

    def _training(self, role: Role) -> tuple[Column, ...]:
        return tuple(c for c in self.columns if c.role is role and self._is_training(c))

    def _is_training(self, column: Column) -> bool:
        return column.group != "validation" and not _VALIDATION.search(column.name)

    def _is_error(self, column: Column) -> bool:
        lower = column.better == "lower" and bool(_ERROR.search(column.name))
        return lower and not self._is_training(column)

    def _partner(self, column: Column) -> bool:
        if not self.adversarial:
            return False
        return bool(GENERATOR.search(column.name) or DISCRIMINATOR.search(column.name))

    def _unfiltered(self, loss: Column) -> Column:
        bad = _bad_lines(c for c in self.columns if c.role is Role.GRADIENT_NORM)
        hidden = (loss.values == 0.0) & np.isin(loss.lines, bad)
        if not hidden.any():
            return loss
        return replace(loss, values=np.where(hidden, np.nan, loss.values))


def _bad_lines(columns: Iterable[Column]) -> np.ndarray:
    bad = [c.lines[~np.isfinite(c.values)] for c in columns]
    return np.concatenate(bad) if bad else np.empty(0)
