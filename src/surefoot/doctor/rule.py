"""What a rule is: a code, what it has to see, and a pure function from a run to findings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.finding import Finding
from surefoot.journal.series import LoggedRun, Role

__all__ = ["NOT_LOGGED", "Blind", "Rule", "rule"]

NOT_LOGGED = "the log has no "
"""How the reason begins if a rule lacks a column."""

Said = Iterable["Finding | Blind"]
Need = Role | tuple[Role, ...]


@dataclass(frozen=True)
class Blind:
    """A rule's word that it could not judge, with what it lacked."""

    why: str


@dataclass(frozen=True)
class Rule:
    """One thing the doctor looks for."""

    code: str
    title: str
    """What it looks for, as a noun phrase."""
    needs: tuple[Need, ...]
    """Roles that a log must have columns of; of a tuple any one will do."""
    check: Callable[[Case], Said]

    @property
    def family(self) -> str:
        """Module that it stands in."""
        return self.check.__module__.rpartition(".")[2]

    def lacks(self, case: Case) -> str:
        """What the run does not log and the rule needs; empty if it can be judged."""
        for need in self.needs:
            roles = need if isinstance(need, tuple) else (need,)
            if not any(case.has(role) for role in roles):
                return NOT_LOGGED + " or ".join(role.value.replace("_", " ") for role in roles)
        return ""

    def __call__(self, run: LoggedRun | Case) -> tuple[Finding | Blind, ...]:
        """What it finds in ``run``; a pure function."""
        case = run if isinstance(run, Case) else Case(run)
        lacking = self.lacks(case)
        if lacking:
            return (Blind(lacking),)
        # A log may hold any number; an infinity that comes of them compares as it should.
        with np.errstate(all="ignore"):
            return tuple(self.check(case))


def rule(code: str, title: str, *needs: Need) -> Callable[[Callable[[Case], Said]], Rule]:
    """Make a rule of a function.

    Args:
        code: ``SF101``.
        title: what it looks for.
        needs: roles it needs; of a tuple any one will do.
    """

    def make(check: Callable[[Case], Said]) -> Rule:
        return Rule(code, title, needs, check)

    return make
