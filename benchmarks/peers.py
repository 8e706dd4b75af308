"""How others watch a step, each as its documentation says; the plain clip is theirs to keep.

The packages are optional: a way whose package is not installed is None.
"""

from __future__ import annotations

import importlib.util
import logging
import tempfile
from collections.abc import Callable

import torch
from torch import nn

from benchmarks.interleave import Way
from benchmarks.step_ways import Bench, Setting

__all__ = ["PEERS", "anomaly_step", "arc_step", "isfinite_step", "stabilityguard_step"]

Step = Callable[[], object]


def isfinite_loop(setting: Setting) -> Way:
    """Look at every gradient by itself, then clip and step."""
    bench = Bench(setting)
    return bench.fill, isfinite_step(bench.parameters, bench.optimizer, setting.clip, bench.loss)


def isfinite_step(
    parameters: list[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    clip: float | None,
    loss: torch.Tensor,
) -> Step:
    def step() -> None:
        loss.backward()
        good = all(bool(torch.isfinite(p.grad).all()) for p in parameters if p.grad is not None)
        if good:
            if clip is not None:
                nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
        optimizer.zero_grad()

    return step


def norm_monitor(setting: Setting) -> Way:
    """A metric for every tensor's norm, read one by one, as monitors of optimizers do."""
    bench, seen = Bench(setting), dict[int, float]()

    def step() -> None:
        bench.loss.backward()
        for i, parameter in enumerate(bench.parameters):
            if parameter.grad is not None:
                seen[i] = torch.linalg.vector_norm(parameter.grad).item()
        if setting.clip is not None:
            nn.utils.clip_grad_norm_(bench.parameters, setting.clip)
        bench.optimizer.step()
        bench.optimizer.zero_grad()

    return bench.fill, step


def zclip(setting: Setting) -> Way | None:
    """ZClip in place of the clip."""
    if not _installed("zclip"):
        return None
    from zclip import ZClip

    bench = Bench(setting)
    clip = ZClip(max_grad_norm=setting.clip)

    def step() -> None:
        bench.loss.backward()
        clip.step(bench.model)
        bench.optimizer.step()
        bench.optimizer.zero_grad()

    return bench.fill, step


def arc(setting: Setting) -> Way | None:
    """ARC's controller before the step."""
    if not _installed("arc"):
        return None
    bench = Bench(setting)
    return bench.fill, arc_step(bench.model, bench.optimizer, setting.clip, lambda: bench.loss)


def arc_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip: float | None,
    loss_of: Callable[[], torch.Tensor],
) -> Step:
    from arc import Controller

    logging.disable(logging.WARNING)
    controller = Controller(model, optimizer)
    parameters = list(model.parameters())

    def step() -> None:
        loss = loss_of()
        loss.backward()
        if not controller.step(loss).should_skip:
            if clip is not None:
                nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
        optimizer.zero_grad()

    return step


def stabilityguard(setting: Setting, action: str) -> Way | None:
    """stabilityguard's wrapper around the optimizer."""
    if not _installed("stabilityguard"):
        return None
    bench = Bench(setting)
    optimizer = bench.optimizer
    step = stabilityguard_step(bench.model, optimizer, setting.clip, action, lambda: bench.loss)
    return bench.fill, step


def stabilityguard_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip: float | None,
    action: str,
    loss_of: Callable[[], torch.Tensor],
) -> Step:
    from stabilityguard import GuardedOptimizer

    guarded = GuardedOptimizer(
        optimizer, model, nan_action=action, verbose=False, log_dir=tempfile.mkdtemp()
    )
    parameters = list(model.parameters())

    def step() -> None:
        loss_of().backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(parameters, clip)
        guarded.step()
        guarded.zero_grad()

    return step


def anomaly_step(step: Step) -> Step:
    """A step with forward and backward pass under anomaly mode."""

    def watched() -> None:
        with torch.autograd.set_detect_anomaly(True):
            step()

    return watched


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


PEERS: dict[str, Callable[[Setting], Way | None]] = {
    "isfinite() on each tensor, clip, step": isfinite_loop,
    ".item() of each norm, clip, step": norm_monitor,
    "zclip in place of the clip, step": zclip,
    "ARC (arc-training), clip, step": arc,
    "stabilityguard (skip), clip, step": lambda setting: stabilityguard(setting, "skip"),
    "stabilityguard (rollback), clip, step": lambda setting: stabilityguard(setting, "rollback"),
}
