"""One small task for every framework: features, BatchNorm, two classes, one batch that is NaN."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import Tensor, nn

STEPS, BATCH, BAD = 8, 4, 3


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def rows(*, bad: int | None = None, without: int | None = None) -> tuple[Tensor, Tensor]:
    """Features and labels of all batches in order; one batch may be NaN, or left out."""
    generator = torch.Generator().manual_seed(7)
    features = torch.randn(STEPS * BATCH, 6, generator=generator)
    labels = torch.randint(0, 2, (STEPS * BATCH,), generator=generator)
    if bad is not None:
        features[bad * BATCH] = math.nan
    keep = torch.ones(STEPS * BATCH, dtype=torch.bool)
    if without is not None:
        keep[without * BATCH : (without + 1) * BATCH] = False
    return features[keep], labels[keep]


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def differing(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[str]:
    """Names of what is not equal to the bit."""
    assert ours.keys() == theirs.keys()
    return [name for name in ours if not torch.equal(ours[name], theirs[name])]


@pytest.fixture(autouse=True)
def in_scratch(tmp_path, monkeypatch):
    """Frameworks write into the working directory when they are not told otherwise."""
    monkeypatch.chdir(tmp_path)


def named_rows() -> list[dict[str, object]]:
    """The same rows as samples with names."""
    features, labels = rows()
    pairs = enumerate(zip(features, labels, strict=True))
    return [{"features": x, "labels": y, "name": f"row {i}"} for i, (x, y) in pairs]


def loss_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch["features"]), batch["labels"])


@pytest.fixture
def snippet(root):
    """Runs what docs/frameworks.md tells the user of a framework to write."""
    page = (root / "docs" / "frameworks.md").read_text("utf-8")

    def run(heading: str, names: dict[str, object]) -> dict[str, object]:
        section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
        (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
        exec(code, names)
        return names

    return run
