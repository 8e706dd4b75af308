"""Starts runs as processes, feeds them their fault's surroundings, and collects what is left.

Processes are forked from a server that has imported the frameworks once, so that a run costs what
its steps cost. Their output goes through a pipe: a fault may forbid them to write files.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from benchmarks.chaos.catalogue import catalogue
from benchmarks.chaos.columns import Column
from benchmarks.chaos.disk import damage
from benchmarks.chaos.fault import Fault
from benchmarks.chaos.run import Spec, live

__all__ = ["Launcher", "Life", "Outcome", "cannot_stage"]

_TIME_LIMIT = 900.0
"""Seconds that one life may take; a healthy one takes 2 to 20 where it has a core to itself."""
_LOOK, _GRACE = 0.5, 10.0
"""Seconds between two looks at a process, and those that the others have once one has died."""
_DISK_BYTES = 8 * 2**20
_QUIET = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": "",
}


@dataclass(frozen=True)
class Life:
    """One start of a run, up to its end."""

    codes: tuple[int | None, ...]
    """Of each process: 0, 1 for an exception, -9 when it was killed, None when it ran too long."""
    log: str

    @property
    def finished(self) -> bool:
        """Every process came to its end."""
        return all(code == 0 for code in self.codes)


@dataclass
class Outcome:
    """What is left of a run."""

    lives: list[Life] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    """Of each process: accuracy, what is not finite, hash."""
    journal: list[str] = field(default_factory=list)
    """Lines of the journals that the run left."""
    files: list[str] = field(default_factory=list)
    """Names of checkpoint files and folders, as they were after the first life and at the end."""
    damaged: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def log(self) -> str:
        """Everything that was printed."""
        return "".join(life.log for life in self.lives)

    @property
    def finished(self) -> bool:
        """The last life came to its end, with a result of every process."""
        return self.lives[-1].finished and len(self.results) == len(self.lives[-1].codes)


class Launcher:
    """Runs specs, several at a time if it is called from several threads."""

    def __init__(self, columns: Sequence[Column]) -> None:
        os.environ.update(_QUIET)
        self._context = multiprocessing.get_context("forkserver")
        needed = sorted({name for column in columns for name in column.needs})
        self._context.set_forkserver_preload([*needed, "benchmarks.chaos.run"])
        self.scratch = Path(tempfile.mkdtemp(prefix="chaos-"))

    def close(self) -> None:
        """Delete what the runs left."""
        shutil.rmtree(self.scratch, ignore_errors=True)

    def run(self, spec: Spec) -> Outcome:
        """All lives of one run; ``spec``'s places are chosen here."""
        began = time.monotonic()
        results = Path(tempfile.mkdtemp(dir=self.scratch))
        folder = results / "run"
        folder.mkdir()
        spec = replace(spec, folder=folder, results=results)
        fault = None if spec.fault is None else catalogue(spec.plan)[spec.fault]
        mounted = fault is not None and fault.disk
        if mounted:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "chaos", str(folder)]
            subprocess.run(mount, check=True)
        try:
            outcome = self._lives(spec, fault)
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(results, ignore_errors=True)
        outcome.seconds = time.monotonic() - began
        return outcome

    def _lives(self, spec: Spec, fault: Fault | None) -> Outcome:
        outcome = Outcome()
        for life in range(1 if fault is None else fault.lives):
            outcome.lives.append(self._live(replace(spec, life=life)))
            outcome.files += _names(spec.folder / "checkpoints")
            if outcome.lives[-1].finished:
                break
            if life == 0 and fault is not None and fault.damage is not None:
                newest = spec.column.newest_file(spec.folder / "checkpoints")
                outcome.damaged += [newest.name, newest.parent.name]
                damage(newest, fault.damage)
        for file in sorted(spec.results.glob("result-*.json")):
            outcome.results.append(json.loads(file.read_text()))
        for file in sorted(spec.folder.rglob("journal*.jsonl")):
            outcome.journal += file.read_text(errors="replace").splitlines()
        return outcome

    def _live(self, spec: Spec) -> Life:
        world = spec.setting.world
        environment = {"CHAOS_FOLDER": str(spec.folder), "RANK": "0"}
        if world > 1:
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
            environment |= address | {"WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        logs, processes, readers = [bytearray() for _ in range(world)], [], []
        for rank in range(world):
            its = environment | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {})
            incoming, outgoing = self._context.Pipe(duplex=False)
            process = self._context.Process(target=live, args=(spec, rank, its, outgoing))
            process.start()
            outgoing.close()
            reader = threading.Thread(target=_read, args=(incoming, logs[rank]), daemon=True)
            reader.start()
            processes.append(process)
            readers.append(reader)
        codes = _wait(processes)
        for reader in readers:
            reader.join(timeout=10.0)
        return Life(codes, "".join(bytes(log).decode(errors="replace") for log in logs))


def cannot_stage(fault: Fault) -> str | None:
    """Why this machine cannot stage a fault; None where it can."""
    if not fault.disk:
        return None
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=65536", "chaos", folder]
        if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
            return "needs the right to mount a tmpfs"
        subprocess.run(["umount", folder], check=True)
    return None


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*")] if folder.exists() else []


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _read(incoming: Connection, log: bytearray) -> None:
    while block := os.read(incoming.fileno(), 2**16):
        log += block
    incoming.close()


def _wait(processes: Sequence[BaseProcess]) -> tuple[int | None, ...]:
    """Exit codes; once one process has died the others are given a little time, then killed.

    Time is counted in looks, so that a suite that is suspended for a while kills nobody afterwards.
    """
    left = int(_TIME_LIMIT / _LOOK)
    while left > 0 and any(process.exitcode is None for process in processes):
        running = next(process for process in processes if process.exitcode is None)
        running.join(timeout=_LOOK)
        died = any(process.exitcode for process in processes)
        left = min(left - 1, int(_GRACE / _LOOK)) if died else left - 1
    codes = tuple(process.exitcode for process in processes)
    for process in processes:
        if process.exitcode is None:
            process.kill()
            process.join()
    return codes
