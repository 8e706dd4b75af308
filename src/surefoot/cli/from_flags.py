"""Settings of a recipe from its flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar, cast

import tyro

from surefoot.recipes.run_folder import CONFIG, run_folder_of, to_resume
from surefoot.recipes.settings import Settings

__all__ = ["read_flags", "training_settings"]

S = TypeVar("S", bound=Settings)
T = TypeVar("T")


def training_settings(arguments: Sequence[str], default: S, *, prog: str) -> S:
    """Settings from flags; with ``--resume``, what is not given is the resumed run's.

    Args:
        arguments: the flags, in either spelling.
        default: what is not given; it has a subject ``run`` with ``resume``, ``checkpoint`` and
            ``save_dir``.
        prog: the command, for ``--help``.

    Raises:
        ConfigError: an impossible value, or nothing to resume at the path.
        SystemExit: an unknown flag or an unreadable value (status 2), or ``--help`` (0).
    """
    config = _read(arguments, default, prog)
    given = cast(Any, config).run
    resume = to_resume(given.resume, given.save_dir)
    if resume is None:
        return config
    folder = run_folder_of(resume)
    saved = cast(Any, type(default).load(folder / CONFIG))
    run = replace(saved.run, save_dir=folder, checkpoint=None)
    return _read(arguments, cast(S, replace(saved, run=run)), prog)


def _read(arguments: Sequence[str], default: S, prog: str) -> S:
    return read_flags(type(default), arguments, prog=prog, default=default)


def read_flags(
    kind: type[T], arguments: Sequence[str], *, prog: str, default: T | None = None
) -> T:
    """A dataclass of settings from flags, in either spelling.

    Args:
        kind: the dataclass; the first line of its docstring describes the command.
        arguments: the flags.
        prog: the command, for ``--help``.
        default: what is not given; the dataclass's own defaults where there is none.

    Raises:
        ConfigError: an impossible value.
        SystemExit: an unknown flag or an unreadable value (status 2), or ``--help`` (0).
    """
    given: dict[str, Any] = {} if default is None else {"default": default}
    return tyro.cli(
        kind,
        args=arguments,
        prog=prog,
        description=(kind.__doc__ or "").partition("\n")[0],
        config=(tyro.conf.OmitArgPrefixes,),
        **given,
    )
