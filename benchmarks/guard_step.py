"""What the guard's step costs beside the lines it replaces.

    python -m benchmarks.guard_step [--quick] [--rounds N] [--device cpu|cuda]

Fresh gradients lie in place before the clock starts; timed is everything from there to the next
forward pass: measure, clip, step, zero. Backward is left out because every way runs the same one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.interleave import interleave, machine, print_table
from surefoot.guard import Guard
from surefoot.guard.accumulation import Accumulation

TENSORS = 200
_Way = tuple[Callable[[], object], Callable[[], object]]


class _Bare(nn.Module):
    """Parameters of uneven sizes and nothing else."""

    def __init__(self, total: int, device: str) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shares = torch.rand(TENSORS, generator=generator) + 0.05
        sizes = (shares / shares.sum() * total).long()
        self.weights = nn.ParameterList(
            torch.randn(int(n), generator=generator).to(device) * 0.02 for n in sizes
        )


class _Bench:
    """One way: its own model and optimizer, and gradients that are put back every round."""

    def __init__(self, total: int, device: str, scale: float, *, fused: bool = True) -> None:
        self.model = _Bare(total, device)
        self.parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=fused)
        self.gradients = [torch.randn_like(p) * 1e-3 * scale for p in self.parameters]
        self.loss = torch.tensor(1.0, device=device)

    def fill(self) -> None:
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient.clone()


def _plain(bench: _Bench, clip: float | None) -> _Way:
    def step() -> None:
        if clip is not None:
            nn.utils.clip_grad_norm_(bench.parameters, clip)
        bench.optimizer.step()
        bench.optimizer.zero_grad()

    return bench.fill, step


def _scaler(bench: _Bench, clip: float, device: str) -> _Way:
    scaler = torch.amp.GradScaler(device)
    scaler.scale(torch.zeros((), device=device))

    def step() -> None:
        scaler.unscale_(bench.optimizer)
        nn.utils.clip_grad_norm_(bench.parameters, clip)
        scaler.step(bench.optimizer)
        scaler.update()
        bench.optimizer.zero_grad()

    return bench.fill, step


def _ours(bench: _Bench, clip: float | None, amp: str | None, decide: str) -> _Way:
    guard = Guard(bench.model, bench.optimizer, clip=clip, amp=amp, decide=decide)  # type: ignore[arg-type]
    loss: Tensor = bench.loss

    def step() -> None:
        window = Accumulation(1, ("loss",), (1.0,), loss.reshape(1), loss)
        guard._stepper.close(window, 1)

    return bench.fill, step


def _limit(bench: _Bench) -> _Way:
    def step() -> None:
        torch.linalg.vector_norm(
            torch.stack(torch._foreach_norm([p.grad for p in bench.parameters]))
        )
        bench.optimizer.step()
        bench.optimizer.zero_grad()

    return bench.fill, step


def fp32(total: int, device: str, rounds: int) -> None:
    """Against clip_grad_norm_ and a fused step, clipping at every step and at none."""
    for name, clip in (("clip reached at every step", 1e-2), ("clip never reached", 1e9)):
        new = lambda: _Bench(total, device, 1.0)  # noqa: E731
        rival = "clip_grad_norm_ + fused AdamW"
        ways = {
            rival: _plain(new(), clip),
            "the same again (noise floor)": _plain(new(), clip),
            "surefoot": _ours(new(), clip, None, "auto"),
            "surefoot, verdict on the device": _ours(new(), clip, None, "device"),
            "limit: norm pass + fused AdamW": _limit(new()),
            "fused AdamW alone, no clip": _plain(new(), None),
        }
        rows = interleave(ways, rival=rival, rounds=rounds)
        print_table(f"fp32, {total / 1e6:.0f} M parameters, {name}", rows, rival=rival)


def fp16(total: int, device: str, rounds: int) -> None:
    """Against the four calls of a GradScaler."""
    for name, clip in (("clip reached at every step", 1e-2), ("clip never reached", 1e9)):
        new = lambda: _Bench(total, device, 65536.0)  # noqa: E731
        rival = "unscale_ + clip + scaler.step + update"
        ways = {
            rival: _scaler(new(), clip, device),
            "surefoot": _ours(new(), clip, "fp16", "auto"),
            "surefoot, verdict on the device": _ours(new(), clip, "fp16", "device"),
        }
        rows = interleave(ways, rival=rival, rounds=rounds)
        print_table(f"fp16 scale, {total / 1e6:.0f} M parameters, {name}", rows, rival=rival)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--millions", type=float, default=16.0, help="parameters, in millions")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    rounds = options.rounds or (15 if options.quick else 40)
    print(machine())
    total = int(options.millions * 1e6)
    fp32(total, options.device, rounds)
    fp16(total, options.device, rounds)


if __name__ == "__main__":
    main()
