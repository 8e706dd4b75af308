"""Every rule fires on its log, spares its near miss, and says enough to act on."""

from __future__ import annotations

import pytest
from cases import PAIRS

from surefoot.doctor import RULES, Finding, Rule, Severity
from surefoot.journal.series import LoggedRun

BY_CODE = {rule.code: rule for rule in RULES}


def found(rule: Rule, run: LoggedRun) -> list[Finding]:
    return [said for said in rule(run) if isinstance(said, Finding)]


def test_every_rule_has_a_log_and_a_near_miss() -> None:
    assert sorted(PAIRS) == [rule.code for rule in RULES]


@pytest.mark.parametrize("code", PAIRS)
def test_it_fires_on_its_log(code: str) -> None:
    pair, rule = PAIRS[code], BY_CODE[code]
    findings = found(rule, pair.fires)
    assert [finding.cause for finding in findings] == [pair.cause]
    assert findings[0].code == code


@pytest.mark.parametrize("code", PAIRS)
def test_it_spares_the_near_miss(code: str) -> None:
    assert found(BY_CODE[code], PAIRS[code].spares) == []


@pytest.mark.parametrize("code", PAIRS)
def test_what_it_finds_can_be_acted_on(code: str) -> None:
    finding = found(BY_CODE[code], PAIRS[code].fires)[0]
    assert 0.0 < finding.confidence <= 1.0
    assert finding.evidence
    assert finding.title[0].islower() or finding.title[0].isdigit() or finding.title[0].isupper()
    assert finding.remedy or finding.log_next or finding.severity is Severity.NOTE
    assert set(finding.explains) <= set(BY_CODE)


@pytest.mark.parametrize("code", PAIRS)
def test_it_is_a_pure_function(code: str) -> None:
    rule, run = BY_CODE[code], PAIRS[code].fires
    assert found(rule, run) == found(rule, run)
