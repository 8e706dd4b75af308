"""What it costs to be able to say what a step died of, and what saying it costs.

    python -m benchmarks.blame_cost            # ResNet-18, batch 8, 64 pixels, a loss of 5 terms

Whole steps: forward, backward, step, zero. A sampled step is taken once in 500, a refusal that is
looked into at most 8 times and then ever more rarely; divide their excess by that.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from benchmarks.interleave import (
    Way,
    add_options,
    clocked,
    interleave,
    machine,
    print_table,
    save_rows,
)
from surefoot import LossTerms
from surefoot.guard import Guard, Policy

_RIVAL = "nothing kept, no term sampled"
_SNAPSHOTS = {"snapshot_interval": 0}  # they come at moments of their own


def _terms(model: nn.Module, images: Tensor, labels: Tensor) -> LossTerms:
    logits = model(images).float()
    losses = (logits.roll(i, 1) for i in range(5))
    return LossTerms(
        {f"term {i}": nn.functional.cross_entropy(x, labels) for i, x in enumerate(losses)}, {}
    )


def _way(
    options: argparse.Namespace, policy: Policy, *, bad: bool = False, tell: bool = False
) -> Way:
    torch.manual_seed(0)
    model = resnet18(num_classes=10).to(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    guard = Guard(model, optimizer, policy=policy)
    images = torch.randn(options.batch, 3, options.image, options.image, device=options.device)
    labels = torch.arange(options.batch, device=options.device) % 10
    if bad:
        images[0, 0, 0, 0] = math.nan
    compute = partial(_terms, model, images, labels)

    def step() -> object:
        with guard.autocast():
            terms = compute()
        return guard.step(terms, recompute=compute if tell else None).verdict

    return (lambda: None), step


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--image", type=int, default=64)
    add_options(parser)
    options = parser.parse_args()
    options.rounds = options.rounds or 30
    quiet = partial(Policy, **_SNAPSHOTS, max_consecutive_refusals=10**9)
    make: Callable[..., Way] = partial(_way, options)
    off = quiet(inspect_refusals=0, term_gradients_every=0)
    kept, always = quiet(term_gradients_every=0), quiet(inspect_refusals=10**9)
    ways = {
        _RIVAL: make(off),
        "the same again (noise floor)": make(off),
        "inputs and random states kept": make(kept),
        "every step sampled": make(quiet(term_gradients_every=1)),
        "refused, not looked into": make(off, bad=True),
        "refused and looked into": make(always, bad=True),
        "refused and looked into, recompute": make(always, bad=True, tell=True),
    }
    print(machine(options.device))
    title = f"ResNet-18, batch {options.batch}, {options.image} pixels, 5 terms"
    rows = interleave(ways, rival=_RIVAL, **clocked(options))
    print_table(title, rows, rival=_RIVAL)
    save_rows(options.json, title, rows)


if __name__ == "__main__":
    main()
