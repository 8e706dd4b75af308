"""What a run keeps of itself, and whether it moves: checkpoints, the journal, standing still."""

from __future__ import annotations

from collections.abc import Iterator

from surefoot.doctor.case import Case
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.rule import Rule, rule
from surefoot.doctor.spot import counted, said_at

__all__ = ["RULES"]


@rule("SF906", "checkpoints that cannot be saved")
def not_saved(case: Case) -> Iterator[Finding]:
    """The disk refused; the run goes on and has nothing to go back to."""
    failed = case.of_kind("save_failed")
    if not failed:
        return
    since = [m for m in case.of_kind("saved") if m.line > failed[-1].line]
    yield Finding(
        code="SF906",
        title=f"{counted(len(failed), 'checkpoint')} could not be saved"
        + (", and later ones could" if since else ": the run has no newer state to go back to"),
        cause=RootCause.UNKNOWN,
        severity=Severity.NOTE if since else Severity.WARNING,
        confidence=0.9,
        **said_at(failed[0]),
        evidence=(
            Evidence(
                "problem", failed[-1].text, f"line {failed[-1].line}: {failed[-1].text[:160]}"
            ),
            Evidence("times", len(failed), counted(len(failed), "failed save")),
        ),
        not_this=("not a fault of the training itself: its numbers are what they would be",),
        remedy=("free space on the disk, or look at its permissions; keep fewer checkpoints",),
    )


@rule("SF907", "lines that the journal lost")
def lost(case: Case) -> Iterator[Finding]:
    """What happened in these steps cannot be judged."""
    told = case.of_kind("lines_lost")
    if not told:
        return
    count = sum(m.values.get("lines", 0.0) for m in told)
    yield Finding(
        code="SF907",
        title=f"{count:,.0f} lines of the journal were lost",
        cause=RootCause.UNKNOWN,
        severity=Severity.NOTE,
        confidence=0.9,
        **said_at(told[0]),
        evidence=(Evidence("lines", count, f"in {counted(len(told), 'gap')}"),),
        not_this=("not steps that were skipped: they were taken, and not written down",),
        remedy=("look at the free space and the permissions of the run folder's disk",),
    )


@rule("SF908", "a run that stands still")
def stood_still(case: Case) -> Iterator[Finding]:
    """No step for far longer than one takes; the journal has the stacks of all threads."""
    told = case.of_kind("stalled")
    if not told:
        return
    longest = max(told, key=lambda m: m.values.get("seconds", 0.0))
    over = any(c.lines.size and c.lines[-1] > told[-1].line for c in case.losses)
    yield Finding(
        code="SF908",
        title=f"{longest.text[:160]}" + ("" if over else "; nothing came after it"),
        cause=RootCause.UNKNOWN,
        severity=Severity.WARNING,
        confidence=0.8,
        **said_at(told[0]),
        evidence=(
            Evidence("seconds", longest.values.get("seconds", 0.0), "the longest time in seconds"),
            Evidence("times", len(told), f"told {counted(len(told), 'time')}"),
        ),
        not_this=("not a plateau: no step was taken at all in that time",),
        remedy=(
            "look at what it waits in: a data worker (fewer workers, a timeout), another process "
            "(one that ended, or took another branch), a disk",
        ),
        log_next=("the stacks in the journal's line say where every thread was",),
    )


RULES: tuple[Rule, ...] = (not_saved, lost, stood_still)
