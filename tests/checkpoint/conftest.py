from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from surefoot.checkpoint import CheckpointStore


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


@pytest.fixture
def weights() -> dict[str, dict[str, Tensor]]:
    return {"model": {"w": torch.randn(8, 8), "n": torch.tensor(3)}}


@pytest.fixture
def state() -> dict[str, Any]:
    return {"epoch": 2, "optimizer": {"exp_avg": torch.randn(64)}}
