"""How a run under torchrun ends: the status, and what is said, once."""

from __future__ import annotations

import re
from pathlib import Path

from recipes.test_torchrun import torchrun

ASKED_TO_STOP = "os.kill(os.getpid(), signal.SIGTERM)"
OUT_OF_MEMORY = "import torch; raise torch.OutOfMemoryError('CUDA out of memory.')"


def test_a_run_that_is_asked_to_stop_is_saved_and_torchrun_ends_with_1(tmp_path: Path) -> None:
    done = torchrun(tmp_path, at=3, harm=ASKED_TO_STOP)
    assert done.returncode == 1  # the workers' own status is in what torchrun prints
    assert re.search(r"exitcode *: 75", done.stderr)
    assert done.stdout.count("SIGTERM: step 2 is saved in") == 1
    assert done.stdout.count("Go on with: surefoot train camouflage --resume") == 1


def test_memory_that_runs_out_in_shards_ends_all_and_is_told_once(tmp_path: Path) -> None:
    done = torchrun(tmp_path, "--fsdp", at=3, harm=OUT_OF_MEMORY)
    assert done.returncode == 1
    assert done.stderr.count("out of memory on process 1, and the step cannot be computed in") == 1
