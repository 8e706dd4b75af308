"""The command: its verbs, its help, its exit statuses, and how it says what went wrong."""

from __future__ import annotations

import os
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


def piped_away(code: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    """A process whose standard output nobody reads; it waits until the reader has left."""
    read, write = os.pipe()
    process = subprocess.Popen(
        [sys.executable, *options, "-c", f"import sys; sys.stdin.read()\n{code}"],
        env={key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"},
        stdin=subprocess.PIPE,
        stdout=write,
        stderr=subprocess.PIPE,
    )
    os.close(write)
    os.close(read)
    _, said = process.communicate(b"")
    return subprocess.CompletedProcess(process.args, process.returncode, stderr=said)


@pytest.mark.parametrize("words", [["rules"], ["rules", "SF101"], ["--help"], ["--version"]])
def test_output_that_nobody_reads_to_its_end_changes_no_status(words: list[str]) -> None:
    done = piped_away(f"from surefoot.cli import main; sys.exit(main({words}))")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("options", [[], ["-u"]])
def test_a_verb_whose_reader_leaves_in_the_middle_ends_quietly(options: list[str]) -> None:
    codes = ["SF101"] * 200  # more than a buffer
    code = f"from surefoot.cli import main; sys.exit(main(['rules', *{codes}]))"
    done = piped_away(code, *options)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_table_whose_reader_leaves_ends_quietly() -> None:
    """Rich ends the process by itself where its pipe is closed."""
    code = (
        "from surefoot import cli; from surefoot.cli.verbs import Verb; import rich;"
        "Verb.load = lambda self: lambda rest: rich.get_console().print('long ' * 9999);"
        "sys.exit(cli.main(['rules']))"
    )
    done = piped_away(code)
    assert (done.returncode, done.stderr) == (141, b"")


def test_the_status_of_what_ends_by_itself_is_kept() -> None:
    code = (
        "from surefoot import cli; from surefoot.cli.verbs import Verb\n"
        "def stop(rest): print('saved'); raise SystemExit(75)\n"
        "Verb.load = lambda self: stop\n"
        "sys.exit(cli.main(['rules']))"
    )
    done = piped_away(code)
    assert (done.returncode, done.stderr) == (75, b"")


def test_a_pipe_of_something_else_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    play(monkeypatch, BrokenPipeError("worker"))
    with pytest.raises(BrokenPipeError, match="worker"):
        cli.main(["train", "refdet"])
