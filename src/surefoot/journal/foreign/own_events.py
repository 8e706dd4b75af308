"""What our own journal tells beside its numbers, as messages that rules can read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from surefoot.faults import ForwardFault, Origin
from surefoot.records import Cause, Event

__all__ = [
    "HANDLED",
    "Said",
    "Suspects",
    "as_list",
    "as_number",
    "events_of",
    "fault_of",
    "line_said",
]

_MOST_SUSPECTS = 4096
_FEW = 4
"""Samples of a batch so small that it tells by itself which one it was."""
_EVENTS = {
    Event.ROLLED_BACK: "rolled_back",
    Event.ROLLBACK_UNDONE: "rollback_undone",
    Event.DIVERGED: "diverged",
    Event.LOSS_SPIKE: "loss_spike",
    Event.GRADIENT_SPIKE: "gradient_spike",
    Event.RATE_JUMPED: "rate_jumped",
    Event.GRADIENTS_KEPT: "gradients_kept",
    Event.GRADIENTS_TOUCHED: "gradients_touched",
    Event.SCALE_AT_FLOOR: "scale_at_minimum",
    Event.BUFFERS_MENDED: "buffers_mended",
}
_ORIGINS = {
    Origin.INPUT: "fault_input",
    Origin.LOSS: "fault_loss",
    Origin.AFTER: "fault_loss",
    Origin.BACKWARD: "fault_backward",
    Origin.MODULE: "fault_module",
}


@dataclass(frozen=True)
class Said:
    """A message on its way: kind, words, and the numbers in it."""

    kind: str
    text: str
    values: Mapping[str, float] = field(default_factory=dict[str, float])


def events_of(record: Mapping[str, Any]) -> Iterator[Said]:
    """What happened during a step, beside its verdict."""
    happened = set(map(str, as_list(record.get("events"))))
    for event, kind in _EVENTS.items():
        if event.value in happened:
            yield Said(kind, f"step {record.get('step')}: {event.sentence}")


def fault_of(record: Mapping[str, Any]) -> Said | None:
    """Where the record says that the bad value came up; None where it does not."""
    told = record.get("fault")
    if not isinstance(told, dict):
        return None
    try:
        fault = ForwardFault.from_dict(told)
    except (KeyError, TypeError, ValueError):
        return None  # of a newer version, or damaged: the step itself is told all the same
    kind = _ORIGINS.get(fault.origin)
    if kind is None:
        return None
    kind = "fault_state" if fault.origin is Origin.MODULE and fault.state else kind
    samples = f" (samples {', '.join(map(str, fault.samples[:4]))})" if fault.samples else ""
    overflow = {"infinite": 1.0} if "Inf" in fault.value else {}
    return Said(kind, f"step {record.get('step')}: {fault}{samples}", overflow)


def line_said(kind: str, line: Mapping[str, Any]) -> Iterator[Said]:
    """What a line that is no step says; nothing for kinds that only hold numbers."""
    teller = HANDLED.get(kind)
    if teller is not None:
        yield from teller(line)


def _checkpoint(line: Mapping[str, Any]) -> Iterator[Said]:
    if line.get("problem"):
        failures = as_number(line.get("failures"))
        yield Said("save_failed", str(line["problem"]), {"failures": failures})
    elif line.get("path"):
        yield Said("saved", f"saved in {line['path']}")


def _lost(line: Mapping[str, Any]) -> Iterator[Said]:
    count = as_number(line.get("lost", line.get("lines")))
    if count > 0:
        yield Said("lines_lost", f"{count:g} lines of the journal were lost", {"lines": count})


def _data(line: Mapping[str, Any]) -> Iterator[Said]:
    sample = "" if line.get("index") is None else f"sample {line['index']!r}"
    why = f"{line.get('error', '')}: {line.get('text', '')}"
    if line.get("what") == "killed":
        yield Said("worker_replaced", f"a data worker died and was replaced: {sample} {why}")
    if line.get("quarantined"):
        yield Said("sample_set_aside", f"{sample} is not loaded again: {why}")


def _memory(line: Mapping[str, Any]) -> Iterator[Said]:
    values = {name: as_number(line.get(name)) for name in ("per_step", "steps_left")}
    more = ", ".join(map(str, as_list(line.get("became_more")))) or "nothing that could be counted"
    text = (
        f"{line.get('where', 'host')} memory grows by {values['per_step'] / 2**20:.3g} MiB a step "
        f"and lasts for {values['steps_left']:.0f} more; what became more: {more}"
    )
    yield Said("memory_growth", text, values)


def _precision(line: Mapping[str, Any]) -> Iterator[Said]:
    asked, chosen = line.get("asked"), line.get("chosen")
    if asked != chosen:
        yield Said("precision_fallback", f"{chosen} instead of {asked}: {line.get('reason', '')}")


def _stalled(line: Mapping[str, Any]) -> Iterator[Said]:
    seconds, usual = as_number(line.get("seconds")), as_number(line.get("usual"))
    told = f"no step for {seconds:.4g} s"
    told += f", where one usually takes {usual:.3g} s" if math.isfinite(usual) else ""
    yield Said("stalled", f"{told}; it waits in {line.get('waits_in')}", {"seconds": seconds})


def _halved(line: Mapping[str, Any]) -> Iterator[Said]:
    pieces = as_number(line.get("pieces"))
    text = f"step {line.get('step')}: the batch did not fit and was computed in {pieces:g} pieces"
    yield Said("halved", text, {"pieces": pieces})


def _interrupted(line: Mapping[str, Any]) -> Iterator[Said]:
    text = f"stopped by {line.get('by')} at step {line.get('step')}, to be gone on with"
    yield Said("interrupted", text)


def _nothing(line: Mapping[str, Any]) -> Iterator[Said]:
    """What the doctor wrote itself while the run went on is no evidence."""
    yield from ()


HANDLED = {
    "checkpoint": _checkpoint,
    "gap": _lost,
    "missing": _lost,
    "data": _data,
    "memory": _memory,
    "precision": _precision,
    "stalled": _stalled,
    "finding": _nothing,
    "halved": _halved,
    "interrupted": _interrupted,
}
"""Kinds of lines of which the words count, not the numbers."""


@dataclass
class Suspects:
    """Samples of refused steps, until one of them is in a step that is applied.

    Of a row of refused steps only the first counts: what comes after it may be refused for the
    state that the run is in.
    """

    _times: dict[str, int] = field(default_factory=dict[str, int])
    _in_a_row: int = 0

    def step(self, record: Mapping[str, Any]) -> Iterator[Said]:
        """Take a step; gives the samples that struck again."""
        samples = [str(sample) for sample in as_list(record.get("sample_ids"))]
        if record.get("verdict") != "refused":
            self._in_a_row = 0
            for sample in samples:
                self._times.pop(sample, None)
            return
        if record.get("cause") in (Cause.OVERFLOW.value, Cause.STALE.value):
            return
        self._in_a_row += 1
        if self._in_a_row == 1:
            yield from self._refused(record, samples)

    def _refused(self, record: Mapping[str, Any], samples: list[str]) -> Iterator[Said]:
        fault = record.get("fault")
        named = as_list(fault.get("samples")) if isinstance(fault, dict) else []
        blamed = [str(sample) for sample in named] or samples
        again = [sample for sample in blamed if sample in self._times]
        sure = bool(named) or len(blamed) <= _FEW or len(again) == len(blamed)
        for sample in blamed:
            if sample in self._times or len(self._times) < _MOST_SUSPECTS:
                self._times[sample] = self._times.get(sample, 0) + 1
        for sample in again:
            if (times := self._times[sample]) >= (2 if sure else 3):
                text = (
                    f"sample {sample}: {times} steps with it were refused, none was applied since"
                )
                yield Said("refused_again", text, {"times": float(times)})


def as_list(value: Any) -> list[Any]:
    """A field that should be a list; an empty one where it is not."""
    return value if isinstance(value, list) else []


def as_number(value: Any) -> float:
    """A field that should be a number; NaN where it is none."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
