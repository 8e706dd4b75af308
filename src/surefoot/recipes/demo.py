"""What the demos share: a folder of their own, and threads beside the worker that draws."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch

from surefoot.errors import ConfigError

__all__ = ["begin_demo"]

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
