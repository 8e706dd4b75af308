"""What ranks that train together tell one another.

Every call here is a collective: all ranks make it, at a moment that all of them know alike (a step
that every one refuses, a look through the state that is due), or the job hangs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from surefoot.records import (
    Cause,
    Culprit,
    ForwardFault,
    StepRecord,
    TermRecord,
    ranks_said,
)

__all__ = ["agree", "align", "share", "take_over", "tell_all", "tell_all_anything"]

_MOST = 16


def tell_all(numbers: Sequence[int]) -> list[list[int]]:
    """Everybody's whole numbers, by rank; as many from each, below 2^63."""
    mine = torch.tensor(numbers, dtype=torch.int64, device=_device())
    everybodys = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(everybodys, mine)
    return torch.stack(everybodys).tolist()


def tell_all_anything(value: Any) -> list[Any]:
    """Everybody's value, by rank; for the rare moments, it takes two rounds and pickles."""
    everybodys: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everybodys, value)
    return everybodys


def agree(flag: bool) -> bool:
    """True on every rank when it is on one."""
    vote = torch.tensor(float(flag), device=_device())
    torch.distributed.all_reduce(vote, torch.distributed.ReduceOp.MAX)
    return bool(vote)


def share(found: Sequence[Culprit]) -> tuple[tuple[Culprit, ...], tuple[int, ...]]:
    """What any rank found, each with the ranks that did where not all of them did; and all ranks
    that found anything.
    """
    everybodys: list[list[Culprit]] = tell_all_anything(list(found))
    by_name: dict[str, tuple[Culprit, list[int]]] = {}
    for rank, culprits in enumerate(everybodys):
        for culprit in culprits:
            by_name.setdefault(culprit.name, (culprit, []))[1].append(rank)
    shared = [
        culprit
        if len(ranks) == len(everybodys)
        else replace(culprit, name=f"{culprit.name} ({ranks_said(ranks)})")
        for culprit, ranks in by_name.values()
    ]
    return tuple(shared[:_MOST]), tuple(r for r, culprits in enumerate(everybodys) if culprits)


def align(record: StepRecord, parameters: Sequence[str]) -> None:
    """Let every rank's record of a refused step say alike what was wrong, and on which rank.

    A rank sees its own loss only, and under shards its own part of a gradient; alone, one would
    speak of a bad loss where another speaks of an overflow, and stop where the other goes on.

    Args:
        record: of this rank; it is changed.
        parameters: names of all of them.
    """
    loss_bad = bool(record.terms) and not math.isfinite(record.loss)
    told = tell_all([loss_bad, record.cause is Cause.NONFINITE_GRADIENT])
    said = record.__dict__
    said["bad_ranks"] = tuple(rank for rank, (bad, _) in enumerate(told) if bad)
    if record.bad_ranks:
        # Every gradient came out of the sum over ranks; no parameter has a part in it.
        said["culprits"] = tuple(c for c in record.culprits if c.name not in set(parameters))
        said["cause"] = Cause.NONFINITE_LOSS
    elif any(bad for _, bad in told):
        said["cause"] = Cause.NONFINITE_GRADIENT


class _View(NamedTuple):
    """What one rank knows of a refused step that went wrong on it."""

    loss: float
    terms: tuple[TermRecord, ...]
    sample_ids: tuple[str, ...]
    fault: ForwardFault | None

    @property
    def located(self) -> bool:
        return self.fault is not None and self.fault.located


def take_over(record: StepRecord) -> None:
    """Let a rank that is not to blame say what the first bad one knows: often one rank alone keeps
    a log. To blame are those whose loss was bad; where that tells nothing, because all were or none
    was, those that found where the bad value came up.

    Args:
        record: of this rank, after :func:`align` and after the fault was looked for.
    """
    mine = _View(record.loss, record.terms, record.sample_ids[:_MOST], record.fault)
    knows = record.rank in record.bad_ranks or mine.located
    told: list[_View | None] = tell_all_anything(mine if knows else None)
    found = tuple(rank for rank, view in enumerate(told) if view is not None and view.located)
    bad = record.bad_ranks
    if not bad or (found and len(bad) == len(told)):
        bad = found
    record.__dict__["bad_ranks"] = bad
    view = next((told[rank] for rank in (*found, *bad) if rank in bad), None)
    if view is not None and record.rank not in bad:
        record.__dict__.update(view._asdict())


def _device() -> torch.device:
    """Where the tensors of a collective have to lie."""
    return torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
