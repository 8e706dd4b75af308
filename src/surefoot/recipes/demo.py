"""What the demos share: a folder of their own, threads beside the worker that draws, and what is
said where one is cut short.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TextIO

import torch

from surefoot.checkpoint.signals import Interrupted
from surefoot.errors import ConfigError, TrainingDiverged

if TYPE_CHECKING:
    from dataclasses import Field

__all__ = ["begin_demo", "begins_anew", "command_of"]

_MARK = "demo.json"


def begin_demo(out: Path, *, command: str) -> None:
    """Make way for a demo: only what an earlier one left is removed.

    Raises:
        ConfigError: ``out`` holds something that is no earlier demo.
    """
    if out.exists() and not (out / _MARK).is_file() and any(out.iterdir()):
        raise ConfigError(
            f"--out {out}: holds something that is no earlier demo. Name a new folder."
        )
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / _MARK).write_text(json.dumps({"command": command}) + "\n", encoding="utf-8")
    # One core is the worker's, which draws: threads that share cores wait for each other at every
    # layer, and the step takes ten times as long.
    torch.set_num_threads(max(1, min(4, (os.cpu_count() or 1) - 1)))


class _Demo(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def out(self) -> Path: ...


def command_of(config: _Demo, verb: str) -> str:
    """The command that makes this demo.

    Args:
        config: its settings.
        verb: as in ``surefoot <verb>``.

    >>> from surefoot.recipes.camouflage.demo import CamouflageDemo
    >>> command_of(CamouflageDemo(out=Path("my runs"), steps=9), "demo camouflage")
    "surefoot demo camouflage --out 'my runs' --steps 9"
    """
    words = ["surefoot", *verb.split()]
    for field in fields(config):
        value = getattr(config, field.name)
        if field.default is MISSING or value != field.default:
            words += [f"--{field.name.replace('_', '-')}", str(value)]
    return shlex.join(words)


@contextmanager
def begins_anew(config: _Demo, recipe: str, stream: TextIO) -> Generator[TextIO]:
    """Around a demo's training: where it is cut short, the way on is the demo's own command.

    ``surefoot train <recipe> --resume`` would look for data that the demo makes while it runs.

    Args:
        config: the demo's settings.
        recipe: what it trains, as in ``surefoot train <recipe>``.
        stream: where it writes.

    Yields:
        The stream for the training.

    Raises:
        Interrupted: as the training, with the same checkpoint and the other way on.
        KeyboardInterrupt: the same.
        TrainingDiverged: the same.
    """
    wrong = f"Go on with: surefoot train {recipe} --resume {config.out}"
    right = f"A demo does not go on; it begins anew with: {command_of(config, f'demo {recipe}')}"
    try:
        yield _Retold(stream, wrong, right)
    except Interrupted as stop:
        raise Interrupted(stop.message.replace(wrong, right)) from None
    except (KeyboardInterrupt, TrainingDiverged) as error:
        error.__notes__ = [note.replace(wrong, right) for note in getattr(error, "__notes__", [])]
        raise


class _Retold(StringIO):
    """A stream that says one thing in other words."""

    def __init__(self, to: TextIO, wrong: str, right: str) -> None:
        super().__init__()
        self._to, self._wrong, self._right = to, wrong, right

    def write(self, s: str, /) -> int:
        return self._to.write(s.replace(self._wrong, self._right))

    def flush(self) -> None:
        self._to.flush()

    def isatty(self) -> bool:
        return self._to.isatty()
