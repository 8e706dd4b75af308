"""From a run to ranked findings: what is wrong, what was looked at, and what could not be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.catalogue import RULES
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.rule import Blind, Rule
from surefoot.journal.series import LoggedRun, Role

__all__ = ["Check", "Examination", "examine"]

_JUDGED = (
    Role.LOSS,
    Role.TERM,
    Role.VALIDATION_LOSS,
    Role.METRIC,
    Role.GRADIENT_NORM,
    Role.LOSS_SCALE,
    Role.LEARNING_RATE,
    Role.SKIPPED,
    Role.HOST_MEMORY,
    Role.DEVICE_MEMORY,
)
_LAST = ("SF904", "SF905")
"""Said only where nothing else was found."""
CLEAN_BILL = "SF001"
"""Code of the finding that says that a run is healthy."""


@dataclass(frozen=True)
class Check:
    """A rule that was tried on a run."""

    code: str
    title: str
    skipped: str
    """Why it could not judge; empty if it could."""
    fired: bool


@dataclass(frozen=True)
class Examination:
    """What the doctor makes of one run."""

    run: LoggedRun
    findings: tuple[Finding, ...]
    """The most likely cause first; of a healthy run the clean bill comes first."""
    explained: tuple[tuple[Finding, str], ...]
    """Findings that are consequences, each with the code of what explains it."""
    checks: tuple[Check, ...]
    """Every rule, in the order of their codes."""

    @property
    def judged(self) -> bool:
        """Whether there was anything in the log to judge."""
        return bool(self.findings)

    @property
    def healthy(self) -> bool:
        """Whether nothing has to be done."""
        return self.judged and not any(finding.sick for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """As ``surefoot doctor --json`` prints a run."""
        return {
            "source": self.run.source,
            "format": self.run.format,
            "lines": self.run.lines,
            "verdict": self.verdict,
            "findings": [finding.to_dict() for finding in self.findings],
            "explained": [
                {"by": code, "finding": finding.to_dict()} for finding, code in self.explained
            ],
            "checks": [
                {"code": c.code, "title": c.title, "ran": not c.skipped, "why_not": c.skipped}
                for c in self.checks
            ],
            "notes": list(self.run.notes),
        }

    @property
    def verdict(self) -> str:
        """``healthy``, ``sick``, or ``nothing to judge``."""
        if not self.judged:
            return "nothing to judge"
        return "healthy" if self.healthy else "sick"


def examine(run: LoggedRun, rules: Iterable[Rule] = RULES) -> Examination:
    """Try every rule on a run and rank what they find.

    Args:
        run: what a reader made of a log.
        rules: those to try.

    >>> from surefoot.journal.series import Column
    >>> column = Column("loss", Role.LOSS, 2.0 / np.arange(1, 41), np.arange(40.0), np.arange(40))
    >>> seen = examine(LoggedRun("train.log", "plain", (column,)))
    >>> seen.verdict, seen.findings[0].title
    ('healthy', 'nothing is wrong with what this log shows')
    """
    case = Case(run)
    found: list[Finding] = []
    checks: list[Check] = []
    for each in rules:
        said = each(case)
        findings = [finding for finding in said if isinstance(finding, Finding)]
        blind = next((word.why for word in said if isinstance(word, Blind)), "")
        checks.append(Check(each.code, each.title, "" if findings else blind, bool(findings)))
        found += findings
    kept, explained = _suppress(sorted(found, key=_rank))
    if not any(finding.sick for finding in kept) and _judgeable(case):
        kept = [_clean_bill(case, checks), *kept]
    return Examination(run, tuple(kept), tuple(explained), tuple(checks))


def _rank(finding: Finding) -> tuple[bool, float, float]:
    line = finding.first_line if finding.first_line is not None else np.inf
    return not finding.sick, -finding.confidence, line


def _suppress(ranked: list[Finding]) -> tuple[list[Finding], list[tuple[Finding, str]]]:
    """Take out what another finding explains; one that is itself explained explains nothing."""
    kept: list[Finding] = []
    explained: list[tuple[Finding, str]] = []
    for finding in sorted(ranked, key=lambda f: (f.code in _LAST, not f.sick, -len(f.explains))):
        last = finding.code in _LAST
        by = next((k for k in kept if finding.code in k.explains or (last and k.sick)), None)
        if by is None:
            kept.append(finding)
        else:
            explained.append((finding, by.code))
    kept.sort(key=_rank)
    return kept, explained


def _judgeable(case: Case) -> bool:
    return any(column.role in _JUDGED for column in case.columns) or bool(case.scales.overflows)


def _clean_bill(case: Case, checks: list[Check]) -> Finding:
    ran = [check for check in checks if not check.skipped]
    looked_at = ", ".join(dict.fromkeys(c.name for c in case.columns if c.role in _JUDGED))
    sizes = [c.values.size for c in case.columns if c.role in _JUDGED]
    longest = max(sizes, default=0)
    return Finding(
        code=CLEAN_BILL,
        title="nothing is wrong with what this log shows",
        cause=RootCause.HEALTHY,
        severity=Severity.NOTE,
        confidence=0.9 if longest >= 20 else 0.7 if longest >= 5 else 0.4,
        evidence=(
            Evidence("checks", len(ran), f"{len(ran)} of {len(checks)} checks ran"),
            Evidence("values", longest, f"up to {longest} values of {looked_at or 'messages'}"),
        ),
    )
