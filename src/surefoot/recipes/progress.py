"""What a run says while it runs: a bar for the epoch, then the epoch in a few lines."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TextIO

import psutil

from surefoot.records import Event, StepRecord, Verdict

__all__ = ["EpochBar", "EpochSummary", "clock"]

_TTY_SECONDS, _PIPE_SECONDS = 0.1, 60.0
_BAR_WIDTH = 20
_TOLD = 5


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours where there are any.

    >>> clock(345.2), clock(3661)
    ('05:45', '1:01:01')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else str(value)


@dataclass(kw_only=True)
class EpochBar:
    """``Epoch 44/140: 100% 125/125 [05:45<00:00, loss=2.37, grad=0.423]``.

    ``loss`` is the mean over the epoch so far, ``grad`` the true gradient norm of the last step,
    and ``skipped``, shown when there are any, counts the steps that were refused. On a terminal the
    line is redrawn in place, with a bar; elsewhere it is printed once a minute and at the end.

    A step that was refused or rolled back is told in a line of its own, the first of an epoch.
    """

    title: str
    total: int
    stream: TextIO = field(default_factory=lambda: sys.stdout)
    now: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._started = self._shown = self.now()
        self._done = self._losses = self._skipped = 0
        self._sum, self._grad, self._told = 0.0, math.nan, 0
        self._live = self.stream.isatty()

    def update(self, record: StepRecord) -> None:
        """Count one micro-batch."""
        self._done += 1
        self._skipped += record.refused
        if math.isfinite(record.loss):
            self._losses += 1
            self._sum += record.loss
        if record.verdict is not Verdict.ACCUMULATED:
            self._grad = record.grad_norm
        if record.refused or Event.ROLLED_BACK in record.events:
            self._tell(record)
        pause = _TTY_SECONDS if self._live else _PIPE_SECONDS
        if self._done < self.total and self.now() - self._shown >= pause:
            self._show("" if self._live else "\n")

    def close(self) -> None:
        """Print the line for the last time."""
        self._show("\n")

    def _tell(self, record: StepRecord) -> None:
        self._told += 1
        if self._told > _TOLD:
            return
        last = "; further ones are in the journal" if self._told == _TOLD else ""
        self.stream.write(f"{self._clear}  {record}{last}\n")

    @property
    def _clear(self) -> str:
        return "\r\x1b[2K" if self._live else ""

    def _show(self, end: str) -> None:
        self._shown = self.now()
        self.stream.write(self._clear + str(self) + end)
        self.stream.flush()

    def __str__(self) -> str:
        share = self._done / self.total if self.total else 1.0
        spent = self.now() - self._started
        left = spent * (1 - share) / share if share else math.nan
        mean = self._sum / self._losses if self._losses else math.nan
        full = round(_BAR_WIDTH * share)
        bar = f"|{'█' * full}{' ' * (_BAR_WIDTH - full)}| " if self._live else ""
        skipped = f", skipped={self._skipped}" if self._skipped else ""
        return (
            f"{self.title}: {int(100 * share):3d}% {bar}{self._done}/{self.total} "
            f"[{clock(spent)}<{clock(left) if math.isfinite(left) else '?'}, "
            f"loss={_short(mean)}, grad={_short(self._grad)}{skipped}]"
        )


@dataclass
class _Mean:
    total: float = 0.0
    count: int = 0
    maximum: float = math.nan

    def add(self, value: float) -> None:
        if math.isfinite(value):
            self.total += value
            self.count += 1
            self.maximum = value if self.count == 1 else max(self.maximum, value)

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else math.nan


class EpochSummary:
    """An epoch's step records in a few numbers, for the terminal and for the journal."""

    def __init__(self, group_names: Sequence[str]) -> None:
        self._groups = tuple(group_names)
        self._loss, self._norm = _Mean(), _Mean()
        self._terms: dict[str, tuple[_Mean, float]] = {}
        self._steps = self._applied = self._refused = 0
        self._causes: Counter[str] = Counter()
        self._events: Counter[str] = Counter()
        self._last: StepRecord | None = None

    def add(self, record: StepRecord) -> None:
        """Count one record; micro-batches that only accumulated are in their step's record."""
        if record.verdict is Verdict.ACCUMULATED:
            return
        self._steps += 1
        self._applied += record.applied
        self._refused += record.refused
        self._events.update(event.value for event in record.events)
        if record.refused:
            self._causes[record.cause.value] += 1
        self._loss.add(record.loss)
        self._norm.add(record.grad_norm)
        for term in record.terms:
            self._terms.setdefault(term.name, (_Mean(), term.weight))[0].add(term.raw)
        self._last = record

    def fields(self) -> dict[str, Any]:
        """Plain values, for a journal."""
        rates = self._last.learning_rates if self._last else ()
        return {
            "steps": self._steps,
            "applied": self._applied,
            "refused": self._refused,
            "causes": dict(self._causes),
            "events": dict(self._events),
            "loss": self._loss.value,
            "terms": {n: {"raw": m.value, "weight": w} for n, (m, w) in self._terms.items()},
            "grad_norm_mean": self._norm.value,
            "grad_norm_max": self._norm.maximum,
            "learning_rates": dict(zip(self._groups, rates, strict=False)),
            "loss_scale": self._last.loss_scale if self._last else math.nan,
            "host_memory_mb": host_memory_mb(),
        }

    def lines(self, *, loss_scale: bool, device_memory_mb: float | None) -> list[str]:
        """What a person reads after an epoch."""
        values = self.fields()
        terms = "  ".join(
            f"{name} {_short(mean.value)} x {_short(weight)} = {_short(mean.value * weight)}"
            for name, (mean, weight) in self._terms.items()
        )
        rates = "  ".join(f"{n} {_short(v)}" for n, v in values["learning_rates"].items())
        memory = f"host {values['host_memory_mb']:,.0f} MB"
        if device_memory_mb is not None:
            memory += f", device {device_memory_mb:,.0f} MB (peak)"
        scale = f" | loss scale {values['loss_scale']:g}" if loss_scale else ""
        why = ", ".join(f"{count} x {cause}" for cause, count in self._causes.items())
        clipped = self._events[Event.CLIPPED.value]
        alarms = "".join(
            f", {event.value.replace('_', ' ')} {self._events[event.value]}"
            for event in (Event.LOSS_SPIKE, Event.GRADIENT_SPIKE, Event.ROLLED_BACK)
            if self._events[event.value]
        )
        return [
            f"  loss {_short(values['loss'])} = {terms}",
            f"  gradient norm (true, before clipping): mean {_short(values['grad_norm_mean'])}, "
            f"max {_short(values['grad_norm_max'])}; clipped {clipped}, refused "
            f"{self._refused} of {self._steps} steps{f' ({why})' if why else ''}{alarms}",
            f"  learning rate: {rates}{scale} | memory: {memory}",
        ]


def host_memory_mb() -> float:
    """Resident memory of this process and of the data loader's workers, in MB."""
    process = psutil.Process()
    total = process.memory_info().rss
    for child in process.children(recursive=True):
        try:
            total += child.memory_info().rss
        except psutil.NoSuchProcess:
            continue  # a worker that ended between being listed and being asked
    return total / 2**20
