"""Memory that grows, and processes that die of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.columns import finite
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.phrases import KILLED, OF_A_WORKER, OUT_OF_MEMORY, WORKER_KILLED
from surefoot.doctor.robust import condense, last_level, level, slope, trend_share
from surefoot.doctor.rule import Rule, rule
from surefoot.doctor.spot import counted, said_at, spot
from surefoot.journal.series import Column, Message, Role

__all__ = ["RULES"]

_GIB = 2.0**30


@rule("SF601", "memory that grows and does not level off", (Role.HOST_MEMORY, Role.DEVICE_MEMORY))
def growth(case: Case) -> Iterator[Finding]:
    """A steady slope to the end of the log: something is kept from step to step."""
    for role in (Role.HOST_MEMORY, Role.DEVICE_MEMORY):
        for column in case.run.of(role):
            known = finite(column)
            if re.search("avail|free", known.name, re.I):
                # What is left shrinks as what is taken grows.
                top = float(np.max(known.values, initial=0.0))
                known = replace(
                    known, name=f"taken since, by {known.name}", values=top - known.values
                )
            if known.values.size >= 3 and _grows(known.values):
                yield _leak(case, known, role)
                return


@rule("SF602", "an allocation that failed")
def out_of_memory(case: Case) -> Iterator[Finding]:
    """The device or the host had nothing left."""
    told = [*case.of_kind("out_of_memory"), *case.said(f"{OUT_OF_MEMORY}|{KILLED}")]
    if not told:
        return
    first = min(told, key=lambda message: message.line)
    early = _is_early(case, first)
    yield Finding(
        code="SF602",
        title="the run ran out of memory" + (" where a part of it starts" if early else ""),
        cause=RootCause.UNKNOWN if early else RootCause.MEMORY_LEAK,
        severity=Severity.CRITICAL,
        confidence=0.5,
        **said_at(first),
        evidence=(Evidence("message", first.text, f"line {first.line}: {first.text[:120]}"),),
        not_this=(
            ("not memory_leak: what leaks does so over many steps; this does not fit at all",)
            if early
            else ()
        ),
        remedy=(
            ("half the batch and twice the accumulation (--accumulation-steps)",)
            if early
            else ("keep numbers, not tensors: loss.item() or .detach() in lists and running sums",)
        ),
        log_next=("memory of host and device at every hundredth step",),
    )


@rule("SF603", "a data worker that was killed")
def worker_killed(case: Case) -> Iterator[Finding]:
    """The system kills workers when the host's memory is full, or the shared memory too small."""
    replaced = case.of_kind("worker_replaced")
    told = [*case.said(OF_A_WORKER, kind="worker_killed"), *case.said(WORKER_KILLED), *replaced]
    if not told:
        return
    first = min(told, key=lambda message: message.line)
    shared = "shm" in first.text.lower() or "bus error" in first.text.lower()
    went_on = len(replaced) == len(told)
    yield Finding(
        code="SF603",
        title="a data worker was killed"
        + (": the shared memory is too small" if shared else ", most likely for want of memory")
        + (f"; replaced {counted(len(told), 'time')}" if went_on else ""),
        cause=RootCause.UNKNOWN if shared else RootCause.MEMORY_LEAK,
        severity=Severity.WARNING if went_on else Severity.CRITICAL,
        confidence=0.6,
        **said_at(first),
        evidence=(Evidence("message", first.text, f"line {first.line}: {first.text[:120]}"),),
        not_this=("not a fault of the training step: no gradient is in a data worker",),
        remedy=(
            "workers x cached frames x bytes of one frame must fit in memory: every worker has "
            "a cache of its own; a smaller cache, or fewer workers",
            *(("docker run --shm-size=8g",) if shared else ()),
        ),
        log_next=("resident memory of the main process and of each worker",),
    )


@rule("SF604", "memory growth that the run itself told of")
def told_of_growth(case: Case) -> Iterator[Finding]:
    """surefoot's memory watch looks at every process and says what became more."""
    told = case.of_kind("memory_growth")
    if not told:
        return
    last = told[-1]
    left = last.values.get("steps_left", math.inf)
    yield Finding(
        code="SF604",
        title=last.text[:160],
        cause=RootCause.MEMORY_LEAK,
        severity=Severity.WARNING,
        confidence=0.8,
        **said_at(told[0]),
        evidence=(
            Evidence("per_step", last.values.get("per_step", math.nan), "bytes in each step"),
            Evidence("steps_left", left, "steps that the memory lasts for at this pace"),
            Evidence("times", len(told), f"said {counted(len(told), 'time')}"),
        ),
        not_this=("not a cache that fills once: the watch waits for growth that does not slow",),
        remedy=(
            "keep numbers, not tensors: loss.item() or .detach() in lists and running sums",
            "bound the caches of the data workers, or have fewer of them",
        ),
        explains=("SF602", "SF603"),
    )


@rule("SF605", "a batch that did not fit and was computed in pieces")
def in_pieces(case: Case) -> Iterator[Finding]:
    """The step is the same, and takes longer."""
    told = case.of_kind("halved")
    if not told:
        return
    most = max(m.values.get("pieces", 0.0) for m in told)
    yield Finding(
        code="SF605",
        title=f"batches did not fit into memory and were computed in up to {most:g} pieces",
        cause=RootCause.UNKNOWN,
        severity=Severity.NOTE,
        confidence=0.9,
        **said_at(told[0]),
        evidence=(
            Evidence("pieces", most, told[0].text[:140]),
            Evidence("times", len(told), f"memory ran out {counted(len(told), 'time')}"),
        ),
        not_this=("not memory_leak by that alone: the step was computed and nothing was lost",),
        remedy=(f"a batch {most:g} times smaller, accumulated {most:g} times, saves the attempts",),
    )


def _grows(values: np.ndarray) -> bool:
    start, end = level(values[: max(1, values.size // 10)]), last_level(values, 0.1, 1)
    if end <= 0 or end < 1.3 * start:
        return False
    short = condense(values, 200)
    late = short[short.size // 2 :]
    # A peak that is reported as a running maximum, or a cache that fills, comes to a rest.
    still = late[-1] - late[0] > 0.1 * (end - start)
    return bool(trend_share(short) > 0.6 and still)


def _leak(case: Case, known: Column, role: Role) -> Finding:
    start, end = float(known.values[0]), float(known.values[-1])
    factor = f"{end / start:.3g} times as much as at first" if start > 0 else f"from 0 to {end:.4g}"
    rise = slope(known.steps, known.values)
    where = "host" if role is Role.HOST_MEMORY else "device"
    killed = case.said(f"{OUT_OF_MEMORY}|{KILLED}") or case.of_kind("out_of_memory")
    pace = f"{rise / 2**20:.3g} MiB for every {known.per}"
    return Finding(
        code="SF601",
        title=f"{where} memory grows from {start / _GIB:.3g} to {end / _GIB:.3g} GiB, {pace}",
        cause=RootCause.MEMORY_LEAK,
        severity=Severity.CRITICAL if killed else Severity.WARNING,
        confidence=0.85 if killed or known.values.size >= 8 else 0.7,
        **spot(known),
        evidence=(
            Evidence("slope", rise, f"the slope is {pace}"),
            Evidence("growth", end - start, factor),
        ),
        not_this=("not a cache that fills once: that levels off, this does not",),
        remedy=(
            "keep numbers, not tensors: loss.item() or .detach() in lists and running sums",
            "host: bound the caches of the data workers (workers x frames x bytes of a frame); "
            "persistent workers, fewer of them",
        ),
        explains=("SF602", "SF603", "SF604"),
    )


def _is_early(case: Case, message: Message) -> bool:
    """Whether it was at the start of the run, or of a part of it that trains something else."""
    column = case.loss
    if column is None:
        return True
    phases = [m.line for m in case.of_kind("phase") if m.line < message.line]
    since = phases[-1] if phases else 0
    return int(np.sum((column.lines < message.line) & (column.lines > since))) <= 2


RULES: tuple[Rule, ...] = (growth, out_of_memory, worker_killed, told_of_growth, in_pieces)
