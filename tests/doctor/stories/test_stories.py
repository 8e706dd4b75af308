"""Every story of the two taxonomies is diagnosed as what it truly was, from a log of it."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
from consoles import (
    Lines,
    amid,
    camo_epochs,
    camo_start,
    falling,
    refdet_bars,
    refdet_block,
    refdet_epochs,
    refdet_losses,
    refdet_start,
)
from table import PAGE, STORIES, page
from telling import Story, examined, leading

from surefoot.doctor import RULES, RootCause

BY_ID = {story.id: story for story in STORIES}
SICK = [story.id for story in STORIES if story.cause != "healthy"]
SPARED = [story.id for story in STORIES if story.cause == "healthy"]


def test_all_stories_of_both_taxonomies_are_told() -> None:
    told = {re.sub(r"[a-z]$", "", name) for name in BY_ID}
    asked = {f"refdet F{i}" for i in range(1, 36)} | {f"camouflage F{i}" for i in range(1, 35)}
    assert told == asked
    assert len(BY_ID) == len(STORIES)


def test_causes_and_codes_are_those_of_the_doctor() -> None:
    assert {story.cause for story in STORIES} <= {cause.value for cause in RootCause}
    assert {story.code for story in STORIES} <= {"SF001", *(rule.code for rule in RULES)}


@pytest.mark.parametrize("name", SICK)
def test_its_true_cause_is_among_the_first_two(name: str) -> None:
    story = BY_ID[name]
    findings = leading(examined(story))
    assert story.cause in {finding.cause.value for finding in findings}
    assert story.code in {finding.code for finding in findings}
    assert all(finding.sick for finding in findings[:1])


@pytest.mark.parametrize("name", SPARED)
def test_what_was_no_fault_is_no_warning(name: str) -> None:
    story = BY_ID[name]
    examinations = examined(story)
    assert {one.verdict for one in examinations} == {"healthy"}
    assert story.code in {f.code for one in examinations for f in one.findings}


@pytest.mark.parametrize(
    ("name", "never"),
    [
        ("refdet F3", {"exploding_gradients", "lr_too_high"}),
        ("refdet F5", {"exploding_gradients"}),
        ("refdet F10", {"loss_term_dominates", "lr_too_high"}),
        ("refdet F20", {"memory_leak"}),
        ("camouflage F1", {"lr_too_high", "exploding_gradients"}),
        ("camouflage F5", {"lr_too_high", "overfitting"}),
        ("camouflage F9", {"memory_leak"}),
        ("camouflage F13", {"memory_leak"}),
    ],
)
def test_what_its_authors_took_it_for_is_not_named(name: str, never: set[str]) -> None:
    findings = [f for one in examined(BY_ID[name]) for f in one.findings if f.sick]
    assert findings
    assert not never & {finding.cause.value for finding in findings[:2]}


def healthy_detector() -> Lines:
    box, cls, dfl = falling(200, 1.9, 0.9), falling(200, 1.2, 0.5, seed=1), falling(200, 11.2, 4.0)
    norms = falling(200, 9.0, 3.0, 0.2, seed=2)

    def block(i: int) -> Lines:
        total = 2 * box[i] + 0.5 * (cls[i] + dfl[i])
        losses = refdet_losses(i, total, bbox=box[i], cls=cls[i], dfl=dfl[i])
        return losses + refdet_block(i, "Gradient Norms", **{"Total Grad Norm": norms[i]})

    rates = [float(1e-4 * (0.5 + 0.5 * np.cos(np.pi * i / 200))) for i in range(200)]
    bars = refdet_bars(2 * box + 0.5 * (cls + dfl), rates)
    start = refdet_start(1e-4, "CosineAnnealingLR", lr=1e-4, epochs=1, dfl_weight=0.5)
    metrics = {"Val_ST-IoU": [0.2, 0.35, 0.41], "Val_mAP@0.5": [0.1, 0.2, 0.24]}
    return [*start, *amid(bars, block), *refdet_epochs(falling(3, 6.0, 5.0), **metrics)]


def healthy_segmenter() -> Lines:
    share = 0.5 + 0.5 * np.cos(np.linspace(0, np.pi, 140))
    rates = [(float(2.5e-4 * s), float(2.5e-5 * s)) for s in share]
    iou = 0.72 - falling(140, 0.6, 0.0, 0.02)
    flags = camo_start(lr=2.5e-4, scheduler="cosine", min_lr=1e-6, ema_decay=0.999, epochs=140)
    stage = ["STAGE 2: all layers unfrozen"]
    epochs = camo_epochs(falling(140, 5.6, 1.7), iou, rates)
    return [*flags, *epochs[:120], *stage, *epochs[120:]]


@pytest.mark.parametrize("log", [healthy_detector, healthy_segmenter])
def test_a_healthy_run_of_either_system_gets_a_clean_bill(log: Callable[[], Lines]) -> None:
    (examination,) = examined(Story("control", "", "", "healthy", "SF001", log))
    assert examination.verdict == "healthy"
    assert [f.code for f in examination.findings if f.sick] == []
    assert examination.findings[0].code == "SF001"


def numbers_of(story: Story) -> str:
    return " ".join(f"{fact.text}" for f in leading(examined(story)) for fact in f.evidence)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("refdet F3", "divided by the scale, 65536, it is 7"),
        ("refdet F10", "below e"),
        ("camouflage F5", "83% of that average are still the weights before training"),
        ("camouflage F22", "the floor is 0.0001"),
    ],
)
def test_the_evidence_is_the_number_that_gives_it_away(name: str, said: str) -> None:
    assert said in numbers_of(BY_ID[name])


@pytest.mark.parametrize("name", list(BY_ID))
def test_a_log_is_told_the_same_way_twice(name: str) -> None:
    assert BY_ID[name].log() == BY_ID[name].log()


def test_the_page_is_in_step_with_the_table() -> None:
    told = PAGE.read_text("utf-8")
    assert told == page(), "run python tests/doctor/stories/table.py"
