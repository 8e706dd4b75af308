"""The real command under torchrun: a worker is killed, and the run ends as its own whole one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from benchmarks.kill import difference

from recipes.camouflage_runs import tiny
from recipes.test_ranks import in_two, last_state
from surefoot.journal import JournalReader

WORKER = """
import os, signal, sys
from surefoot.cli import main
from surefoot.recipes.camouflage import sources
from surefoot.recipes.camouflage.build import CamouflageLearner

terms, calls, at = CamouflageLearner.terms, [], {at}
victim = os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
def counted(self, batch):
    calls.append(1)
    if victim and len(calls) == at:
        {harm}
    return terms(self, batch)
CamouflageLearner.terms, sources._VALIDATION = counted, 3
sys.exit(main({arguments!r}))
"""


KILLED = "os.kill(os.getpid(), signal.SIGKILL)"


def torchrun(
    folder: Path, *flags: str, at: int, harm: str, restarts: int = 0
) -> subprocess.CompletedProcess[str]:
    """As :func:`tiny`, 2 epochs of 3 steps, by two processes, of which the second comes to harm."""
    arguments = [
        "train", "camouflage", "--procedural", "20", "--img-size", "64", "--backbone", "tiny",
        "--channels", "8", "--num-workers", "0", "--device", "cpu", "--precision", "fp32",
        "--epochs", "2", "--stage1-epochs", "1", "--accumulation-steps", "2", "--lr", "1e-3",
        "--save-steps", "1", "--save-dir", str(folder / "run"), "--resume", "auto",
        *flags,
    ]  # fmt: skip
    script = folder / "worker.py"
    script.write_text(WORKER.format(at=at, harm=harm, arguments=arguments), "utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [sys.executable, *launcher, "--max-restarts", f"{restarts}", str(script)],
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_worker_killed_under_torchrun_restarts_and_the_run_ends_bit_equal(tmp_path: Path) -> None:
    in_two(tiny(tmp_path / "whole", epochs=2, stage1_epochs=1))
    # the second epoch's third micro-batch: 4 steps are saved
    done = torchrun(tmp_path, at=8, harm=KILLED, restarts=1)
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert said.count("Going on from") == 1
    assert "after epoch 1 and 2 batches of the next" in said
    assert "no longer exact" not in said
    assert difference(tmp_path / "run", tmp_path / "whole") == ""
    states = [last_state(tmp_path / name)["other_ranks"][0] for name in ("run", "whole")]
    assert torch.equal(states[0]["torch"], states[1]["torch"])
    steps = {record.step for record in JournalReader(tmp_path / "run" / "journal.jsonl").steps()}
    assert steps == set(range(6))
