"""The machine and the processes: GPUs whose float16 is broken, waits for data, equal ranks."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from surefoot.doctor.case import Case
from surefoot.doctor.columns import finite
from surefoot.doctor.finding import Evidence, Finding, RootCause, Severity
from surefoot.doctor.nonfinite import nonfinite
from surefoot.doctor.robust import level
from surefoot.doctor.rule import Blind, Rule, rule
from surefoot.doctor.spot import said_at, spot
from surefoot.journal.foreign.ranks import OTHER_RANK
from surefoot.journal.series import Column, Role

__all__ = ["RULES"]

_IN_THE_DATA = re.compile(
    r"albument|augment|transform|bbox_utils|imgaug|dataset|dataloader|collat|mosaic", re.I
)
_AT_THE_EDGE = re.compile(r"(divide by zero|invalid value|overflow) encountered", re.I)


@rule("SF209", "float16 on a GPU that computes it wrongly")
def broken_half(case: Case) -> Iterator[Finding]:
    """The GTX 16 series and small Turing cards give NaN or zeros for some float16 kernels."""
    told = case.of_kind("weak_half_gpu")
    if not told or case.precision in ("fp32", "bf16"):
        return
    broken = nonfinite(case) is not None
    yield Finding(
        code="SF209",
        title="this GPU is known to give NaN in float16 where others do not",
        cause=RootCause.FP16_OVERFLOW,
        severity=Severity.CRITICAL if broken else Severity.NOTE,
        confidence=0.7 if broken and case.precision == "fp16" else 0.4,
        **said_at(told[0]),
        evidence=(Evidence("gpu", told[0].text, f"line {told[0].line}: {told[0].text[:100]}"),),
        not_this=("not the loss or its epsilon, as long as the same batch is finite in float32",),
        remedy=(
            "train in float32 on this card (--precision fp32)",
            "run one batch of 8 or more in float16 and in float32, and compare the outputs",
        ),
    )


@rule("SF606", "steps that wait for data most of the time", Role.STEP_TIME)
def waiting(case: Case) -> Iterator[Finding | Blind]:
    """More than half of a step is spent on loading: the training is sound, and slow."""
    times = [known for c in case.run.of(Role.STEP_TIME) if (known := finite(c)).values.size >= 10]
    loading = [c for c in times if c.group == "data"]
    whole = [c for c in times if c.group != "data"]
    if not loading or not whole:
        yield Blind("the time of a step and the time that its data takes are not both logged")
        return
    wait, step = level(loading[0].values), level(whole[0].values)
    if not 0.5 * step < wait <= 1.05 * step:
        return
    yield Finding(
        code="SF606",
        title=f"{wait / step:.0%} of a step is spent waiting for data",
        cause=RootCause.HEALTHY,
        severity=Severity.NOTE,
        confidence=0.7,
        **spot(loading[0]),
        evidence=(Evidence("share", wait / step, f"{wait:.3g} s of {step:.3g} s"),),
        not_this=("not a fault of the training: the same steps, later",),
        remedy=(
            "more data workers (--num-workers), persistent ones; decode and resize once, not in "
            "each epoch",
        ),
    )


@rule("SF706", "divisions by zero in the data's own code")
def degenerate_boxes(case: Case) -> Iterator[Finding]:
    """NumPy warns again and again where boxes or crops are made: some have no area."""
    told = [m for m in case.said(_AT_THE_EDGE.pattern) if _IN_THE_DATA.search(m.text)]
    if len(told) < 3:
        return
    yield Finding(
        code="SF706",
        title="the data's own code divides by zero: boxes or crops without an area",
        cause=RootCause.BAD_DATA_OR_LABELS,
        severity=Severity.WARNING,
        confidence=0.7,
        **said_at(told[0]),
        evidence=(
            Evidence("message", told[0].text, f"line {told[0].line}: {told[0].text[:120]}"),
            Evidence("times", len(told), f"said {len(told)} times"),
        ),
        not_this=("not numerically_unsafe_op of the loss: the warning names the data's code",),
        remedy=(
            "drop boxes below 2 pixels before and after the augmentation, and let images without "
            "a box through as such",
            "do not mute the warning: count it",
        ),
        explains=("SF102", "SF106"),
    )


@rule("SF707", "ranks that print the same loss to the last digit")
def equal_ranks(case: Case) -> Iterator[Finding]:
    """Different batches give different losses: these processes see the same samples."""
    told = [c for c in case.columns if c.role is Role.OTHER and c.group == OTHER_RANK]
    for column in told:
        if column.values.size < 8 or np.any(column.values != 0.0):
            continue
        yield _the_same(column)
        return


def _the_same(column: Column) -> Finding:
    return Finding(
        code="SF707",
        title="several ranks print the same loss each time: they train on the same batches",
        cause=RootCause.BAD_DATA_OR_LABELS,
        severity=Severity.WARNING,
        confidence=0.65,
        **spot(column),
        evidence=(
            Evidence("equal", int(column.values.size), f"{column.values.size} equal losses"),
        ),
        not_this=(
            "not a loss that is averaged over the ranks, unless the line says so: then nothing is "
            "wrong",
        ),
        remedy=(
            "DistributedSampler in every loader, also in one that is built anew for a second stage",
            "sampler.set_epoch(epoch) at each epoch",
        ),
        log_next=("the ids of the samples of one batch of each rank",),
    )


RULES: tuple[Rule, ...] = (broken_half, waiting, degenerate_boxes, equal_ranks)
