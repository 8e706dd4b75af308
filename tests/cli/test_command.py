"""The command: its verbs, its help, its exit statuses, and how it says what went wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

from surefoot import __version__, cli
from surefoot.cli.verbs import VERBS, Verb
from surefoot.errors import DataError


def play(monkeypatch: pytest.MonkeyPatch, raised: BaseException) -> None:
    """Make every verb raise."""

    def run(_: Sequence[str]) -> int:
        raise raised

    monkeypatch.setattr(Verb, "load", lambda self: run)


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["-h"], []):
        assert cli.main(arguments) == 0
        shown = capsys.readouterr().out
        for verb in VERBS:
            assert " ".join(verb.words) in shown
            assert verb.says in shown


def test_the_first_word_alone_lists_its_verbs_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train"]) == 0
    shown = capsys.readouterr().out
    assert "train refdet" in shown
    assert "demo refdet" not in shown


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"surefoot {__version__}\n"


def test_an_unknown_verb_is_answered_with_the_nearest_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["train", "refdte"]) == 2
    said = capsys.readouterr().err
    assert "surefoot train refdte: no such verb; perhaps 'surefoot train refdet'" in said


def test_a_failure_is_one_block_on_stderr_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    play(monkeypatch, DataError("reading Boat_0: no references", path="Boat_0"))
    assert cli.main(["train", "refdet"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "surefoot: DataError: reading Boat_0: no references\n"


def test_what_a_worker_raised_is_said_without_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (
        "Caught DataError in DataLoader worker process 0.\nOriginal Traceback (most recent call "
        'last):\n  File "x.py", line 3\nsurefoot.errors.DataError: Boat_0: unreadable\n'
    )
    play(monkeypatch, DataError(text))
    cli.main(["train", "refdet"])
    assert capsys.readouterr().err == "surefoot: DataError: Boat_0: unreadable\n"


@pytest.mark.parametrize("flag", ["--debug", "--debug_mode", "--debug-mode"])
def test_debug_mode_shows_where_it_was_raised(monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    play(monkeypatch, DataError("no references"))
    with pytest.raises(DataError, match="no references"):
        cli.main(["train", "refdet", flag])


def test_an_interrupt_exits_130_and_says_where_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = KeyboardInterrupt()
    stop.add_note("Go on with: surefoot train refdet --resume runs/a")
    play(monkeypatch, stop)
    assert cli.main(["train", "refdet"]) == 130
    said = capsys.readouterr().err
    assert said == "surefoot: interrupted: Go on with: surefoot train refdet --resume runs/a\n"


def test_help_and_version_load_no_torch() -> None:
    code = (
        "import sys; from surefoot.cli import main; main(['--help']); main(['--version']);"
        "print('torch' in sys.modules, 'tyro' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False False\n")


def test_the_module_runs_as_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "surefoot", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"surefoot {__version__}\n"
