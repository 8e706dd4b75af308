"""What goes into a journal comes out of it, whatever the values are."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from surefoot.errors import UsageError
from surefoot.journal import FORMAT_VERSION, Entry, JournalReader, JournalWriter
from surefoot.journal.format import MAX_LINE_BYTES
from surefoot.records import Cause, Culprit, Event, StepRecord, TermRecord, Verdict

STEP = StepRecord(step=0, verdict=Verdict.APPLIED, loss=2.5)

floats = st.floats(allow_nan=True, allow_infinity=True)
counts = st.integers(min_value=0, max_value=2**63)
terms = st.builds(TermRecord, st.text(), floats, floats)
records = st.builds(
    StepRecord,
    step=counts,
    verdict=st.sampled_from(Verdict),
    cause=st.sampled_from(Cause),
    loss=floats,
    terms=st.lists(terms, max_size=4).map(tuple),
    grad_norm=floats,
    clip_coefficient=floats,
    loss_scale=floats,
    learning_rates=st.lists(floats, max_size=4).map(tuple),
    micro_batches=counts,
    applied_steps=counts,
    refused_steps=counts,
    culprits=st.lists(st.builds(Culprit, st.text(), floats), max_size=4).map(tuple),
    sample_ids=st.lists(st.text(), max_size=4).map(tuple),
    events=st.lists(st.sampled_from(Event), max_size=4).map(tuple),
)


@given(st.lists(records, max_size=5))
def test_any_step_record_comes_back_as_it_was(written: list[StepRecord]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        with JournalWriter(path, run={}) as journal:
            for record in written:
                journal.write(record)
        assert list(JournalReader(path).steps()) == written


@given(st.recursive(floats | st.text() | st.none() | st.booleans(), st.lists))
def test_no_value_makes_a_line_that_is_no_json(value: object) -> None:
    def refuse(name: str) -> None:
        pytest.fail(f"bare {name} in the journal")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        with JournalWriter(path, run={"value": value}) as journal:
            journal.write(STEP, value=value)
            journal.event("epoch", value=value)
        lines = path.read_bytes().splitlines()
        assert [json.loads(line, parse_constant=refuse)["kind"] for line in lines] == [
            "header",
            "step",
            "epoch",
        ]


def test_the_header_says_what_file_this_is_and_of_which_run(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    run = {"id": "a1", "config": {"lr": 1e-4, "clip": math.inf}}
    JournalWriter(path, run=run).close()
    first = json.loads(path.read_text().splitlines()[0])
    assert first["format"] == "surefoot-journal"
    assert first["version"] == FORMAT_VERSION
    reader = JournalReader(path)
    assert reader.run == {"id": "a1", "config": {"lr": 1e-4, "clip": "inf"}}
    assert reader.version == FORMAT_VERSION
    assert reader.started == first["started"]
    assert reader.started.endswith("+00:00")


def test_steps_epochs_and_events_keep_their_order_lines_and_fields(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with JournalWriter(path, run={}) as journal:
        journal.write(STEP, epoch=1, data_seconds=math.nan)
        journal.event("epoch", epoch=1, st_iou=0.5)
        journal.event("checkpoint", path=Path("checkpoints/1"))
    entries = list(JournalReader(path))
    assert [(e.kind, e.line) for e in entries] == [("step", 2), ("epoch", 3), ("checkpoint", 4)]
    assert entries[0].values["epoch"] == 1
    assert entries[0].values["data_seconds"] == "nan"
    assert math.isnan(entries[0].number("data_seconds"))
    assert entries[0].number("loss") == 2.5
    assert entries[1].number("st_iou") == 0.5
    assert entries[2].values["path"] == "checkpoints/1"
    times = [e.number("t") for e in entries]
    assert times == sorted(times)
    assert 0.0 <= times[0] <= times[-1] < 60.0


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with JournalWriter(path, run={}) as journal:
        journal.event("epoch", a=np.float32(0.5), b=np.float64("nan"), c=np.int64(3), d=(1, 2))
    (entry,) = JournalReader(path)
    assert [entry.values[name] for name in "abcd"] == [0.5, "nan", 3, [1, 2]]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": torch.tensor(1.0)}, r"loss is a Tensor; .*\.item\(\)"),
        ({"boxes": {"a": [np.zeros(2)]}}, r"boxes\.a\.0 is a ndarray; .*\.tolist\(\)"),
        ({"names": {1: "a"}}, r"names has the key 1; JSON knows only strings"),
        ({"blob": b"x"}, r"blob is a bytes"),
        ({"t": 3.0}, r"the fields \['t'\] are the journal's own"),
    ],
)
def test_what_a_journal_cannot_hold_is_refused_by_name(
    tmp_path: Path, fields: dict[str, object], message: str
) -> None:
    path = tmp_path / "journal.jsonl"
    with JournalWriter(path, run={}) as journal:
        with pytest.raises(UsageError, match=message):
            journal.event("epoch", **fields)
        journal.event("epoch", epoch=2)
    assert [entry.values["epoch"] for entry in JournalReader(path)] == [2]


def test_a_run_that_cannot_be_written_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"run\.model is a Linear"):
        JournalWriter(tmp_path / "journal.jsonl", run={"model": torch.nn.Linear(1, 1)})
    assert list(tmp_path.iterdir()) == []


def test_an_extra_field_does_not_overwrite_the_record(tmp_path: Path) -> None:
    with (
        JournalWriter(tmp_path / "journal.jsonl", run={}) as journal,
        pytest.raises(UsageError, match=r"\['loss'\] are fields of the record already"),
    ):
        journal.write(STEP, loss=1.0)


@pytest.mark.parametrize("kind", ["header", "step", "resumed"])
def test_an_event_does_not_pass_for_a_line_of_the_journals_own(tmp_path: Path, kind: str) -> None:
    with (
        JournalWriter(tmp_path / "journal.jsonl", run={}) as journal,
        pytest.raises(UsageError, match=f"the kind '{kind}' is the journal's own"),
    ):
        journal.event(kind)


def test_a_line_too_long_to_be_read_back_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with JournalWriter(path, run={}) as journal:
        with pytest.raises(UsageError, match=r"Most of it is 'dump': write that to a file"):
            journal.event("crash", dump="x" * MAX_LINE_BYTES, step=3)
        journal.event("crash", dump="x" * (MAX_LINE_BYTES // 2))
    assert len(list(JournalReader(path))) == 1


def test_an_entry_without_a_field_says_which() -> None:
    with pytest.raises(KeyError, match="st_iou"):
        Entry("epoch", {"t": 1.0}, line=2).number("st_iou")
