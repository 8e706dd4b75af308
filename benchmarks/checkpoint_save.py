"""How long the training waits for a checkpoint: written at once, and by a thread.

    python -m benchmarks.checkpoint_save [--quick] [--rounds N] [--millions 30] [--device cpu|cuda]

A model with AdamW, its weights and both moments: 12 bytes a parameter. Timed is what the training
waits for: ``store.save`` until the checkpoint is on the disk and was read back, against
``BackgroundSaver.save`` until the copy is made, when nothing else is being written. The training
steps of the last two rows run beside nothing, and beside the thread.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.interleave import interleave, machine, print_table
from surefoot.checkpoint import BackgroundSaver, CheckpointStore

WIDTH = 1024


class _Run:
    """A model that has taken a step."""

    def __init__(self, millions: float, device: str) -> None:
        layers = max(1, round(millions * 1e6 / (WIDTH * (WIDTH + 1))))
        self.model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH) for _ in range(layers)]).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.batch = torch.randn(16, WIDTH, device=device)
        self.step()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(self.batch).square().mean().backward()
        self.optimizer.step()

    def arguments(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"optimizer": self.optimizer.state_dict()}, {"model": self.model.state_dict()}


def waiting(run: _Run, folder: Path, rounds: int) -> float:
    """Print what each way keeps the training waiting; gives the share of the thread's."""
    at_once = CheckpointStore(folder / "at_once", keep_last=1)
    saver = BackgroundSaver(CheckpointStore(folder / "thread", keep_last=1))

    def save_at_once() -> None:
        state, weights = run.arguments()
        at_once.save(1, state, weights=weights)

    def save_in_a_thread() -> None:
        state, weights = run.arguments()
        saver.save(1, state, weights=weights)

    rival = "written at once"
    ways = {rival: (saver.wait, save_at_once), "by a thread": (saver.wait, save_in_a_thread)}
    rows = interleave(ways, rival=rival, rounds=rounds, warmup=1)
    saver.close()
    count = sum(p.numel() for p in run.model.parameters())
    print_table(f"a checkpoint of {count / 1e6:.0f} M parameters", rows, rival=rival)
    return float(rows[1].ratios.mean())


def beside(run: _Run, folder: Path, rounds: int) -> None:
    """Print what a training step costs while the thread writes."""
    saver = BackgroundSaver(CheckpointStore(folder / "beside", keep_last=1))

    def start() -> None:
        state, weights = run.arguments()
        saver.save(1, state, weights=weights)

    rival = "a step alone"
    ways = {rival: (saver.wait, run.step), "a step while the thread writes": (start, run.step)}
    rows = interleave(ways, rival=rival, rounds=rounds, warmup=1)
    saver.close()
    print_table("training steps", rows, rival=rival)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--millions", type=float, default=30.0, help="parameters, in millions")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    rounds = options.rounds or (5 if options.quick else 30)
    print(machine())
    folder = Path(tempfile.mkdtemp(prefix="surefoot-benchmark-"))
    try:
        run = _Run(options.millions, options.device)
        share = waiting(run, folder, rounds)
        print(f"the training waits {100 * share:.1f} % of a save that is written at once")
        beside(run, folder, rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
