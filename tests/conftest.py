"""What holds for every test: one thread, fixed seeds, no network, nothing written at home."""

from __future__ import annotations

import atexit
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

import hypothesis
import PIL.Image
import pytest

ROOT = Path(__file__).resolve().parent.parent

# They hold no doctests, and collecting two of them for some is an "import file mismatch".
collect_ignore_glob = ["*conftest.py"]

# Read by libraries while they are imported, so set before any of them is. One thread: the tensors
# of a test are too small to be worth sharing out, and a worker of pytest-xdist has one core.
# A worker's scratch folder lies in that of the process that started it, which removes both.
_parent = os.environ.get("YOLO_CONFIG_DIR") if "PYTEST_XDIST_WORKER" in os.environ else None
_SCRATCH = tempfile.mkdtemp(prefix="surefoot-tests-", dir=_parent)
atexit.register(shutil.rmtree, _SCRATCH, ignore_errors=True)
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["YOLO_CONFIG_DIR"] = _SCRATCH
os.environ["YOLO_OFFLINE"] = "1"
os.environ["YOLO_AUTOINSTALL"] = "0"
os.environ["YOLO_VERBOSE"] = "0"

# No deadline: a core shared with other work makes the time of one example no evidence.
hypothesis.settings.register_profile("dev", deadline=None)
# CI has two cores and twenty minutes: the same examples each time, and fewer than at a desk.
hypothesis.settings.register_profile(
    "ci", deadline=None, derandomize=True, print_blob=True, max_examples=40
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state, whatever ran before it in this process."""
    random.seed(0)
    # A test that draws from NumPy or torch imported them before this ran; the others need neither.
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(0)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data, logs and documents that tests may read; skips where it is absent."""
    named = os.environ.get("SUREFOOT_SHARED")
    folders = [Path(named)] if named else [ROOT / "shared", ROOT.parent / "shared"]
    for folder in folders:
        if folder.is_dir():
            return folder
    looked = " or ".join(str(folder) for folder in folders)
    pytest.skip(f"shared data not found at {looked}; set SUREFOOT_SHARED")


_OPEN = PIL.Image.open


@pytest.fixture(autouse=True)
def _pillow_as_users_have_it() -> None:
    """Importing Ultralytics puts a function of its own in the place of Pillow's, for everybody."""
    PIL.Image.open = _OPEN
