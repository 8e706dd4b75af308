"""The pages of the rules: one for each, complete, within the package and under docs."""

from __future__ import annotations

from pathlib import Path

import pytest

from surefoot.cli.rules import page_of
from surefoot.doctor import RULES, RootCause
from surefoot.errors import UsageError

CODES = ["SF001", *(rule.code for rule in RULES)]
HEADINGS = ["## What it means", "## What it is not", "## What to do", "## Example"]


@pytest.mark.parametrize("code", CODES)
def test_every_rule_has_a_complete_page(code: str) -> None:
    page = page_of(code)
    assert page.startswith(f"# {code}: ")
    asked = HEADINGS if code != "SF106" else HEADINGS[:1]
    places = [page.index(heading) for heading in asked]
    assert places == sorted(places)
    named = page.split("\n\n")[1]
    assert any(cause.value in named for cause in RootCause)
    assert max(map(len, page.splitlines())) <= 100


def test_there_is_no_page_without_a_rule(root: Path) -> None:
    assert sorted(path.stem for path in (root / "docs" / "rules").glob("*.md")) == CODES


def test_an_unknown_code_is_answered_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="SF999: no rule has that code"):
        page_of("SF999")


def test_a_code_is_no_path() -> None:
    with pytest.raises(UsageError, match="no rule has that code"):
        page_of("../rule")
