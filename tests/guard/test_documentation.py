"""The guard's page explains every word that a record can say."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from surefoot.guard import Policy
from surefoot.records import Cause, Event, StepRecord, Verdict

PAGE = (Path(__file__).parents[2] / "docs" / "guard.md").read_text("utf-8")


@pytest.mark.parametrize("kind", [Verdict, Cause, Event])
def test_every_word_has_its_line(kind):
    missing = [m.value for m in kind if f"`{m.value}`" not in PAGE and m is not Cause.NONE]
    assert missing == []


def test_every_field_of_a_record_has_its_line():
    said_elsewhere = {"step", "micro_batches", "applied_steps", "refused_steps", "version"}
    names = {f.name for f in fields(StepRecord)} - said_elsewhere
    assert sorted(n for n in names if f"`{n}`" not in PAGE) == []


def test_the_policy_table_names_real_fields_and_their_defaults():
    lines = PAGE.split("## What happens when: the policy")[1].split("## ")[0].splitlines()
    rows = [line.split("|")[1:-1] for line in lines if line.startswith("| ")][2:]
    known = {f.name: f.default for f in fields(Policy)}
    for _, name, _, default in rows:
        field = name.strip().strip("`")
        if field != "none":
            assert str(known[field]) == default.strip().strip("`"), field
