"""All faults by their key, in the table's order."""

from __future__ import annotations

from benchmarks.chaos.fault import Fault, Plan
from benchmarks.chaos.faults import eighteen
from benchmarks.chaos.fears import fears

__all__ = ["catalogue"]


def catalogue(plan: Plan) -> dict[str, Fault]:
    """Every fault, struck by this plan.

    >>> list(catalogue(Plan()))[:3]
    ['1', '2', '3']
    """
    return {fault.key: fault for fault in [*eighteen(plan), *fears(plan)]}
