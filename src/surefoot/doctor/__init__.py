"""The doctor: reads the log of a run and names the cause, the evidence and the remedy."""

from surefoot.doctor.catalogue import RULES
from surefoot.doctor.examine import Check, Examination, examine
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.rule import Rule

__all__ = [
    "RULES",
    "Check",
    "Evidence",
    "Examination",
    "Finding",
    "RootCause",
    "Rule",
    "Severity",
    "examine",
]
