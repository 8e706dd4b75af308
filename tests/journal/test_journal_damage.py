"""A journal that is damaged, newer, or none is refused, with its path and line."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from surefoot.errors import JournalError
from surefoot.journal import JournalReader, JournalWriter
from surefoot.journal import reader as reader_module
from surefoot.records import StepRecord, Verdict


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "journal.jsonl"
    with JournalWriter(path, run={}) as journal:
        for step in range(4):
            journal.write(StepRecord(step=step, verdict=Verdict.APPLIED))
    return path


def replace_line(path: Path, number: int, line: bytes) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number - 1] = line
    path.write_bytes(b"".join(lines))


@pytest.mark.parametrize(
    "damage",
    [
        b'{"kind": "step", "t": 0.5\n',
        b"\0\0\0\0\n",
        b"\xff\xfe\n",
        b"\n",
        b"[1, 2]\n",
        b'{"t": 1.0}\n',
        b'{"kind": 3}\n',
        b'{"kind": "step", "loss": NaN}\n',
        b"[" * 200_000 + b"\n",
    ],
)
def test_damage_in_the_middle_names_the_file_and_the_line(path: Path, damage: bytes) -> None:
    replace_line(path, 3, damage)
    entries = iter(JournalReader(path))
    assert next(entries).values["step"] == 0
    with pytest.raises(JournalError, match=r"journal\.jsonl, line 3: is no entry") as caught:
        next(entries)
    assert (caught.value.path, caught.value.line) == (path, 3)


@pytest.mark.parametrize(
    ("name", "value"), [("verdict", "maybe"), ("verdict", None), ("loss", []), ("step", None)]
)
def test_a_step_that_is_no_step_record_names_the_line(path: Path, name: str, value: object) -> None:
    values = json.loads(path.read_bytes().splitlines()[2])
    if value is None:
        del values[name]
    else:
        values[name] = value
    replace_line(path, 3, json.dumps(values).encode() + b"\n")
    with pytest.raises(JournalError, match="line 3: is no step record") as caught:
        list(JournalReader(path).steps())
    assert caught.value.line == 3


def test_a_step_of_a_newer_record_version_is_read_where_it_can_be(path: Path) -> None:
    values = json.loads(path.read_bytes().splitlines()[2]) | {"version": 99, "colour": "blue"}
    replace_line(path, 3, json.dumps(values).encode() + b"\n")
    assert [record.step for record in JournalReader(path).steps()] == [0, 1, 2, 3]
    replace_line(path, 3, json.dumps(values | {"verdict": "postponed"}).encode() + b"\n")
    with pytest.raises(JournalError, match=r"line 3: a step record of version 99.*Update surefoot"):
        list(JournalReader(path).steps())


def test_a_newer_format_is_neither_read_nor_added_to(path: Path) -> None:
    header = json.loads(path.read_bytes().splitlines()[0]) | {"version": 2, "started": "tomorrow"}
    replace_line(path, 1, json.dumps(header).encode() + b"\n")
    before = path.read_bytes()
    for opened in (JournalReader, lambda p: JournalWriter(p, run={})):
        with pytest.raises(JournalError, match=r"of format version 2; .* reads up to 1"):
            opened(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("change", [{"started": "tomorrow"}, {"version": "x"}, {"run": 3}])
def test_a_damaged_header_is_said_to_be_one(path: Path, change: dict[str, object]) -> None:
    header = json.loads(path.read_bytes().splitlines()[0]) | change
    replace_line(path, 1, json.dumps(header).encode() + b"\n")
    with pytest.raises(JournalError, match="line 1: the header is damaged") as caught:
        JournalReader(path)
    assert caught.value.line == 1


@pytest.mark.parametrize("content", [b"epoch,loss\n1,0.5\n", b"\x80\x04\x95", b'{"loss": 1}\n'])
def test_a_file_that_is_no_journal_is_refused_and_left_alone(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "results.csv"
    path.write_bytes(content)
    for opened in (JournalReader, lambda p: JournalWriter(p, run={})):
        with pytest.raises(JournalError, match=r"results\.csv: is no journal of surefoot"):
            opened(path)
    assert path.read_bytes() == content


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="could not be opened: No such file"):
        JournalReader(tmp_path / "journal.jsonl")
    with pytest.raises(JournalError, match="could not be opened: Is a directory"):
        JournalReader(tmp_path)
    with pytest.raises(JournalError, match="could not be opened: Is a directory"):
        JournalWriter(tmp_path, run={})


def test_the_memory_of_reading_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak(entries: int) -> int:
        path = tmp_path / f"{entries}.jsonl"
        with JournalWriter(path, run={}) as journal:
            for _ in range(entries):
                journal.event("note", text="x" * 5000)
        tracemalloc.start()
        try:
            assert sum(1 for _ in JournalReader(path)) == entries
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(1000) < peak(20) + 100_000  # the file itself is 5 MB


def test_a_line_without_an_end_does_not_fill_the_memory(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "MAX_LINE_BYTES", 10_000)
    with path.open("ab") as file:
        file.write(b"x" * 20_000)
    with pytest.raises(JournalError, match="line 6: is longer than 10,000 bytes"):
        list(JournalReader(path))
