"""Every story of the two taxonomies is diagnosed as what it truly was, from a log of it."""

from __future__ import annotations

import re

import pytest
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
