"""Every rule of the doctor, in the order of their codes."""

from __future__ import annotations

from surefoot.doctor.rule import Rule
from surefoot.doctor.rules import (
    adversarial,
    bookkeeping,
    data,
    errors,
    gradients,
    guarded,
    keeping,
    levels,
    loss_scale,
    losses,
    machine,
    measured,
    memory,
    numbers,
    planned,
    progress,
    scaler,
    schedule,
    targets,
)

__all__ = ["RULES"]

_FAMILIES = (
    numbers,
    loss_scale,
    scaler,
    losses,
    targets,
    adversarial,
    gradients,
    schedule,
    memory,
    data,
    progress,
    bookkeeping,
    guarded,
    keeping,
    levels,
    measured,
    planned,
    machine,
    errors,
)

RULES: tuple[Rule, ...] = tuple(
    sorted((rule for family in _FAMILIES for rule in family.RULES), key=lambda rule: rule.code)
)
"""The rules; codes are unique, hundreds are families."""
