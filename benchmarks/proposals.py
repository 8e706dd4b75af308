"""Contrastive proposal encoding, forward and backward, against a loop over the proposals.

    OMP_NUM_THREADS=1 python -m benchmarks.proposals --cpu-time      # 2622 rows of 512 numbers
    python -m benchmarks.proposals --rows 256 --rounds 20

The loop is how the loss is often written, one proposal at a time with its positives and negatives
picked out by masks; 2622 rows is what an episode of 8 frames once gave to such a loop, which took
28 s. Both losses are compared before they are timed. Triplets over the hardest pairs of the same
rows are timed beside them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.interleave import (
    Way,
    add_options,
    clocked,
    interleave,
    machine,
    print_table,
    save_rows,
)
from surefoot.losses import batch_hard_triplet, contrastive_proposals, unit_vectors

RIVAL = "a loop over the rows"


def looped(features: Tensor, labels: Tensor, ious: Tensor) -> Tensor:
    """One proposal at a time."""
    z = unit_vectors(features)
    losses: list[Tensor] = []
    for i in range(len(z)):
        others = torch.arange(len(z), device=z.device) != i
        positive = others & (labels == labels[i])
        if labels[i] < 0 or ious[i] < 0.5 or not positive.any():
            continue
        scores = z @ z[i] / 0.1
        told = scores[positive] - scores[others].logsumexp(0)
        losses.append(-ious[i] * told.mean())
    return torch.stack(losses).mean()


def triplets(features: Tensor, labels: Tensor, ious: Tensor) -> Tensor:
    return batch_hard_triplet(features, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=2622)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--objects", type=int, default=16)
    parser.add_argument("--warmup", type=int, default=1, help="rounds that do not count")
    add_options(parser)
    options = parser.parse_args()
    options.rounds = options.rounds or 5
    torch.manual_seed(0)
    device = options.device
    features = torch.randn(options.rows, options.width, device=device, requires_grad=True)
    labels = torch.randint(-1, options.objects, (options.rows,), device=device)
    ious = torch.rand(options.rows, device=device)
    torch.testing.assert_close(
        contrastive_proposals(features, labels, ious), looped(features, labels, ious)
    )

    def way(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Way:
        return lambda: None, lambda: torch.autograd.grad(loss(features, labels, ious), features)

    ways = {
        RIVAL: way(looped),
        "contrastive_proposals": way(contrastive_proposals),
        "batch_hard_triplet": way(triplets),
    }
    print(machine(device))
    title = f"Forward and backward, {options.rows} rows of {options.width}"
    rows = interleave(ways, rival=RIVAL, warmup=options.warmup, **clocked(options))
    print_table(title, rows, rival=RIVAL)
    save_rows(options.json, title, rows)


if __name__ == "__main__":
    main()
