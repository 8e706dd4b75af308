"""Examining a run: the ranking, what is suppressed, the clean bill, and what could not be seen."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from cases import PAIRS
from hypothesis import given
from hypothesis import strategies as st
from logs import ROLES, falling, log, noisy, said

from surefoot.doctor import RULES, Examination, Finding, RootCause, Severity, examine
from surefoot.doctor.report import tell
from surefoot.journal.series import Role

NAN = float("nan")


def causes(examination: Examination) -> list[RootCause]:
    return [finding.cause for finding in examination.findings]


def test_a_healthy_run_gets_a_clean_bill_that_says_what_was_looked_at() -> None:
    seen = examine(log(loss=falling(200), grad_norm=noisy([0.8] * 200, 0.2), lr=[3e-4] * 200))
    assert seen.verdict == "healthy"
    first = seen.findings[0]
    assert (first.code, first.cause, first.severity) == (
        "SF001",
        RootCause.HEALTHY,
        Severity.NOTE,
    )
    assert "loss, grad_norm, lr" in str(first.evidence[1])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sigma", [0.0, 0.02, 0.1, 0.5])
def test_noise_alone_is_no_finding(sigma: float, seed: int) -> None:
    loss = np.abs(noisy(falling(300, 7, 2, 0.0), sigma, seed))
    norms = np.abs(noisy(np.full(300, 1.2), 0.4, seed + 100))
    seen = examine(log(loss=loss, grad_norm=norms, lr=np.linspace(3e-4, 3e-5, 300)))
    assert [finding.title for finding in seen.findings if finding.sick] == []


@pytest.mark.parametrize("count", [3, 5, 8, 13, 40])
def test_a_short_healthy_excerpt_is_healthy(count: int) -> None:
    for seed in range(10):
        loss = noisy(np.linspace(2.6, 2.4, count), 0.04, seed)
        seen = examine(log(loss=loss, lr=np.linspace(1e-5, 2e-5, count), first_step=4000, every=10))
        assert [finding.title for finding in seen.findings if finding.sick] == []


def test_a_flat_window_of_a_long_run_is_healthy() -> None:
    seen = examine(log(loss=noisy([3.6] * 150, 0.012), first_step=2976))
    assert seen.verdict == "healthy"


def test_the_surest_finding_comes_first_and_notes_come_last() -> None:
    seen = examine(log(loss=np.append(falling(8), [2.6, 3.4, 5.1, NAN, NAN]), lr=[0.9] * 13))
    assert causes(seen)[0] is RootCause.LR_TOO_HIGH
    ranks = [(f.sick, f.confidence) for f in seen.findings]
    assert ranks == sorted(ranks, reverse=True)


def test_what_is_explained_is_kept_apart() -> None:
    falls = [2.0**-i for i in range(14)]
    loss = np.append(falling(10), [NAN] * 4)
    seen = examine(log(loss=loss, loss_scale=falls))
    assert causes(seen)[0] is RootCause.LOSS_SCALE_COLLAPSE
    assert {"SF106"} <= {finding.code for finding, by in seen.explained if by == "SF201"}
    assert not {"SF101", "SF104", "SF106"} & {finding.code for finding in seen.findings}


def test_a_named_sample_explains_the_scaler_that_raises_over_it() -> None:
    seen = examine(
        log(
            said("nan_warning", 3, "NaN in targets of sample 41, batch skipped"),
            said("scaler_misuse", 4, "AssertionError: No inf checks were recorded"),
            loss=[0.0],
        )
    )
    assert causes(seen)[0] is RootCause.BAD_DATA_OR_LABELS
    assert ("SF204", "SF701") in [(finding.code, by) for finding, by in seen.explained]


def test_every_rule_is_accounted_for() -> None:
    seen = examine(log(loss=falling(40)))
    assert [check.code for check in seen.checks] == [rule.code for rule in RULES]
    blind = {check.code: check.skipped for check in seen.checks if check.skipped}
    assert blind["SF401"] == "the log has no gradient norm"
    assert "SF804" not in blind


def test_a_log_with_nothing_in_it_is_not_called_healthy() -> None:
    seen = examine(log(anchors=[1.0, 2.0]))
    assert seen.verdict == "nothing to judge"
    assert not seen.healthy
    assert "NOTHING TO JUDGE" in tell(seen)


def test_a_rule_of_ones_own_can_be_tried_alone() -> None:
    run = PAIRS["SF601"].fires
    rule = next(rule for rule in RULES if rule.code == "SF601")
    assert causes(examine(run, [rule])) == [RootCause.MEMORY_LEAK]


@pytest.mark.parametrize("code", PAIRS)
def test_every_examination_is_plain_json(code: str) -> None:
    told = json.loads(json.dumps(examine(PAIRS[code].fires).to_dict(), allow_nan=False))
    fields = {"code", "cause", "severity", "confidence", "first_line", "step", "evidence", "remedy"}
    for finding in told["findings"]:
        assert fields <= set(finding)
        assert isinstance(finding["evidence"], list)
    assert any(finding["code"] == code for finding in told["findings"]) or any(
        each["finding"]["code"] == code for each in told["explained"]
    )


def test_the_report_says_cause_evidence_what_it_is_not_and_what_to_do() -> None:
    said_ = tell(examine(PAIRS["SF601"].fires), series=True, checks=True)
    for words in (
        "WARNING: memory_leak",
        "SF601  WARNING  memory_leak",
        "Because",
        "the slope is",
        "not a cache that fills once",
        "loss.item()",
        "SF801 a loss that leaves its valley",
        "How each column was read:",
        "host_memory: host_memory",
    ):
        assert words in said_
    assert max(map(len, said_.splitlines())) <= 100


@pytest.mark.parametrize(
    "run",
    [
        log(),
        log(loss=[]),
        log(loss=[NAN]),
        log(loss=[NAN] * 5, grad_norm=[NAN] * 5, loss_scale=[NAN] * 5, lr=[NAN] * 5),
        log(loss=[0.0] * 3, mAP=[NAN] * 4, host_memory=[0.0] * 4),
        log(loss=[-1e308, 1e308, -1e308, 1e308, 0.0]),
        log(loss=[1.0], val_loss=[], lr=[0.0]),
        log(d_loss=[0.0, NAN], g_loss=[1.0, 2.0]),
        log(loss=[float("inf")] * 8, lr=[float("inf")] * 8),
    ],
)
def test_no_log_makes_it_fail(run: object) -> None:
    seen = examine(run)  # pyright: ignore[reportArgumentType]
    assert seen.verdict in ("healthy", "sick", "nothing to judge")
    assert tell(seen, series=True)


def test_a_million_values_are_examined_in_bounded_work() -> None:
    loss = falling(300_000)
    seen = examine(log(loss=loss, grad_norm=noisy(np.ones(300_000), 0.1)))
    assert seen.verdict == "healthy"


def test_a_finding_says_its_numbers_exactly() -> None:
    finding = Finding(
        code="SF001",
        title="t",
        cause=RootCause.UNKNOWN,
        severity=Severity.NOTE,
        confidence=0.12345,
        step=float("nan"),
    )
    told = finding.to_dict()
    assert (told["step"], told["confidence"], told["first_line"]) == (None, 0.123, None)


_NUMBERS = st.lists(st.floats(width=64), max_size=24)


@given(st.dictionaries(st.sampled_from(sorted(ROLES)), _NUMBERS, max_size=6), st.booleans())
def test_whatever_numbers_a_log_holds_it_is_judged(
    columns: dict[str, list[float]], half: bool
) -> None:
    run = log(settings={"dtype": "fp16"} if half else None, **columns)
    seen = examine(run)
    assert all(0.0 <= finding.confidence <= 1.0 for finding in seen.findings)
    json.dumps(seen.to_dict(), allow_nan=False)


def test_the_scale_that_overflowed_counts_beside_the_new_one() -> None:
    columns = log(new_scale=[64.0, 32.0], attempted_scale=[128.0, 64.0])
    roles = {"new_scale": Role.LOSS_SCALE, "attempted_scale": Role.OTHER}
    run = replace(columns, columns=tuple(replace(c, role=roles[c.name]) for c in columns.columns))
    assert [finding.code for finding in examine(run).findings] == ["SF207"]
