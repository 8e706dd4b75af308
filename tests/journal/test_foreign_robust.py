"""Damage, strange encodings, hostile bytes, and files without end: never a crash, always "
"bounded."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from surefoot.errors import JournalError
from surefoot.journal.foreign import ledger, read_log
from surefoot.journal.foreign.grammar import read_line
from surefoot.journal.foreign.source import MAX_LINE, Lines
from surefoot.journal.foreign.template import pattern_of
from surefoot.journal.series import Role

SAMPLE = (
    "step 10 loss 2.5 lr 0.001 ✓\r\nstep 20 loss 2.25 lr 0.001 ✓\r\n"
    "step 30 loss nan lr 0.001 ✓\r\nstep 40 loss 1.5 lr 0.001 ✓\r\n"
)
WORDS = [*"[]/:=,|%-(){}\"'3→", "step", "epoch", "loss", "lr", "val", "acc", "nan", "inf"]
WORDS += ["0.5", "1e-5", "12/30", "10:11:12", "3.5GB", "1,234"]


def read(data):
    return read_log(io.BytesIO(data))


def outcome(data):
    try:
        return read(data)
    except JournalError as problem:
        return problem


@given(st.binary(max_size=400))
@example(b"\x00" * 40)
@example(b"[")
@example(b"{")
@example(b'{"a": [')
@example(b"a,b\n1,2")
@example(b"\xff\xfe")
@example(b"\r\r\n\x08\x1b[")
def test_any_bytes_give_runs_or_a_clear_error(data):
    found = outcome(data)
    if isinstance(found, JournalError):
        assert re.search("Give a log|damaged", str(found))
        return
    assert found
    assert all(len(c.values) == len(c.steps) == len(c.lines) for r in found for c in r.columns)


@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), max_size=12))
def test_any_lines_of_log_words_are_read(lines):
    text = "\n".join(lines).encode()
    for run in read(text):
        for column in run.columns:
            assert np.isfinite(column.steps).all()
            assert column.lines.max() <= len(lines)


@given(st.lists(st.sampled_from(WORDS), max_size=16).map(" ".join))
def test_the_pattern_of_a_line_fits_the_line_and_finds_its_numbers(text):
    reading = read_line(text)
    if not reading.fields:
        return
    found = re.compile(pattern_of(reading)).fullmatch(text.encode())
    assert found is not None
    spelled = [text[f.start : f.end] for f in sorted(reading.fields, key=lambda f: f.start)]
    assert [g.decode() for g in found.groups()] == spelled


@given(st.integers(0, len(SAMPLE.encode())))
def test_a_log_that_is_cut_anywhere_gives_what_is_whole(cut):
    data = SAMPLE.encode()[:cut]
    whole = data.count(b"\n")
    (run,) = read(data)
    for loss in run.of(Role.LOSS):
        expected = np.array([2.5, 2.25, np.nan, 1.5])[:whole]
        assert np.array_equal(loss.values[:whole], expected, equal_nan=True)


@pytest.mark.parametrize(
    "coding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
def test_encodings(coding):
    (run,) = read(SAMPLE.encode(coding))
    assert run.of(Role.LOSS)[0].steps.tolist() == [10, 20, 30, 40]
    assert run.lines == 4


def test_latin_1_and_mixed_encodings():
    text = "Größe 1: Verlust loss=0,912 lr=0,001\nGröße 2: Verlust loss=0,812 lr=0,001\n"
    (run,) = read(text.encode("latin-1") + text.encode("utf-8"))
    assert run.of(Role.LOSS)[0].values.tolist() == [0.912, 0.812, 0.912, 0.812]


def test_zero_bytes_that_a_crash_left_are_passed_over():
    half = len(SAMPLE) // 2
    (run,) = read(SAMPLE[:half].encode() + b"\0" * 3000 + SAMPLE[half:].encode())
    assert len(run.of(Role.LOSS)[0].values) == 4


def test_torn_lines_in_the_middle_cost_only_themselves():
    (run,) = read(
        b"".join(b"step %d loss 0.%d lr 0.1\nstep %d lo\n" % (i, i, i) for i in range(1, 9))
    )
    assert run.of(Role.LOSS)[0].values.tolist() == [i / 10 for i in range(1, 9)]


def test_two_writers_on_one_line_cost_only_that_line():
    good = b"".join(b"step %d loss 0.%d\n" % (i, i) for i in range(1, 6))
    (run,) = read(good + b"step 6 lostep 7 loss 0.7\nss 0.6\n" + b"step 8 loss 0.8\n")
    assert run.of(Role.LOSS)[0].values.tolist()[:5] == [0.1, 0.2, 0.3, 0.4, 0.5]
    assert run.of(Role.LOSS)[0].values[-1] == 0.8


def test_a_line_without_end_is_bounded():
    lines = Lines(io.BytesIO(b"x" * (5 * MAX_LINE) + b"\nstep 1 loss 0.5\n"))
    blocks = list(lines)
    assert max(len(s) for block in blocks for s in block) <= 2 * MAX_LINE
    assert lines.lines == 2


def test_long_lines_and_many_numbers_take_no_long_time():
    hostile = [
        "1" * 8000 + "x",
        "a" * 8000,
        "loss: " * 1300,
        "1 " * 4000,
        "0%|" * 2600,
        "a.b/" * 2000,
        "[" * 8000,
        "loss=" + "1," * 4000,
        "deadbeef" * 1000,
        "2024-01-01 " * 700,
    ]
    (run,) = read("\n".join(hostile).encode())
    assert run.lines == len(hostile)


def test_lines_that_are_never_alike_are_still_searched_for_known_names():
    words = [
        f"w{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)}" for i in range(4000)
    ]
    text = "".join(f"step {i} {w}: 3 loss: 0.5\n" for i, w in enumerate(words))
    (run,) = read(text.encode())
    (loss,) = run.of(Role.LOSS)
    assert len(loss.values) == 4000
    assert any("ever new ways" in note for note in run.notes)


def test_what_is_too_much_is_thinned_and_what_is_not_finite_kept(monkeypatch):
    monkeypatch.setattr(ledger, "MAX_NUMBERS", 2000)
    monkeypatch.setattr("surefoot.journal.foreign.source.BLOCK", 4096)
    text = "".join(f"step {i} loss {'nan' if i == 100 else 0.5}\n" for i in range(8000))
    (run,) = read(text.encode())
    (loss,) = run.of(Role.LOSS)
    assert len(loss.values) <= 2000
    assert np.isnan(loss.values).sum() == 1
    assert loss.steps[np.isnan(loss.values)].tolist() == [100]
    assert loss.steps[-1] == 7999
    assert any("a very long log" in note for note in run.notes)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"PK\x03\x04" + bytes(60), "a zip archive, as PyTorch's checkpoints are"),
        (b"\x80\x02}q\x00" + bytes(60), "a pickle"),
        (b"\x1f\x8b\x08" + bytes(60), "compressed with gzip"),
        (bytes(range(1, 32)) * 4, "binary"),
    ],
)
def test_what_is_no_log_is_refused_by_name(start, kind):
    with pytest.raises(JournalError, match=f"is no log but {kind}"):
        read(start)


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(JournalError, match=r"log .*nowhere\.log could not be read: No such file"):
        read_log(tmp_path / "nowhere.log")
    with pytest.raises(JournalError, match="could not be read: Is a directory"):
        read_log(tmp_path)


def test_an_empty_file_is_a_run_without_columns():
    (run,) = read(b"")
    assert (run.columns, run.lines) == ((), 0)
    assert any("nothing was found" in note for note in run.notes)


@settings(max_examples=30)
@given(
    st.lists(st.sampled_from([b"a", b"\r", b"\n", b"bc", b"\r\n"]), max_size=40).map(b"".join),
    st.integers(1, 7),
)
def test_lines_and_places_do_not_depend_on_how_the_stream_is_cut(data, size):
    class Dripping(io.BytesIO):
        def read(self, _=-1):
            return super().read(size)

    whole, dripped = Lines(io.BytesIO(data)), Lines(Dripping(data))
    first = [s for block in whole for s in block]
    second = [s for block in dripped for s in block]
    assert first == second
    places = np.arange(len(first))
    assert np.array_equal(whole.line_of(places), dripped.line_of(places))
    assert whole.lines == dripped.lines
