"""The epoch's bar and its summary."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from surefoot.recipes.progress import EpochBar, EpochSummary, clock
from surefoot.records import Cause, Event, StepRecord, TermRecord, Verdict


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def applied(step: int = 0, *, loss: float = 2.0, norm: float = 0.5, **more: object) -> StepRecord:
    terms = (TermRecord("bbox", loss / 4, 2.0), TermRecord("cls", loss / 2, 1.0))
    return StepRecord(
        step=step, verdict=Verdict.APPLIED, loss=loss, grad_norm=norm, terms=terms,
        learning_rates=(1e-5, 1e-4), **more,
    )  # type: ignore[arg-type]  # fmt: skip


def refused(cause: Cause = Cause.NONFINITE_LOSS) -> StepRecord:
    return StepRecord(
        step=0, verdict=Verdict.REFUSED, cause=cause, loss_scale=512.0, learning_rates=(1e-5, 1e-4)
    )


def test_the_bar_ends_as_the_original_one_did() -> None:
    stream, now = io.StringIO(), Clock()
    bar = EpochBar(title="Epoch 44/140", total=125, stream=stream, now=now)
    for step in range(125):
        bar.update(applied(step, loss=2.37, norm=0.423))
    now.time = 345.0
    bar.close()
    assert stream.getvalue().splitlines()[-1] == (
        "Epoch 44/140: 100% 125/125 [05:45<00:00, loss=2.37, grad=0.423]"
    )


def test_refused_steps_are_counted_and_stay_out_of_the_mean() -> None:
    bar = EpochBar(title="Epoch 1/1", total=4, stream=io.StringIO(), now=Clock())
    for record in (applied(loss=2.0), refused(), refused(), applied(loss=4.0)):
        bar.update(record)
    assert str(bar).endswith("loss=3, grad=0.5, skipped=2]")


def test_a_refused_step_is_told_with_its_cause_and_samples_the_first_five_times() -> None:
    stream = io.StringIO()
    bar = EpochBar(title="Epoch 1/1", total=9, stream=stream, now=Clock())
    for _ in range(8):
        bar.update(replace(refused(), sample_ids=("a", "b", "c", "d")))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5
    assert "refused" in lines[0]
    assert lines[0].endswith("the loss was NaN or Inf; on a, b, c and 1 more")
    assert lines[-1].endswith("further ones are in the journal")


def test_a_pipe_gets_whole_lines_once_a_minute_and_at_the_end() -> None:
    stream, now = io.StringIO(), Clock()
    bar = EpochBar(title="Epoch 1/1", total=300, stream=stream, now=now)
    for _ in range(300):
        now.time += 1.0
        bar.update(applied())
    bar.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("Epoch 1/1:  20% 60/300 [01:00<04:00, ")
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_gets_one_line_redrawn_in_place() -> None:
    stream, now = Terminal(), Clock()
    bar = EpochBar(title="Epoch 1/1", total=10, stream=stream, now=now)
    for _ in range(10):
        now.time += 1.0
        bar.update(applied())
    bar.close()
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().count("\r") == 10
    assert "|██████████          | 5/10" in stream.getvalue()


def test_hours_are_shown_when_there_are_any() -> None:
    assert [clock(s) for s in (0, 59.9, 60, 3600)] == ["00:00", "00:59", "01:00", "1:00:00"]


def test_a_summary_has_raw_and_weighted_terms_norms_rates_and_refusals() -> None:
    summary = EpochSummary(["support", "rest"])
    for record in (
        applied(loss=2.0, norm=1.0),
        refused(),
        applied(loss=4.0, norm=3.0, events=(Event.CLIPPED,)),
        StepRecord(step=3, verdict=Verdict.ACCUMULATED, loss=100.0),
    ):
        summary.add(record)
    values = summary.fields()
    assert (values["steps"], values["applied"], values["refused"]) == (3, 2, 1)
    assert values["terms"] == {
        "bbox": {"raw": 0.75, "weight": 2.0},
        "cls": {"raw": 1.5, "weight": 1.0},
    }
    assert (values["loss"], values["grad_norm_mean"], values["grad_norm_max"]) == (3.0, 2.0, 3.0)
    assert values["learning_rates"] == {"support": 1e-5, "rest": 1e-4}
    assert values["events"] == {"clipped": 1}
    assert values["causes"] == {"nonfinite_loss": 1}
    assert values["host_memory_mb"] > 10


def test_the_lines_of_a_summary_name_everything_a_person_looks_for() -> None:
    summary = EpochSummary(["support", "rest"])
    summary.add(applied(events=(Event.CLIPPED, Event.LOSS_SPIKE), loss_scale=1024.0))
    summary.add(refused(Cause.OVERFLOW))
    text = "\n".join(summary.lines(loss_scale=True, device_memory_mb=512.4))
    assert "loss 2 = bbox 0.5 x 2 = 1  cls 1 x 1 = 1" in text
    assert "(true, before clipping): mean 0.5, max 0.5; clipped 1, refused 1 of 2 steps" in text
    assert "(1 x overflow), loss spike 1" in text
    assert "learning rate: support 1e-05  rest 0.0001 | loss scale 512 | memory: host" in text
    assert "device 512 MB (peak)" in text


@pytest.mark.parametrize("shown", [True, False])
def test_the_loss_scale_is_shown_where_there_is_one(shown: bool) -> None:
    summary = EpochSummary(["all"])
    summary.add(applied(loss_scale=1024.0))
    lines = summary.lines(loss_scale=shown, device_memory_mb=None)
    assert any("loss scale 1024" in line for line in lines) == shown
