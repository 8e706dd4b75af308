"""A small task with everything that a refused step must not move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

OptimizerMaker = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

FOLDED: dict[str, OptimizerMaker] = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-2, fused=True),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, fused=True),
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2, fused=True),
}
PLAIN: dict[str, OptimizerMaker] = {
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=1e-2, foreach=True),
    "adam-loop": lambda p: torch.optim.Adam(p, lr=1e-2, foreach=False),
    "sgd-momentum-loop": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3),
    "adamax": lambda p: torch.optim.Adamax(p, lr=1e-2),
    "nadam": lambda p: torch.optim.NAdam(p, lr=1e-2),
    "radam": lambda p: torch.optim.RAdam(p, lr=1e-2),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=1e-1),
    "asgd": lambda p: torch.optim.ASGD(p, lr=1e-2),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-2),
}
ALL = {**FOLDED, **PLAIN}
SIDES = [(name, "host") for name in ALL] + [(name, "device") for name in FOLDED]


def net(seed: int = 0) -> nn.Sequential:
    """Convolution, BatchNorm, linear: 5 parameters tensors and 3 buffers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    )


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Eight 6x6 images and their labels, the same for the same step."""
    generator = torch.Generator().manual_seed(1000 + step)
    return (
        torch.randn(8, 1, 6, 6, generator=generator),
        torch.randint(0, 3, (8,), generator=generator),
    )


def loss_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(images).float(), labels)


def plain_run(make: OptimizerMaker, steps: list[Any], **settings: Any) -> tuple[nn.Module, Any]:
    """The loop everybody writes, over the good steps alone; a step is a list of micro-batches."""
    model = net()
    optimizer = make(list(model.parameters()))
    for micro_batches in steps:
        for number in micro_batches:
            loss = loss_of(model, *batch(number))
            (loss / len(micro_batches)).backward()
        if "clip" in settings:
            nn.utils.clip_grad_norm_(model.parameters(), settings["clip"])
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.fixture(params=SIDES, ids=lambda side: f"{side[0]}-{side[1]}")
def side(request: pytest.FixtureRequest) -> tuple[OptimizerMaker, str]:
    """Every optimizer with the verdict on the host, and the folding ones on the device as well."""
    name, decide = request.param
    return ALL[name], decide
