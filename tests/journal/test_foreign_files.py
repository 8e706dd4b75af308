"""Files that are no lines of text: CSV, JSON, TensorBoard's events, our own journal."""

from __future__ import annotations

import io
import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from surefoot.errors import JournalError
from surefoot.journal import JournalWriter
from surefoot.journal.foreign import read_log
from surefoot.journal.foreign.events import crc32c, masked
from surefoot.journal.series import Role
from surefoot.records import Cause, Culprit, Event, StepRecord, TermRecord, Verdict


def read(text):
    (run,) = read_log(io.StringIO(text))
    return run


def outcome(data):
    try:
        return read_log(io.BytesIO(data))
    except JournalError as problem:
        return problem


def points(column):
    return list(zip(column.steps.tolist(), column.values.tolist(), strict=True))


def test_csv_with_gaps_as_lightning_writes_it():
    rows = [f"{e},{100 * e + 49},0.{9 - e},,\n{e},{100 * e + 99},,0.{9 - e}5,\n" for e in range(4)]
    run = read("epoch,step,train_loss_step,val_loss,lr-Adam\n" + "".join(rows) + ",399,,,0.001\n")
    assert points(run.of(Role.LOSS)[0]) == [(49, 0.9), (149, 0.8), (249, 0.7), (349, 0.6)]
    assert points(run.of(Role.VALIDATION_LOSS)[0])[0] == (99, 0.95)
    assert run.of(Role.VALIDATION_LOSS)[0].lines.tolist() == [3, 5, 7, 9]
    assert points(run.of(Role.LEARNING_RATE)[0]) == [(399, 0.001)]


def test_csv_tells_nan_from_a_gap():
    run = read("step,loss,acc\n1,0.5,\n2,nan,0.3\n3,,0.4\n4,inf,0.5\n")
    assert np.array_equal(run.of(Role.LOSS)[0].values, [0.5, np.nan, np.inf], equal_nan=True)
    assert run.of(Role.METRIC)[0].steps.tolist() == [2, 3, 4]


def test_csv_with_semicolons_decimal_commas_and_a_byte_order_mark():
    run = read("\ufeffstep;loss;lr\n1;0,5;0,001\n2;1,25;0,001\n3;1.234,5;0,001\n")
    assert run.of(Role.LOSS)[0].values.tolist() == [0.5, 1.25, 1234.5]


def test_csv_with_quotes_tabs_and_units():
    run = read('"step","loss","note"\n1,0.5,"fine, really"\n2,0.4,"ok"\n')
    assert run.of(Role.LOSS)[0].values.tolist() == [0.5, 0.4]
    run = read("Step\tTraining Loss\tmem\n500\t0.9\t3.5GB\n1000\t0.8\t3.6GB\n")
    assert run.of(Role.DEVICE_MEMORY)[0].values[0] == 3.5 * 2**30


def test_csv_whose_rows_say_what_they_are():
    run = read(
        "kind,update,loss,gnorm,loss_scale\noverflow,,,,64\ntrain,10,9.5,3.1,64\nvalid,10,9.9,,\n"
        "overflow,,,,32\nstopped: minimum loss scale 0.1 reached,,,,\n"
    )
    assert points(run.of(Role.LOSS)[0]) == [(10, 9.5)]
    assert points(run.of(Role.VALIDATION_LOSS)[0]) == [(10, 9.9)]
    assert run.of(Role.LOSS_SCALE)[0].values.tolist() == [64, 64, 32]
    assert [m.kind for m in run.messages] == ["overflow", "overflow", "scale_at_minimum"]
    assert [m.line for m in run.messages] == [2, 5, 6]


def test_csv_with_one_value_a_row_and_attempted_scales():
    run = read("iteration,metric,value\n20,loss,87.3\n20,lr,0.01\n40,loss,87.3\n40,accuracy,0\n")
    assert points(run.of(Role.LOSS)[0]) == [(20, 87.3), (40, 87.3)]
    assert run.of(Role.METRIC)[0].name == "accuracy"
    run = read("step,attempted_loss_scale,new_loss_scale\n98,2,1\n99,1,1\n")
    assert [m.values["attempted"] for m in run.messages] == [2, 1]
    assert [c.name for c in run.of(Role.LOSS_SCALE)] == ["new_loss_scale"]
    run = read(
        "time,event,value\n1,loss_for_sample_3,0.0\n,AssertionError: No inf checks were recorded,\n"
    )
    assert [m.kind for m in run.messages] == ["scaler_misuse"]


def test_an_export_of_several_runs_is_taken_apart():
    head = '"Step","calm-1 - loss","calm-1 - loss__MIN","calm-1 - loss__MAX","wild-2 - loss"\n'
    rows = "".join(f'"{10 * i}","{2 - i / 10}","1","3","{3 + i}"\n' for i in range(5))
    calm, wild = read_log(io.StringIO(head + rows))
    assert (calm.source, wild.source) == ("<stream> [calm-1]", "<stream> [wild-2]")
    assert points(calm.of(Role.LOSS)[0])[0] == (0, 2.0)
    assert points(wild.of(Role.LOSS)[0])[-1] == (40, 7.0)
    assert {c.name for c in calm.of(Role.OTHER)} == {"loss__MIN", "loss__MAX"}


def test_tensorboards_csv_takes_its_name_from_the_file(tmp_path):
    path = tmp_path / "run-.-tag-val_loss.csv"
    path.write_text("Wall time,Step,Value\n1767225600.1,10,0.5\n1767225601.1,20,0.4\n")
    (run,) = read_log(path)
    assert points(run.of(Role.VALIDATION_LOSS)[0]) == [(10, 0.5), (20, 0.4)]


def test_a_second_head_in_a_csv_is_a_second_run():
    text = "step,loss\n1,0.5\n2,0.4\n3,0.3\n"
    first, second = read_log(io.StringIO(text + text))
    assert points(first.of(Role.LOSS)[0]) == points(second.of(Role.LOSS)[0])
    assert second.of(Role.LOSS)[0].lines.tolist() == [6, 7, 8]


def test_a_torn_row_gives_all_but_its_last_cell():
    run = read("step,loss,lr,acc\n1,0.5,1e-3,0.1\n2,0.4,1e-3,0.2\n3,0.3,1e-")
    assert run.of(Role.LOSS)[0].values.tolist() == [0.5, 0.4, 0.3]
    assert run.of(Role.LEARNING_RATE)[0].values.tolist() == [1e-3, 1e-3]


STATE = {
    "best_metric": None,
    "epoch": 2.0,
    "log_history": [
        *(
            {"epoch": i / 10, "grad_norm": 1.0, "loss": 2 - i / 20, "step": i * 5}
            for i in range(1, 9)
        ),
        {"epoch": 0.8, "eval_loss": 1.5, "eval_runtime": 2.0, "step": 40},
    ],
    "max_steps": 40,
}


def test_trainer_state_whole_and_torn():
    text = json.dumps(STATE, indent=2)
    run = read(text)
    assert points(run.of(Role.LOSS)[0])[-1] == (40, 1.6)
    assert points(run.of(Role.VALIDATION_LOSS)[0]) == [(40, 1.5)]
    assert text.splitlines()[run.of(Role.LOSS)[0].lines[0] - 1].strip() == "{"
    torn = read(text[: text.index('"eval_loss"')])
    assert len(torn.of(Role.LOSS)[0].values) == 8
    assert "the file ends within a record, which was left out" in torn.notes


def test_other_json_files():
    run = read(json.dumps({"loss": [1, 0.9, "x"], "val_loss": [1.1, float("nan"), 1.2]}))
    assert points(run.of(Role.LOSS)[0]) == [(1, 1.0), (2, 0.9)]
    assert run.of(Role.VALIDATION_LOSS)[0].per == "epoch"
    records = [{"epoch": i, "train": {"loss": 2.0 - i}, "val": {"loss": 3.0 - i}} for i in range(3)]
    for text in (json.dumps(records), "\n".join(map(json.dumps, records))):
        run = read(text)
        assert points(run.of(Role.LOSS)[0]) == [(0, 2.0), (1, 1.0), (2, 0.0)]
        assert run.of(Role.VALIDATION_LOSS)[0].name == "val/loss"


def varint(number):
    number &= 2**64 - 1
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def wire(number, value):
    """A field of a message: an integer, a float, a double, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def frame(body):
    head = struct.pack("<Q", len(body))
    return head + struct.pack("<I", masked(head)) + body + struct.pack("<I", masked(body))


def event(step, *scalars, tensor=False):
    values = b""
    for tag, value in scalars:
        held = wire(8, wire(1, 1) + wire(5, struct.pack("<f", value))) if tensor else wire(2, value)
        values += wire(1, wire(1, tag.encode()) + held)
    return varint(1 << 3 | 1) + struct.pack("<d", 1.0) + wire(2, step) + wire(5, values)


def events():
    frames = [frame(wire(3, b"brain.Event:2"))]
    for i in range(6):
        frames.append(frame(event(10 * i, ("train/loss", 2.0 - i), ("lr", 0.5), tensor=i % 2 == 1)))
    return [*frames, frame(event(1, ("val/loss", 1.5)))]


def test_event_files_of_both_kinds_of_scalars():
    (run,) = read_log(io.BytesIO(b"".join(events())))
    assert run.format == "tensorboard"
    assert points(run.of(Role.LOSS)[0]) == [(10.0 * i, 2.0 - i) for i in range(6)]
    assert points(run.of(Role.VALIDATION_LOSS)[0]) == [(1.0, 1.5)]
    assert run.of(Role.LOSS)[0].lines.tolist() == [2, 3, 4, 5, 6, 7]


def test_the_checksum_is_that_of_rfc_3720():
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes([255] * 32)) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E


def test_a_torn_event_file_is_read_to_its_end_and_a_damaged_one_refused():
    data = b"".join(events())
    (run,) = read_log(io.BytesIO(data[:-5]))
    assert len(run.of(Role.LOSS)[0].values) == 6
    assert any("ends within record 8" in note for note in run.notes)
    first = len(events()[0])
    broken = bytearray(data)
    broken[first + 20] ^= 1
    with pytest.raises(JournalError, match=r"record 2: does not fit its checksum\. The event file"):
        read_log(io.BytesIO(bytes(broken)))
    broken = bytearray(data)
    broken[first] ^= 1
    with pytest.raises(JournalError, match="record 2: has a length that does not fit its checksum"):
        read_log(io.BytesIO(bytes(broken)))
    with pytest.raises(JournalError, match="is no event"):
        read_log(io.BytesIO(events()[0] + frame(wire(5, b"\xff\xff\xff\xff"))))


@given(st.binary(max_size=64), st.integers(0, 2**20))
def test_hostile_events_end_in_a_clear_error(body, step):
    bodies = [frame(body), frame(wire(5, body)), frame(wire(2, step) + wire(5, wire(1, body)))]
    for hostile in bodies:
        found = outcome(events()[0] + hostile)
        assert found.line == 2 if isinstance(found, JournalError) else len(found) == 1


@pytest.fixture
def journal(tmp_path):
    path = tmp_path / "journal.jsonl"
    run = {"optimizer": {"lr": 1e-4, "gradient_clip_norm": 10.0}, "amp": "fp16"}
    with JournalWriter(path, run=run) as writer:
        for step in range(8):
            bad = step == 5
            writer.write(
                StepRecord(
                    step=step,
                    verdict=Verdict.REFUSED if bad else Verdict.APPLIED,
                    cause=Cause.OVERFLOW if bad else Cause.NONE,
                    loss=math.inf if bad else 2.0 - step / 10,
                    terms=(TermRecord("box", 1.0, 2.0), TermRecord("cls", 0.5, 1.0)),
                    grad_norm=math.nan if bad else 12.0,
                    clip_coefficient=0.5,
                    loss_scale=65536.0,
                    learning_rates=(1e-4, 1e-5),
                    refused_steps=int(step >= 5),
                    culprits=(Culprit("head.weight", math.inf),) if bad else (),
                    events=(Event.ROLLED_BACK,) if step == 6 else (),
                )
            )
        writer.event("epoch", epoch=1, device_memory_mb=1200.0)
        writer.event("evaluation", epoch=1, weights="average", st_iou=0.25)
    return path


def test_our_journal(journal):
    (run,) = read_log(journal)
    assert run.format == "surefoot"
    assert points(run.of(Role.LOSS)[0])[5] == (5, math.inf)
    assert {(c.name, c.group, c.values[0]) for c in run.of(Role.TERM)} == {
        ("box", "", 1.0),
        ("box", "weighted", 2.0),
        ("cls", "", 0.5),
        ("cls", "weighted", 0.5),
    }
    assert run.of(Role.CLIP_THRESHOLD)[0].values[0] == 6.0
    assert run.of(Role.SKIPPED)[0].values.tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    assert run.of(Role.DEVICE_MEMORY)[0].values.tolist() == [1.2e9]
    assert [(c.name, c.group) for c in run.of(Role.METRIC)] == [("evaluation st_iou", "validation")]
    assert [(m.kind, m.step) for m in run.messages] == [("overflow", 5.0), ("rolled_back", 6.0)]
    assert "head.weight" in run.messages[0].text
    assert run.settings["clip"] == "10.0"


def test_our_journal_resumed_torn_and_damaged(journal):
    with JournalWriter(journal, run={}) as writer:
        writer.write(StepRecord(step=6, verdict=Verdict.APPLIED, loss=1.0))
    with journal.open("ab") as file:
        file.write(b'garbage\n{"kind": "step", "st')
    (run,) = read_log(journal)
    assert run.of(Role.LOSS)[0].steps.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 6]
    assert [m.kind for m in run.messages].count("resumed") == 1
    assert "line 14 is no entry and was passed over" in run.notes
