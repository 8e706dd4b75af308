"""A whole training step, guarded, beside the same loop without guard and without clipping.

    python -m benchmarks.whole_step                         # ResNet-18, batch 8, 64 and 224 pixels
    python -m benchmarks.whole_step --model mlp --batch 64  # 16 M weights and hardly any arithmetic

Forward, backward, measure, clip, step, zero. The ratio of the means has the snapshots in it, one in
50 steps; run at least 100 rounds for it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import surefoot
from benchmarks.interleave import (
    Way,
    add_options,
    clocked,
    interleave,
    machine,
    print_table,
    save_rows,
)
from benchmarks.peers import anomaly_step, arc_step, isfinite_step, stabilityguard_step
from surefoot.guard import Guard, Policy

__all__ = ["Step", "Task", "mlp", "resnet18"]

Step = Callable[[], object]

RIVAL = "no guard, no clipping"


@dataclass(frozen=True)
class Task:
    """A model's own forward pass on one batch, made anew for every way."""

    make: Callable[[], nn.Module]
    inputs: Tensor
    labels: Tensor
    amp: str | None = None

    def build(self) -> tuple[nn.Module, torch.optim.Optimizer, Callable[[], Tensor]]:
        """Model, optimizer, and what computes the loss."""
        torch.manual_seed(0)
        model = self.make().to(self.inputs.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

        def loss_of() -> Tensor:
            return nn.functional.cross_entropy(model(self.inputs).float(), self.labels)

        return model, optimizer, loss_of

    def autocast(self) -> AbstractContextManager[object]:
        """What a plain loop opens."""
        if self.amp is None:
            return nullcontext()
        return torch.autocast(self.inputs.device.type, dtype=torch.bfloat16)


def resnet18(batch: int, image: int, device: str, amp: str | None) -> Task:
    """torchvision's, 11 M weights, 10 classes."""
    from torchvision.models import resnet18 as network

    images = torch.randn(batch, 3, image, image, device=device)
    return Task(lambda: network(num_classes=10), images, _labels(batch, device), amp)


def mlp(batch: int, device: str, amp: str | None) -> Task:
    """Four square layers of 2,048: 16.8 M weights."""
    layers: Callable[[], list[nn.Module]] = lambda: [  # noqa: E731
        layer for _ in range(4) for layer in (nn.Linear(2048, 2048), nn.ReLU())
    ]
    inputs = torch.randn(batch, 2048, device=device)
    return Task(
        lambda: nn.Sequential(*layers(), nn.Linear(2048, 10)), inputs, _labels(batch, device), amp
    )


def _labels(batch: int, device: str) -> Tensor:
    return torch.arange(batch, device=device) % 10


def plain(task: Task, clip: float | None) -> Step:
    model, optimizer, loss_of = task.build()
    parameters = list(model.parameters())

    def step() -> None:
        with task.autocast():
            loss = loss_of()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        optimizer.zero_grad()

    return step


def guarded(task: Task, clip: float | None, policy: Policy | None = None) -> Step:
    model, optimizer, loss_of = task.build()
    guard = Guard(model, optimizer, clip=clip, amp=task.amp, policy=policy)  # type: ignore[arg-type]

    def step() -> None:
        with guard.autocast():
            loss = loss_of()
        guard.step(loss)

    return step


def attached(task: Task, clip: float | None) -> Step:
    model, optimizer, loss_of = task.build()
    surefoot.attach(optimizer, model, clip=clip)

    def step() -> None:
        with task.autocast():
            loss = loss_of()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def others(task: Task, clip: float) -> dict[str, Callable[[], Step]]:
    """The peers' ways, each made when it is its turn, since some do not survive that."""

    def isfinite() -> Step:
        model, optimizer, loss_of = task.build()
        parameters = list(model.parameters())
        return lambda: isfinite_step(parameters, optimizer, clip, loss_of())()

    def arc() -> Step:
        model, optimizer, loss_of = task.build()
        return arc_step(model, optimizer, clip, loss_of)

    def stabilityguard() -> Step:
        model, optimizer, loss_of = task.build()
        return stabilityguard_step(model, optimizer, clip, "skip", loss_of)

    return {
        "isfinite() on each tensor, clip": isfinite,
        "anomaly mode, clip": lambda: anomaly_step(plain(task, clip)),
        "ARC (arc-training), clip": arc,
        "stabilityguard (skip), clip": stabilityguard,
    }


def compare(title: str, task: Task, options: argparse.Namespace) -> None:
    """One table."""
    steps: dict[str, Step] = {
        RIVAL: plain(task, None),
        "the same again (noise floor)": plain(task, None),
        "clip_grad_norm_": plain(task, 1.0),
        "surefoot, no clip": guarded(task, None),
        "surefoot, clip": guarded(task, 1.0),
        "surefoot, clip, no snapshots": guarded(task, 1.0, Policy(snapshot_interval=0)),
        "surefoot, attached, clip": attached(task, 1.0),
    }
    missing: dict[str, str] = {}
    for name, make in others(task, 1.0).items() if options.peers else ():
        try:
            step = make()
            step()
        except ImportError:
            missing[name] = "not installed"
        except RuntimeError as error:
            missing[name] = f"raises {str(error).splitlines()[0][:70]}"
        else:
            steps[name] = step
    nothing: Callable[[], object] = lambda: None  # noqa: E731
    ways: dict[str, Way] = {name: (nothing, step) for name, step in steps.items()}
    rows = interleave(ways, rival=RIVAL, **clocked(options))
    print_table(title, rows, rival=RIVAL, missing=missing)
    save_rows(options.json, title, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=["resnet18", "mlp"], default="resnet18")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", default="64,224", help="sides in pixels")
    parser.add_argument("--amp", choices=["bf16"], default=None)
    add_options(parser)
    options = parser.parse_args()
    options.rounds = options.rounds or 40
    print(machine(options.device))
    precision = options.amp or "fp32"
    if options.model == "mlp":
        task = mlp(options.batch, options.device, options.amp)
        compare(f"MLP of 16.8 M, batch {options.batch}, {precision}", task, options)
        return
    for side in map(int, options.images.split(",")):
        task = resnet18(options.batch, side, options.device, options.amp)
        compare(f"ResNet-18, batch {options.batch}, {side} px, {precision}", task, options)


if __name__ == "__main__":
    main()
