"""The ways to take one optimizer step whose gradients lie there, ours and the plain ones.

Each way owns its model and optimizer, and starts from the same gradients. The loss is a constant of
its own, so that a backward pass costs microseconds and every way can run one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

import surefoot
from benchmarks.interleave import Way
from surefoot.guard import Guard

__all__ = ["Bench", "Setting", "attached", "limit", "ours", "plain", "scaler"]

TENSORS = 200


@dataclass(frozen=True)
class Setting:
    """What is stepped."""

    total: int
    """Parameters, in 200 tensors of uneven sizes."""
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    scale: float = 1.0
    """Loss scale that lies on the gradients."""
    clip: float | None = 1.0


class Bench:
    """A model of parameters only, its AdamW, and gradients that are put back every round."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        generator = torch.Generator().manual_seed(0)
        weights = [torch.randn(n, generator=generator) * 0.02 for n in _sizes(setting.total)]
        self.model = nn.ParameterList(w.to(setting.device, setting.dtype) for w in weights)
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)
        self.loss = torch.ones((), device=setting.device, requires_grad=True)
        self._random = random.Random(0)

    def fill(self) -> None:
        """What a backward pass leaves behind; no two are of the same length."""
        length = 1.0 + 0.1 * self._random.random()
        for parameter, gradient in zip(self.parameters, _gradients(self.setting), strict=True):
            parameter.grad = gradient * length


@cache
def _sizes(total: int) -> list[int]:
    shares = torch.rand(TENSORS, generator=torch.Generator().manual_seed(0)) + 0.05
    return [int(n) for n in (shares / shares.sum() * total).long()]


@cache
def _gradients(setting: Setting) -> list[Tensor]:
    """One set for all ways."""
    generator = torch.Generator().manual_seed(1)
    found = [
        torch.randn(n, generator=generator) * 1e-3 * setting.scale for n in _sizes(setting.total)
    ]
    return [g.to(setting.device, setting.dtype) for g in found]


def plain(setting: Setting) -> Way:
    """``clip_grad_norm_`` where there is a clip, and the fused step."""
    bench = Bench(setting)

    def step() -> None:
        bench.loss.backward()
        if setting.clip is not None:
            nn.utils.clip_grad_norm_(bench.parameters, setting.clip)
        bench.optimizer.step()
        bench.optimizer.zero_grad()

    return bench.fill, step


def scaler(setting: Setting) -> Way:
    """The four calls of a GradScaler."""
    bench = Bench(setting)
    grad_scaler = torch.amp.GradScaler(setting.device, init_scale=setting.scale)

    def step() -> None:
        grad_scaler.scale(bench.loss).backward()
        grad_scaler.unscale_(bench.optimizer)
        if setting.clip is not None:
            nn.utils.clip_grad_norm_(bench.parameters, setting.clip)
        grad_scaler.step(bench.optimizer)
        grad_scaler.update()
        bench.optimizer.zero_grad()

    return bench.fill, step


def ours(setting: Setting, *, decide: str = "auto") -> Way:
    """A loop of one's own: ``guard.step``."""
    bench = Bench(setting)
    guard = Guard(
        bench.model,
        bench.optimizer,
        clip=setting.clip,
        amp="fp16" if setting.scale > 1.0 else None,
        decide=decide,  # type: ignore[arg-type]
    )

    def step() -> None:
        guard.step(bench.loss)

    return bench.fill, step


def attached(setting: Setting) -> Way:
    """Somebody else's loop, with ``surefoot.attach``; it clips where the loop did."""
    bench = Bench(setting)
    grad_scaler = None
    if setting.scale > 1.0:
        grad_scaler = torch.amp.GradScaler(setting.device, init_scale=setting.scale)
    surefoot.attach(bench.optimizer, bench.model, clip=setting.clip, scaler=grad_scaler)

    def step() -> None:
        if grad_scaler is None:
            bench.loss.backward()
            bench.optimizer.step()
        else:
            grad_scaler.scale(bench.loss).backward()
            grad_scaler.step(bench.optimizer)
            grad_scaler.update()
        bench.optimizer.zero_grad()

    return bench.fill, step


def limit(setting: Setting, *, threaded: bool = False) -> Way:
    """One norm pass and the fused step, and nothing that uses the norm.

    Args:
        threaded: norms by ``torch.dot``, which uses every thread, and not by ``_foreach_norm``.
    """
    bench = Bench(setting)

    def step() -> None:
        bench.loss.backward()
        gradients = [p.grad for p in bench.parameters if p.grad is not None]
        if threaded:
            squares = [torch.dot(g, g) for g in (g.view(-1) for g in gradients)]
            float(torch.stack(squares).sum().sqrt())
        else:
            float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))
        bench.optimizer.step()
        bench.optimizer.zero_grad()

    return bench.fill, step
