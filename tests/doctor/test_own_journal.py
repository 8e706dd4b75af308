"""Journals of surefoot's own runs: what guard, loader and recipe wrote down is found."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from surefoot.doctor import Examination, Finding, RootCause, Severity, examine
from surefoot.doctor.html.page import report
from surefoot.faults import ForwardFault, Origin
from surefoot.journal import JournalWriter
from surefoot.journal.foreign import read_log
from surefoot.journal.series import Role
from surefoot.records import Cause, Event, StepRecord, TermRecord, Verdict

NAN = math.nan
RUN = {"precision": "fp16", "settings": {"optimizer": {"lr": 1e-3, "gradient_clip_norm": 10.0}}}


def applied(step: int, **more: Any) -> StepRecord:
    loss = 0.4 + 2.0 / (1 + step / 10)
    values = {"loss": loss, "grad_norm": 1.0 + 0.1 * math.sin(step), "learning_rates": (1e-3,)}
    return StepRecord(step=step, verdict=Verdict.APPLIED, **(values | more))


def refused(step: int, cause: Cause = Cause.NONFINITE_LOSS, **more: Any) -> StepRecord:
    values = {"loss": NAN, "grad_norm": NAN, "learning_rates": (1e-3,)}
    return StepRecord(step=step, verdict=Verdict.REFUSED, cause=cause, **(values | more))


@pytest.fixture
def journal(tmp_path: Path) -> Callable[..., Examination]:
    """Writes records, and events given as (kind, fields), in their order; examines the file."""

    def write(*entries: StepRecord | tuple[str, dict[str, Any]]) -> Examination:
        path = tmp_path / "journal.jsonl"
        with JournalWriter(path, run=RUN) as writer:
            for entry in entries:
                if isinstance(entry, StepRecord):
                    writer.write(entry)
                else:
                    writer.event(entry[0], **entry[1])
        (run,) = read_log(path)
        return examine(run)

    return write


def found(seen: Examination, code: str) -> Finding | None:
    return next((finding for finding in seen.findings if finding.code == code), None)


def sick(seen: Examination) -> list[str]:
    return [finding.code for finding in seen.findings if finding.sick]


def test_overflows_at_the_start_alone_are_healthy(journal: Callable[..., Examination]) -> None:
    scales = [65536.0, 32768.0, 16384.0]
    starts = [
        refused(i, Cause.OVERFLOW, loss=2.4, grad_norm=math.inf, loss_scale=scales[i])
        for i in range(3)
    ]
    seen = journal(*starts, *(applied(i, loss_scale=8192.0) for i in range(3, 300)))
    assert seen.verdict == "healthy"
    assert found(seen, "SF206") is not None


def test_overflows_without_end_are_not(journal: Callable[..., Examination]) -> None:
    records = [
        refused(i, Cause.OVERFLOW, loss=2.4, grad_norm=math.inf, loss_scale=2.0 ** (26 - i))
        for i in range(10, 34)
    ]
    seen = journal(*(applied(i) for i in range(10)), *records)
    assert seen.findings[0].cause is RootCause.LOSS_SCALE_COLLAPSE


def test_samples_that_are_refused_each_time_are_the_cause(
    journal: Callable[..., Examination],
) -> None:
    records = []
    for step in range(120):
        ids = tuple(f"img_{(7 * step + k) % 40}" for k in range(2))
        bad = "img_7" in ids
        records.append(refused(step, sample_ids=ids) if bad else applied(step, sample_ids=ids))
    seen = journal(*records)
    first = seen.findings[0]
    assert (first.code, first.cause) == ("SF705", RootCause.BAD_DATA_OR_LABELS)
    assert "sample img_7" in first.title


def test_samples_that_pass_the_next_time_are_not(journal: Callable[..., Examination]) -> None:
    records = [
        refused(i, sample_ids=(f"img_{i % 40}",))
        if i in (17, 58, 99)
        else applied(i, sample_ids=(f"img_{i % 40}",))
        for i in range(160)
    ]
    assert found(journal(*records), "SF705") is None


def test_a_run_that_has_broken_down_does_not_blame_its_samples(
    journal: Callable[..., Examination],
) -> None:
    records = [applied(i, sample_ids=(f"img_{i % 10}",)) for i in range(100)]
    records += [refused(i, sample_ids=(f"img_{i % 10}",)) for i in range(100, 160)]
    seen = journal(*records)
    assert seen.verdict == "sick"
    assert found(seen, "SF705") is None


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (
            ForwardFault(origin=Origin.INPUT, value="NaN", position="input[0]"),
            RootCause.BAD_DATA_OR_LABELS,
        ),
        (ForwardFault(origin=Origin.LOSS), RootCause.NUMERICALLY_UNSAFE_OP),
        (
            ForwardFault(origin=Origin.MODULE, module="neck", kind="Conv2d", value="Inf"),
            RootCause.FP16_OVERFLOW,
        ),
        (
            ForwardFault(origin=Origin.MODULE, module="neck", value="NaN", state=("weight",)),
            RootCause.UNKNOWN,
        ),
    ],
)
def test_where_the_bad_value_came_up_is_the_cause(
    fault: ForwardFault, cause: RootCause, journal: Callable[..., Examination]
) -> None:
    records = [applied(i) for i in range(100)]
    records[60] = refused(60, fault=fault)
    seen = journal(*records)
    assert (seen.findings[0].code, seen.findings[0].cause) == ("SF108", cause)
    assert seen.findings[0].step == 60


def test_a_fault_that_nobody_could_place_says_nothing(journal: Callable[..., Examination]) -> None:
    records = [applied(i) for i in range(100)]
    records[60] = refused(60, fault=ForwardFault(origin=Origin.NOT_KEPT))
    assert found(journal(*records), "SF108") is None


def test_one_rollback_that_helped_is_a_note(journal: Callable[..., Examination]) -> None:
    records = [applied(i) for i in range(200)]
    records[90] = refused(90, Cause.SPIKE, loss=9.0, events=(Event.DIVERGED, Event.ROLLED_BACK))
    finding = found(journal(*records), "SF810")
    assert finding is not None
    assert (finding.severity, finding.cause) == (Severity.NOTE, RootCause.SPIKE_RECOVERED)


def test_rollbacks_again_and_again_are_the_learning_rate(
    journal: Callable[..., Examination],
) -> None:
    records = [applied(i) for i in range(200)]
    for step in (90, 130, 170):
        records[step] = refused(
            step, Cause.SPIKE, loss=9.0, events=(Event.DIVERGED, Event.ROLLED_BACK)
        )
    finding = found(journal(*records), "SF810")
    assert finding is not None
    assert (finding.severity, finding.cause) == (Severity.WARNING, RootCause.LR_TOO_HIGH)


STEPS = [applied(i) for i in range(60)]
EVENTS = [
    ("checkpoint", {"step": 9, "path": None, "problem": "No space left", "failures": 1}, "SF906"),
    ("gap", {"lost": 12}, "SF907"),
    ("missing", {"lines": 3}, "SF907"),
    ("stalled", {"seconds": 900.0, "usual": 0.4, "waits_in": "a lock", "stacks": "..."}, "SF908"),
    (
        "memory",
        {"where": "host", "per_step": 1e6, "steps_left": 900.0, "became_more": ["list of float"]},
        "SF604",
    ),
    ("precision", {"asked": "fp16", "chosen": "fp32", "reason": "it overflowed"}, "SF208"),
    ("halved", {"step": 9, "pieces": 2, "sizes": [4, 4], "problem": "out of memory"}, "SF605"),
    (
        "data",
        {"what": "exception", "quarantined": True, "index": 41, "error": "OSError", "text": "x"},
        "SF704",
    ),
    (
        "data",
        {"what": "killed", "quarantined": False, "index": 4, "error": "signal 9", "text": "x"},
        "SF603",
    ),
]


@pytest.mark.parametrize(("kind", "fields", "code"), EVENTS)
def test_what_the_run_wrote_down_is_found(
    kind: str, fields: dict[str, Any], code: str, journal: Callable[..., Examination]
) -> None:
    seen = journal(*STEPS, (kind, fields), *(applied(i) for i in range(60, 90)))
    finding = found(seen, code)
    assert finding is not None
    assert finding.first_line == 62


NEAR = [
    ("checkpoint", {"step": 9, "path": "checkpoints/1", "problem": "", "failures": 0}),
    ("gap", {"lost": 0}),
    ("precision", {"asked": "fp16", "chosen": "fp16", "reason": "the gradients agree"}),
    ("interrupted", {"by": "SIGTERM", "step": 59, "checkpoint": "00001-step-59"}),
    ("data", {"what": "exception", "quarantined": False, "index": 41, "error": "E", "text": "x"}),
    ("finding", {"code": "SF101", "severity": "critical", "confidence": 0.9, "step": 3}),
    ("epoch", {"epoch": 1, "refused": 0, "loss": 0.9, "host_memory_mb": 900.0}),
]


@pytest.mark.parametrize(("kind", "fields"), NEAR)
def test_what_is_as_it_should_be_is_not(
    kind: str, fields: dict[str, Any], journal: Callable[..., Examination]
) -> None:
    seen = journal(*STEPS, (kind, fields), *(applied(i) for i in range(60, 90)))
    assert [finding.code for finding in seen.findings] == ["SF001"]


def test_a_save_that_worked_later_makes_it_a_note(journal: Callable[..., Examination]) -> None:
    failed = ("checkpoint", {"step": 9, "path": None, "problem": "No space left", "failures": 1})
    saved = ("checkpoint", {"step": 19, "path": "checkpoints/1", "problem": "", "failures": 0})
    finding = found(journal(*STEPS, failed, saved), "SF906")
    assert finding is not None
    assert finding.severity is Severity.NOTE


def test_a_few_samples_set_aside_are_a_note_and_many_a_warning(
    journal: Callable[..., Examination],
) -> None:
    fields = {"what": "exception", "quarantined": True, "error": "OSError", "text": "truncated"}
    aside = [("data", fields | {"index": i}) for i in range(3)]
    assert sick(journal(*STEPS, *aside)) == ["SF704"]


def test_an_epochs_line_does_not_count_its_steps_again(
    journal: Callable[..., Examination],
) -> None:
    summary = {"epoch": 1, "loss": 0.9, "grad_norm_mean": 1.0, "host_memory_mb": 512.0}
    seen = journal(*STEPS, ("epoch", summary))
    names = {column.name: column for column in seen.run.columns}
    assert names["loss"].values.size == 60
    assert "grad_norm_mean" not in names
    (memory,) = seen.run.of(Role.HOST_MEMORY)
    assert memory.values[0] == 512.0 * 2**20


def test_a_term_that_breaks_is_named_once(journal: Callable[..., Examination]) -> None:
    def terms(box: float) -> tuple[TermRecord, ...]:
        return (TermRecord("box", box, 2.0), TermRecord("cls", 0.5, 1.0))

    records = [applied(i, terms=terms(1.0 / (1 + i))) for i in range(60)]
    records += [refused(i, terms=terms(NAN)) for i in range(60, 70)]
    seen = journal(*records)
    said = " ".join(str(fact) for finding in seen.findings for fact in finding.evidence)
    assert "box alone is no number; cls from the same model stays finite" in said
    page = report([seen])
    assert "Share of each term in the loss, weighted" in page
    assert "clip at 10" in page


@pytest.mark.parametrize(
    "line",
    [
        b'{"kind": "data", "quarantined": true, "index": {"a": [1]}}',
        b'{"kind": ["data"], "t": 1}',
        b'{"kind": "memory", "per_step": "x", "became_more": 3}',
        b'{"kind": "stalled"}',
        b'{"kind": "checkpoint", "problem": 7}',
        b'{"kind": "step", "step": 3, "verdict": "refused", "fault": {"origin": "unheard"}}',
        b'{"kind": "step", "step": 3, "verdict": "refused", "fault": 3, "sample_ids": 4}',
        b'{"kind": "step", "step": 3, "events": [[1], null, "clipped"]}',
    ],
)
def test_damaged_lines_are_borne(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with JournalWriter(path, run=RUN) as writer:
        for record in STEPS:
            writer.write(record)
    path.write_bytes(path.read_bytes() + line + b"\n")
    (run,) = read_log(path)
    assert examine(run).judged


def evaluated(epoch: int, **fields: Any) -> tuple[str, dict[str, Any]]:
    return "evaluation", {"epoch": epoch, **fields}


def scores(quality: float) -> dict[str, Any]:
    """What the segmenter's recipe writes of one set of weights."""
    names = ("s_measure", "e_adaptive", "e_mean", "e_max", "weighted_f", "iou", "dice")
    return {
        "images": 40,
        "images_without_object": 0,
        **dict.fromkeys(names, quality),
        "mae": 0.5 * (1 - quality),
        "false_positive_area": None,
    }


def in_epochs(*evaluations: dict[str, Any]) -> list[StepRecord | tuple[str, dict[str, Any]]]:
    """Ten steps of a falling loss before each evaluation."""
    entries: list[StepRecord | tuple[str, dict[str, Any]]] = []
    for epoch, fields in enumerate(evaluations):
        entries += [applied(10 * epoch + i) for i in range(10)]
        entries.append(evaluated(epoch + 1, **fields))
    return entries


def test_scores_of_each_set_of_weights_are_metrics_with_their_direction(
    journal: Callable[..., Examination],
) -> None:
    rising = [{"model": scores(0.1 * i), "ema": scores(0.08 * i)} for i in range(1, 7)]
    seen = journal(*in_epochs(*rising))
    columns = {c.name: c for c in seen.run.columns if c.name.startswith("evaluation ")}
    measured = {name: c.better for name, c in columns.items() if c.role is Role.METRIC}
    for weights in ("model", "ema"):
        for name in ("s_measure", "e_adaptive", "e_mean", "e_max", "weighted_f", "iou", "dice"):
            assert measured.pop(f"evaluation {weights}/{name}") == "higher"
        assert measured.pop(f"evaluation {weights}/mae") == "lower"
    assert measured == {}
    assert {c.group for c in columns.values()} == {"validation"}
    assert not [c for c in seen.run.columns if c.role is Role.VALIDATION_LOSS]
    assert seen.verdict == "healthy"


def test_detections_with_the_references_of_another_object_are_better_fewer(
    journal: Callable[..., Examination],
) -> None:
    """They fall as the detector learns, which is no collapse of a metric."""
    names = ("st_iou", "map50", "map75", "recall")
    falling = [
        {
            "threshold": 0.3,
            "right": dict.fromkeys(names, 0.1 * i) | {"false_alarms": 0.1, "fires": 0.4},
            "swapped": dict.fromkeys(names, 0.5 / i**2) | {"false_alarms": 0.2, "fires": 1 / i},
        }
        for i in range(1, 9)
    ]
    seen = journal(*in_epochs(*falling))
    better = {c.name: c.better for c in seen.run.columns if c.role is Role.METRIC}
    assert {better[f"evaluation right/{name}"] for name in names} == {"higher"}
    assert {better[f"evaluation swapped/{name}"] for name in (*names, "fires")} == {"lower"}
    assert better["evaluation right/false_alarms"] == "lower"
    assert seen.verdict == "healthy"


def test_the_first_stage_of_the_detector_is_measured_by_its_precision(
    journal: Callable[..., Examination],
) -> None:
    seen = journal(*in_epochs(*({"map": 0.1, "map50": 0.2, "map75": 0.1} for _ in range(3))))
    better = {c.name: c.better for c in seen.run.columns if c.role is Role.METRIC}
    assert better == {f"evaluation {name}": "higher" for name in ("map", "map50", "map75")}


@pytest.mark.parametrize(
    ("code", "qualities"),
    [
        ("SF807", [0.2, 0.5, 0.6, 0.55, 0.5, 0.45, 0.4, 0.35]),  # overfitting, by the MAE
        ("SF808", [0.0] * 8),
        ("SF809", [0.3, 0.5, 0.6, 0.58, 0.1, 0.1, 0.1, 0.1]),
        ("SF811", [0.6, 0.6, 0.5, 0.4, 0.3, 0.2, 0.15, 0.1]),
    ],
)
def test_rules_about_metrics_see_the_scores_of_our_own_runs(
    journal: Callable[..., Examination], code: str, qualities: list[float]
) -> None:
    seen = journal(*in_epochs(*({"model": scores(quality)} for quality in qualities)))
    told = found(seen, code)
    assert told is not None, [finding.code for finding in seen.findings]
    assert "evaluation model/" in told.title
